"""Converts the tokens of an answer to text, token by token."""

from __future__ import annotations

from helixreal.serving.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""
_WINDOW = 16
"""Tokens that are decoded again for each token, where no character is complete for long."""


class Detokenizer:
    """Converts tokens to text incrementally; all pieces together are the text of all tokens.

    Bytes at the end that may be a part of a character wait for the next tokens. Where runs of byte
    tokens are decoded as a whole (:attr:`Tokenizer.byte_tokens`), a run waits until it ends: an
    invalid byte changes the text of all of it.

    Parameters
    ----------
    tokenizer
        The tokenizer; without one, the text is the token ids, separated by spaces.
    skip_special
        Whether special tokens have no text.
    """

    def __init__(self, tokenizer: Tokenizer | None, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._is_empty = True
        self._window: list[int] = []
        self._told = ""  # of the text of the window

    def add(self, token: int) -> str:
        """The text that one more token completes."""
        if self._tokenizer is None:
            was_empty, self._is_empty = self._is_empty, False
            return str(token) if was_empty else f" {token}"
        if not self._tokenizer.name(token):
            return ""  # models may have more tokens than their tokenizers
        if self._skip_special and token in self._tokenizer.special_tokens:
            return ""
        self._window.append(token)
        if token in self._tokenizer.byte_tokens:
            return ""
        text = self._decode(self._window)
        waits = text.endswith(_REPLACEMENT)
        stable = text[:-1] if waits else text
        piece = stable[len(self._told) :]
        self._told = max(self._told, stable, key=len)  # the first token alone may be incomplete
        if not waits:
            self._keep_last()
        elif len(self._window) > _WINDOW:
            self._drop_invalid(text)
        return piece

    def end(self) -> str:
        """The rest of the text."""
        if self._tokenizer is None:
            return ""
        return self._decode(self._window)[len(self._told) :]

    def _keep_last(self) -> None:
        """Forget all tokens but the last, whose text is complete.

        Not all: many decoders change the first token of a text.
        """
        if text := self._decode(self._window[-1:]):
            self._window, self._told = self._window[-1:], text

    def _drop_invalid(self, text: str) -> None:
        """Forget tokens that no later token can complete to a character."""
        start = len(self._window) - _LONGEST_CHARACTER
        before = self._decode(self._window[:start])
        if before + self._decode(self._window[start:]) == text:
            self._window, self._told = self._window[start:], self._told[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(tokens, skip_special=self._skip_special)

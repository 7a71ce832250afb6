"""Tokenizer, chat template and detokenizer of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from helixsim.errors import InputError

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4
"""The maximum number of tokens of one character: the bytes of its UTF-8 encoding."""


class Tokenizer:
    """The tokenizer of a model, with its chat template and its end-of-text tokens.

    Parameters
    ----------
    folder
        Folder of the model.

    Raises
    ------
    InputError
        If it has no tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InputError(
                "there is no such file; give the tokenizer's folder with --tokenizer", file=file
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises no special class
            raise InputError(f"cannot be read: {error}", file=file) from error
        self._config = _json(folder / "tokenizer_config.json")
        template_file = folder / "chat_template.jinja"
        template = self._config.get("chat_template")
        if template_file.is_file():
            template = template_file.read_text(encoding="utf-8")
        self._template = template if isinstance(template, str) else None
        self.end_tokens = self._end_tokens(folder)

    def _end_tokens(self, folder: Path) -> frozenset[int]:
        found: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            ends = _json(folder / name).get("eos_token_id")
            found.update(ends if isinstance(ends, list) else [] if ends is None else [ends])
        end = self._config.get("eos_token")
        text = end.get("content") if isinstance(end, dict) else end
        if isinstance(text, str) and (token := self._tokenizer.token_to_id(text)) is not None:
            found.add(token)
        return frozenset(found)

    def encode(self, text: str, *, plain: bool = False) -> list[int]:
        """Token ids of a text; `plain` adds no special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=not plain).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        text: str = self._tokenizer.decode(list(tokens))
        return text

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, with the prompt for the next answer.

        Raises
        ------
        InputError
            If the model has no chat template, or the template rejects the conversation.
        """
        if self._template is None:
            raise InputError("this model has no chat template; use /v1/completions")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        special = {
            name: value.get("content") if isinstance(value, dict) else value
            for name, value in self._config.items()
            if name in ("bos_token", "eos_token")
        }
        try:
            text = environment.from_string(self._template).render(
                messages=messages, add_generation_prompt=True, **special
            )
        except TemplateError as error:
            raise InputError(f"the chat template rejects these messages: {error}") from error
        return self.encode(text, plain=True)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Detokenizer:
    """Converts the tokens of an answer to text incrementally, in complete characters.

    Without a tokenizer, the text is the token ids, separated by spaces.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # tokens before it have been returned, and do not change later text
        self._returned = 0

    def add(self, token: int) -> str:
        """The text that one more token completes."""
        tokens = self._tokens
        tokens.append(token)
        if self._tokenizer is None:
            return f" {token}" if len(tokens) > 1 else str(token)
        before = self._tokenizer.decode(tokens[self._start : self._returned])
        text = self._tokenizer.decode(tokens[self._start :])
        waiting = len(tokens) - self._returned
        if text.endswith(_INCOMPLETE) and waiting < _LONGEST_CHARACTER:
            return ""
        return self._advance(before, text)

    def end(self) -> str:
        """The rest of the text."""
        if self._tokenizer is None or self._returned == len(self._tokens):
            return ""
        before = self._tokenizer.decode(self._tokens[self._start : self._returned])
        return self._advance(before, self._tokenizer.decode(self._tokens[self._start :]))

    def _advance(self, before: str, text: str) -> str:
        self._start, self._returned = self._returned, len(self._tokens)
        return text[len(before) :]

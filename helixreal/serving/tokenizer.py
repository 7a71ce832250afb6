"""Text to token ids and back, from a model's folder."""

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
"""Tokens that one character may be cut into, at most: its bytes."""


class Tokenizer:
    """``tokenizer.json`` of a model, with its chat template and its end of text.

    Parameters
    ----------
    folder
        Of the model.

    Raises
    ------
    InputError
        If there is no tokenizer in it.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InputError("there is no tokenizer here; --tokenizer names its folder", file=file)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing more special
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
        """Token ids of a conversation that waits for an answer.

        Raises
        ------
        InputError
            If the model has no chat template, or that refuses the conversation.
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
            raise InputError(f"the chat template refuses these messages: {error}") from error
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
    """The text of an answer as its tokens come; characters come whole.

    Without a tokenizer, the text is the token ids, with spaces between them.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # whatever is before has been told, and changes nothing behind
        self._told = 0

    def add(self, token: int) -> str:
        """The text that is certain with one more token."""
        tokens = self._tokens
        tokens.append(token)
        if self._tokenizer is None:
            return f" {token}" if len(tokens) > 1 else str(token)
        before = self._tokenizer.decode(tokens[self._start : self._told])
        text = self._tokenizer.decode(tokens[self._start :])
        waiting = len(tokens) - self._told
        if text.endswith(_INCOMPLETE) and waiting < _LONGEST_CHARACTER:
            return ""
        return self._tell(before, text)

    def end(self) -> str:
        """What was held back."""
        if self._tokenizer is None or self._told == len(self._tokens):
            return ""
        before = self._tokenizer.decode(self._tokens[self._start : self._told])
        return self._tell(before, self._tokenizer.decode(self._tokens[self._start :]))

    def _tell(self, before: str, text: str) -> str:
        self._start, self._told = self._told, len(self._tokens)
        return text[len(before) :]

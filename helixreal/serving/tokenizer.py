"""Tokenizer and chat template of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from helixsim.errors import InputError


class Tokenizer:
    """The tokenizer of a model, with its chat template and its end-of-text tokens.

    Parameters
    ----------
    folder
        Folder of the model.
    chat_template
        File with a chat template to use instead of the model's.

    Attributes
    ----------
    end_tokens
        Tokens that end an answer.
    longest_token
        Number of characters of the longest token.

    Raises
    ------
    InputError
        If it has no tokenizer, or the chat template cannot be read.
    """

    def __init__(self, folder: Path, *, chat_template: Path | None = None) -> None:
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
        self._template = _compile(self._template_text(folder, chat_template), chat_template)
        self.end_tokens = self._end_tokens(folder)
        self.longest_token = max(map(len, self._tokenizer.get_vocab()), default=1)

    def _template_text(self, folder: Path, chat_template: Path | None) -> str | None:
        file = chat_template or folder / "chat_template.jinja"
        if chat_template is not None or file.is_file():
            try:
                return file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"cannot be read: {error}", file=file) from error
        template = self._config.get("chat_template")
        return template if isinstance(template, str) else None

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

    @cached_property
    def special_tokens(self) -> frozenset[int]:
        """Tokens such as the end of the text, which are not a part of an answer's text."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token for token, about in added.items() if about.special)

    @cached_property
    def byte_tokens(self) -> frozenset[int]:
        """Tokens of single bytes, runs of which are decoded as a whole; empty if there are none."""
        if "ByteFallback" not in json.dumps(json.loads(self._tokenizer.to_str())["decoder"]):
            return frozenset()
        ids = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token for token in ids if token is not None)

    def encode(self, text: str, *, plain: bool = False) -> list[int]:
        """Token ids of a text; `plain` adds no special tokens."""
        # Unlike `encode`, `encode_batch` lets other threads run meanwhile.
        (found,) = self._tokenizer.encode_batch([text], add_special_tokens=not plain)
        ids: list[int] = found.ids
        return ids

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special)
        return text

    def name(self, token: int) -> str:
        """The token as the vocabulary spells it; empty if there is no such token."""
        return self._tokenizer.id_to_token(token) or ""

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, by default with the prompt for the next answer.

        The template sees `more`, too.

        Raises
        ------
        InputError
            If the model has no chat template, or the template rejects the conversation.
        """
        if self._template is None:
            raise InputError(
                "this model has no chat template (--chat-template); use /v1/completions"
            )
        special = {
            name: value.get("content") if isinstance(value, dict) else value
            for name, value in self._config.items()
            if name in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        try:
            return self._template.render(
                {
                    **special,
                    "tools": None,
                    **(more or {}),
                    "messages": messages,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except Exception as error:  # templates run any expression on what clients send
            raise InputError(f"the chat template rejects these messages: {error}") from error


def _compile(text: str | None, file: Path | None) -> Template | None:
    """Compile a chat template, in the environment that Hugging Face defines for them."""
    if text is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(text)
    except TemplateError as error:
        raise InputError(f"the chat template is not valid: {error}", file=file) from error


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""Formats of answers: completions and chat completions, whole and in streams."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from helixreal.serving.answers import Answer, Piece


class Usage:
    """The numbers of tokens of a response.

    Parameters
    ----------
    prompt_tokens
        Tokens of all prompts, each once.
    answers
        All answers.
    """

    def __init__(self, prompt_tokens: int, answers: Sequence[Answer]) -> None:
        self._prompt_tokens = prompt_tokens
        self._answers = answers

    def as_dict(self) -> dict[str, int]:
        """The numbers so far, as in the response."""
        completion = sum(answer.num_tokens for answer in self._answers)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self._prompt_tokens + completion,
        }


class Form(ABC):
    """The format of an answer.

    Parameters
    ----------
    model
        Name of the model.
    request_id
        Identifier of the HTTP request.
    """

    kind = ""
    prefix = ""

    def __init__(self, model: str, request_id: str) -> None:
        self._head = {
            "id": f"{self.prefix}-{request_id}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """A complete response."""
        return self._head | {"object": self.kind, "choices": choices}

    def part(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An event of a stream."""
        return self.whole(choices)

    @abstractmethod
    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """One choice of a complete response."""

    @abstractmethod
    def delta(self, index: int, piece: Piece, *, is_first: bool) -> dict[str, Any]:
        """A piece of one choice in a stream."""


class CompletionForm(Form):
    """The format of completions; `shown` is the text of each choice's prompt, with ``echo``."""

    kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, request_id: str, shown: Sequence[str]) -> None:
        super().__init__(model, request_id)
        self._shown = shown

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """One choice of a complete response."""
        return self.delta(index, piece, is_first=True)

    def delta(self, index: int, piece: Piece, *, is_first: bool) -> dict[str, Any]:
        """A piece of one choice in a stream."""
        shown = self._shown[index] if is_first and self._shown else ""
        return {
            "index": index,
            "text": shown + piece.text,
            "token_ids": piece.tokens,
            "logprobs": None,
            "finish_reason": piece.reason,
            "stop_reason": piece.stop_reason,
        }


class ChatForm(Form):
    """The format of chat completions."""

    kind = "chat.completion"
    prefix = "chatcmpl"

    def part(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An event of a stream."""
        return self.whole(choices) | {"object": "chat.completion.chunk"}

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """One choice of a complete response."""
        message = {"role": "assistant", "content": piece.text}
        return {"index": index, "message": message} | self._common(piece)

    def delta(self, index: int, piece: Piece, *, is_first: bool) -> dict[str, Any]:
        """A piece of one choice in a stream."""
        role = {"role": "assistant"} if is_first else {}
        return {"index": index, "delta": role | {"content": piece.text}} | self._common(piece)

    def _common(self, piece: Piece) -> dict[str, Any]:
        return {
            "token_ids": piece.tokens,
            "logprobs": None,
            "finish_reason": piece.reason,
            "stop_reason": piece.stop_reason,
        }

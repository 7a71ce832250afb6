"""Formats of answers: completions and chat completions, whole and in streams."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from helixreal.serving.answers import Answer, Piece
from helixreal.serving.logprobs import LogprobsWriter
from helixreal.serving.requests import AnswerFields


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
    writer
        Writes log probabilities.
    body
        The request.
    """

    kind = ""
    prefix = ""

    def __init__(
        self, model: str, request_id: str, writer: LogprobsWriter, body: AnswerFields
    ) -> None:
        self.request_id = request_id
        self._head = {
            "id": f"{self.prefix}-{request_id}",
            "created": int(time.time()),
            "model": model,
        }
        self._writer = writer
        self._has_logprobs = body.num_logprobs is not None
        self._has_prompt_logprobs = body.prompt_logprobs is not None

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A complete response, from one piece for each choice."""
        choices = [self._choice(index, piece) for index, piece in enumerate(pieces)]
        return self._head | {"object": self.kind, "choices": choices}

    def part(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An event of a stream."""
        return self._head | {"object": self.kind, "choices": choices}

    @abstractmethod
    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """One choice of a complete response."""

    @abstractmethod
    def delta(self, index: int, piece: Piece, *, is_first: bool) -> dict[str, Any]:
        """A piece of one choice in a stream."""

    def _ending(self, piece: Piece) -> dict[str, Any]:
        return {"finish_reason": piece.reason, "stop_reason": piece.stop_reason}


class CompletionForm(Form):
    """The format of completions."""

    kind = "text_completion"
    prefix = "cmpl"

    def __init__(
        self, model: str, request_id: str, writer: LogprobsWriter, body: AnswerFields
    ) -> None:
        super().__init__(model, request_id, writer, body)
        self._prompts: Sequence[Sequence[int]] = ()
        self._shown: Sequence[str] = ()
        self._offsets: dict[int, int] = {}

    def echo(self, prompts: Sequence[Sequence[int]], shown: Sequence[str]) -> None:
        """Begin every choice with its prompt: token ids and text."""
        self._prompts, self._shown = prompts, shown

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return self.delta(index, piece, is_first=True)

    def delta(self, index: int, piece: Piece, *, is_first: bool) -> dict[str, Any]:
        """A piece of one choice in a stream."""
        shown = self._shown[index] if is_first and self._shown else ""
        found = {
            "index": index,
            "text": shown + piece.text,
            "token_ids": piece.tokens,
            "logprobs": self._logprobs(index, piece, is_first=is_first),
        } | self._ending(piece)
        if is_first and self._has_prompt_logprobs:
            found["prompt_logprobs"] = self._writer.of_prompt(piece.prompt_scores)
        return found

    def _logprobs(self, index: int, piece: Piece, *, is_first: bool) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        scores, first = piece.scores, None
        if is_first and self._prompts:
            scores, first = piece.prompt_scores + scores, self._prompts[index][0]
        found = self._writer.of_completion(scores, self._offsets.get(index, 0), first=first)
        if found["tokens"]:
            self._offsets[index] = found["text_offset"][-1] + len(found["tokens"][-1])
        return found


class ChatForm(Form):
    """The format of chat completions."""

    kind = "chat.completion"
    prefix = "chatcmpl"

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A complete response, from one piece for each choice."""
        found = super().whole(pieces)
        if self._has_prompt_logprobs:
            found["prompt_logprobs"] = self._writer.of_prompt(pieces[0].prompt_scores)
        return found

    def part(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An event of a stream."""
        return super().part(choices) | {"object": "chat.completion.chunk"}

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text}
        return {"index": index, "message": message} | self._common(piece)

    def delta(self, index: int, piece: Piece, *, is_first: bool) -> dict[str, Any]:
        """A piece of one choice in a stream."""
        role = {"role": "assistant"} if is_first else {}
        return {"index": index, "delta": role | {"content": piece.text}} | self._common(piece)

    def _common(self, piece: Piece) -> dict[str, Any]:
        logprobs = self._writer.of_chat(piece.scores) if self._has_logprobs else None
        return {"token_ids": piece.tokens, "logprobs": logprobs} | self._ending(piece)

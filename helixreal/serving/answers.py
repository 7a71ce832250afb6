"""Streams one answer of the cluster: detokenizes its tokens and applies stop strings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from helixreal.serving.frontend import (
    Failed,
    Finished,
    Frontend,
    GenerationRequest,
    Refused,
    StreamEvent,
    Token,
)
from helixreal.serving.metrics import Metrics
from helixreal.serving.tokenizer import Detokenizer, Tokenizer


class NoAnswerError(Exception):
    """The cluster has refused a request, or could not complete it."""

    def __init__(self, cause: Failed | Refused) -> None:
        super().__init__(cause.message)
        self.cause = cause


@dataclass(slots=True)
class Piece:
    """The next piece of an answer; the last piece has a finish reason."""

    text: str
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None


class Answer:
    """Submits a request, and yields the pieces of its answer.

    Parameters
    ----------
    frontend, generation
        The cluster, and the request.
    tokenizer
        Detokenizes the answer; None for token ids as text.
    stops
        Stop strings: the answer ends before the first of them.
    metrics
        Latency metrics of the endpoint.
    """

    def __init__(
        self,
        frontend: Frontend,
        generation: GenerationRequest,
        tokenizer: Tokenizer | None,
        stops: list[str],
        metrics: Metrics,
    ) -> None:
        self._frontend = frontend
        self._generation = generation
        self._text = Detokenizer(tokenizer)
        self._stops = stops
        self._metrics = metrics
        self._held = ""
        self.num_tokens = 0

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces as tokens are made.

        Raises
        ------
        NoAnswerError
            If the request is refused, or cannot be completed.
        """
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[StreamEvent] = asyncio.Queue()

        def listener(event: StreamEvent) -> None:
            # The server may have stopped before the cluster reports an event.
            if not loop.is_closed():
                loop.call_soon_threadsafe(heard.put_nowait, event)

        began_s = last_s = time.monotonic()
        number = self._frontend.submit(self._generation, listener)
        has_ended = False
        try:
            while not has_ended:
                event = await heard.get()
                now_s = time.monotonic()
                match event:
                    case Token(token):
                        metric = self._metrics.gap_s
                        if not self.num_tokens:
                            metric = self._metrics.first_token_s
                        metric.observe(now_s - last_s)
                        last_s = now_s
                        piece, has_ended = self._take(token)
                        if has_ended:
                            self._frontend.cancel(number)
                        yield piece
                    case Finished(reason):
                        has_ended = True
                        yield self._finish(reason)
                    case _:
                        has_ended = True
                        raise NoAnswerError(event)
            self._metrics.whole_s.observe(time.monotonic() - began_s)
        finally:
            if not has_ended:
                self._frontend.cancel(number)

    def _take(self, token: int) -> tuple[Piece, bool]:
        self.num_tokens += 1
        self._held += self._text.add(token)
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            return Piece(self._held[: min(found)], [token], "stop"), True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        told, self._held = self._held[:cut], self._held[cut:]
        return Piece(told, [token]), False

    def _finish(self, reason: str) -> Piece:
        text = self._held + self._text.end()
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            return Piece(text[: min(found)], [], "stop")
        return Piece(text, [], reason)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that is a beginning of a stop string."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

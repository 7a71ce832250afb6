"""Streams one answer of the cluster: detokenizes its tokens and applies stop strings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from threading import get_ident

from helixreal.engines.engine import TokenScore
from helixreal.serving.detokenizer import Detokenizer
from helixreal.serving.frontend import (
    Failed,
    Finished,
    Frontend,
    GenerationRequest,
    Listener,
    Refused,
    StreamEvent,
    Token,
)
from helixreal.serving.metrics import Metrics, Timing
from helixreal.serving.tokenizer import Tokenizer


class NoAnswerError(Exception):
    """The cluster has refused a request, or could not complete it."""

    def __init__(self, cause: Failed | Refused) -> None:
        super().__init__(cause.message)
        self.cause = cause


@dataclass(slots=True)
class Piece:
    """The next piece of an answer; the last piece has a finish reason.

    Attributes
    ----------
    text, tokens
        What is new.
    reason
        ``length`` or ``stop``, in the last piece.
    stop_reason
        The stop string that ended the answer.
    scores
        Log probabilities of the tokens, if asked for.
    prompt_scores
        In the first piece: the same of the prompt's tokens, from the second on.
    """

    text: str
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    stop_reason: str | None = None
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)

    def add(self, later: Piece) -> None:
        """Append a later piece."""
        self.text += later.text
        self.tokens += later.tokens
        self.scores += later.scores
        self.prompt_scores += later.prompt_scores
        self.reason, self.stop_reason = later.reason, later.stop_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """What becomes of the tokens of an answer.

    Attributes
    ----------
    stops
        Stop strings: the answer ends before the first of them.
    keeps_stop
        Whether the stop string is a part of the text.
    skip_special
        Whether special tokens have no text.
    min_tokens
        Stop strings in the first tokens of this number do not end the answer.
    is_hidden
        Whether the answer has no tokens: the cluster cannot make fewer than one.
    """

    stops: list[str] = field(default_factory=list)
    keeps_stop: bool = False
    skip_special: bool = True
    min_tokens: int = 0
    is_hidden: bool = False


class Answer:
    """Submits a request, and yields the pieces of its answer.

    Parameters
    ----------
    frontend, generation
        The cluster, and the request.
    tokenizer
        Detokenizes the answer; None for token ids as text.
    rules
        How its text is made.
    metrics
        Metrics of the endpoint.

    Attributes
    ----------
    num_tokens
        Number of tokens so far.
    """

    def __init__(
        self,
        frontend: Frontend,
        generation: GenerationRequest,
        tokenizer: Tokenizer | None,
        rules: TextRules,
        metrics: Metrics,
    ) -> None:
        self._frontend = frontend
        self._generation = generation
        self._text = Detokenizer(tokenizer, skip_special=rules.skip_special)
        self._rules = rules
        self._metrics = metrics
        self._held = ""
        self.num_tokens = 0

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """Yield the pieces as tokens are made; all that are there already, at once.

        Each piece has a token; the end is a part of the last one, unless it is known later only.

        Raises
        ------
        NoAnswerError
            If the request is refused, or cannot be completed.
        """
        heard: asyncio.Queue[StreamEvent] = asyncio.Queue()
        timing = self._metrics.begin(self._generation)
        number = self._frontend.submit(self._generation, _listener_of(heard))
        reason: str | None = None
        try:
            while reason is None:
                events = [await heard.get()]
                while not heard.empty():
                    events.append(heard.get_nowait())
                pieces, last = self._pieces_of(events, timing)
                if pieces:
                    reason = pieces[-1].reason
                    if reason is not None and isinstance(last, Token):
                        self._frontend.cancel(number)  # it would go on
                    yield pieces
                if isinstance(last, Failed | Refused):
                    reason = "error"
                    raise NoAnswerError(last)
        finally:
            if reason is None:
                self._frontend.cancel(number)
            timing.end(reason or "abort")

    def _pieces_of(
        self, events: list[StreamEvent], timing: Timing
    ) -> tuple[list[Piece], StreamEvent]:
        """The pieces of some events, up to the end of the answer, and the last event of these."""
        pieces: list[Piece] = []
        for event in events:
            match event:
                case Token():
                    timing.token(event)
                    piece = self._take(event)
                case Finished():
                    piece = self._finish(event.reason)
                case _:
                    break
            if pieces and not piece.tokens:
                # Clients measure the time between events as that between tokens.
                pieces[-1].add(piece)
            else:
                pieces.append(piece)
            if piece.reason is not None:
                break
        return pieces, event

    def _take(self, event: Token) -> Piece:
        piece = Piece("")
        if event.scores is not None:
            piece.prompt_scores = event.scores.prompt
        if self._rules.is_hidden:
            piece.reason = "length"
            return piece
        self.num_tokens += 1
        piece.tokens = [event.token]
        if event.scores is not None and event.scores.token is not None:
            piece.scores = [event.scores.token]
        self._held += self._text.add(event.token)
        if self.num_tokens <= self._rules.min_tokens or not self._rules.stops:
            piece.text, self._held = self._held, ""
            return piece
        if self._ends_at_stop(self._held, piece):
            return piece
        keep = max((_overlap(self._held, stop) for stop in self._rules.stops), default=0)
        cut = len(self._held) - keep
        piece.text, self._held = self._held[:cut], self._held[cut:]
        return piece

    def _finish(self, reason: str) -> Piece:
        piece = Piece(self._held + self._text.end(), reason=reason)
        self._ends_at_stop(piece.text, piece)
        return piece

    def _ends_at_stop(self, text: str, piece: Piece) -> bool:
        """Make a piece the last one if a stop string is in a text; whether it is."""
        if not self._rules.stops:
            return False
        found = [(at, stop) for stop in self._rules.stops if (at := text.find(stop)) >= 0]
        if not found:
            return False
        at, stop = min(found, key=lambda each: each[0])
        piece.text = text[: at + len(stop) if self._rules.keeps_stop else at]
        piece.reason, piece.stop_reason = "stop", stop
        return True


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that is a beginning of a stop string."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _listener_of(heard: asyncio.Queue[StreamEvent]) -> Listener:
    """A listener that puts events into a queue of this event loop, from any thread."""
    loop, own = asyncio.get_running_loop(), get_ident()

    def listener(event: StreamEvent) -> None:
        if get_ident() == own:
            heard.put_nowait(event)
        elif not loop.is_closed():  # the server may have stopped before the cluster
            loop.call_soon_threadsafe(heard.put_nowait, event)

    return listener

"""Responses: the answers of one HTTP request, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from helixreal.serving.answers import Answer, NoAnswerError, Piece
from helixreal.serving.errors import error_of_answer
from helixreal.serving.formats import Form, Usage
from helixreal.serving.frontend import STOPPED
from helixreal.serving.requests import AnswerFields

logger = logging.getLogger(__name__)

_DISCONNECT_CHECK_S = 0.5
_Made = TypeVar("_Made")
_encode = msgspec.json.Encoder().encode


async def respond(
    request: Request, body: AnswerFields, form: Form, answers: Sequence[Answer], usage: Usage
) -> Response:
    """Submit the requests of all answers; respond when all are complete or, in a stream, begin.

    Raises
    ------
    ApiError
        If an answer is refused, or fails before the response has begun.
    ClientDisconnect
        If the client has left.
    """
    if body.stream:
        # A refused request gets an error status, so streams begin after their first piece.
        streams = [answer.pieces() for answer in answers]
        firsts = await _all_or_none(request, [_next(stream) for stream in streams])
        events = _Events(form, usage, body).of(streams, firsts)
        return StreamingResponse(events, media_type="text/event-stream")
    found = await _all_or_none(request, [_whole(answer) for answer in answers])
    return JSONResponse(form.whole(found) | {"usage": usage.as_dict()})


async def _whole(answer: Answer) -> Piece:
    whole = Piece("")
    async for pieces in answer.pieces():
        for piece in pieces:
            whole.add(piece)
    return whole


async def _next(stream: AsyncIterator[list[Piece]]) -> list[Piece]:
    return await anext(stream)


async def _all_or_none(request: Request, waits: list[Coroutine[Any, Any, _Made]]) -> list[_Made]:
    """All results; if one fails or the client disconnects, the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    going = set(tasks)
    try:
        while going:
            done, going = await asyncio.wait(
                going, timeout=_DISCONNECT_CHECK_S, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()
            if going and await request.is_disconnected():
                raise ClientDisconnect
        return [task.result() for task in tasks]
    except NoAnswerError as error:
        raise error_of_answer(error) from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Events:
    """The events of a stream."""

    def __init__(self, form: Form, usage: Usage, body: AnswerFields) -> None:
        self._form = form
        self._usage = usage
        self._ends_with_usage = body.wants_usage
        self._running_usage = body.wants_running_usage
        self._before_choice = _event(form.part([])).removesuffix(b"]}\n\n")
        self._index_and_pieces: asyncio.Queue[tuple[int, list[Piece] | NoAnswerError | None]] = (
            asyncio.Queue()
        )

    async def of(
        self, streams: Sequence[AsyncGenerator[list[Piece], None]], firsts: Sequence[list[Piece]]
    ) -> AsyncIterator[bytes]:
        """Server-sent events of all choices, in the order in which their pieces are made.

        Pieces that are there already leave in one write.
        """
        yield b"".join(
            self._delta(index, piece, is_first=not number)
            for index, pieces in enumerate(firsts)
            for number, piece in enumerate(pieces)
        )
        if len(streams) == 1:
            try:
                async with aclosing(streams[0]) as stream:
                    async for pieces in stream:
                        yield self._events(0, pieces)
            except NoAnswerError as error:
                yield self._events(0, error)
        else:
            async for events in self._of_several(streams):
                yield events
        if self._ends_with_usage:
            yield _event(self._form.part([]) | {"usage": self._usage.as_dict()})
        yield b"data: [DONE]\n\n"

    async def _of_several(
        self, streams: Sequence[AsyncIterator[list[Piece]]]
    ) -> AsyncIterator[bytes]:
        queue = self._index_and_pieces
        tasks = [asyncio.ensure_future(self._follow(*each)) for each in enumerate(streams)]
        try:
            going = len(tasks)
            while going:
                waiting = [await queue.get()]
                while not queue.empty():
                    waiting.append(queue.get_nowait())
                going -= sum(found is None for _, found in waiting)
                if events := b"".join(self._events(*each) for each in waiting):
                    yield events
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, index: int, stream: AsyncIterator[list[Piece]]) -> None:
        queue = self._index_and_pieces
        try:
            async for pieces in stream:
                queue.put_nowait((index, pieces))
        except NoAnswerError as error:
            queue.put_nowait((index, error))
        finally:
            queue.put_nowait((index, None))

    def _events(self, index: int, found: list[Piece] | NoAnswerError | None) -> bytes:
        if found is None:
            return b""
        if isinstance(found, NoAnswerError):
            if str(found) != STOPPED:
                logger.warning("request %s: failed in its stream: %s", self._form.request_id, found)
            return _event(error_of_answer(found).body())
        return b"".join([self._delta(index, piece, is_first=False) for piece in found])

    def _delta(self, index: int, piece: Piece, *, is_first: bool) -> bytes:
        delta = self._form.delta(index, piece, is_first=is_first)
        if self._running_usage:
            return _event(self._form.part([delta]) | {"usage": self._usage.as_dict()})
        # The same bytes as of the whole object, of which most do not change.
        return b"".join((self._before_choice, _encode(delta), b"]}\n\n"))


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + _encode(data) + b"\n\n"

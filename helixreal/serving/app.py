"""The HTTP application: routes, and responses in the format of OpenAI's API."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from helixreal.engines.engine import Sampling
from helixreal.serving.answers import Answer, NoAnswerError, Piece
from helixreal.serving.frontend import Frontend, GenerationRequest, Refused
from helixreal.serving.metrics import Metrics
from helixreal.serving.requests import AnswerFields, ChatRequest, CompletionRequest
from helixreal.serving.tokenizer import Tokenizer
from helixsim.errors import InputError

_MAX_BODY_BYTES = 16_000_000
_DEFAULT_TOKENS = 16
_DISCONNECT_CHECK_S = 0.5
_Body = TypeVar("_Body", bound=AnswerFields)
_Handler = Callable[[Request], Awaitable[Response]]


class ApiError(Exception):
    """An error response in the format of OpenAI's API."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, retry_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.retry_s = status, message, param, retry_s

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = kinds.get(self.status, usual)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return {"error": error}

    def response(self) -> Response:
        """The HTTP response."""
        headers = {}
        if self.retry_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_s)))
        return JSONResponse(self.body(), self.status, headers=headers)


def create_app(
    frontend: Frontend, tokenizer: Tokenizer | None = None, *, api_key: str | None = None
) -> Starlette:
    """Create the application.

    Parameters
    ----------
    frontend
        The cluster that answers.
    tokenizer
        Tokenizer of its model; without one, prompts and answers are token ids.
    api_key
        Key that clients must send as ``Authorization: Bearer ...``.
    """
    endpoint = _Endpoint(frontend, tokenizer, api_key)
    routes = [
        Route("/v1/completions", endpoint.guarded(endpoint.completions), methods=["POST"]),
        Route("/v1/chat/completions", endpoint.guarded(endpoint.chat), methods=["POST"]),
        Route("/v1/models", endpoint.guarded(endpoint.models), methods=["GET"]),
        Route("/health", endpoint.health, methods=["GET"]),
        Route("/metrics", endpoint.metrics, methods=["GET"]),
    ]
    return Starlette(routes=routes)


class _Endpoint:
    def __init__(
        self, frontend: Frontend, tokenizer: Tokenizer | None, api_key: str | None
    ) -> None:
        self._frontend = frontend
        self._tokenizer = tokenizer
        self._api_key = api_key
        self._metrics = Metrics(frontend)
        self._created = int(time.time())

    # -- routes --------------------------------------------------------------------------------

    def guarded(self, handler: _Handler) -> _Handler:
        """A handler that checks the key, and turns errors into responses."""

        async def handle(request: Request) -> Response:
            try:
                self._check_key(request)
                return await handler(request)
            except ApiError as error:
                return error.response()
            except ClientDisconnect:
                return Response(status_code=499)

        return handle

    def _check_key(self, request: Request) -> None:
        if self._api_key is None:
            return
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(), self._api_key.encode()):
            raise ApiError(401, "the API key is missing or wrong")

    async def health(self, _: Request) -> Response:
        """``GET /health``: 200 while a route covers all layers."""
        return Response(status_code=200 if self._frontend.is_ready else 503)

    async def metrics(self, _: Request) -> Response:
        """``GET /metrics``, for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, _: Request) -> Response:
        """``GET /v1/models``: the model of the cluster."""
        model = {
            "id": self._frontend.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "helixreal",
            "max_model_len": self._frontend.max_context_tokens,
        }
        return JSONResponse({"object": "list", "data": [model]})

    # -- answers -------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        body = await self._body(request, CompletionRequest)
        prompts = self._prompts(body)
        answers = [self._answer(body, prompt, body.max_tokens) for prompt in prompts]
        shown = [self._shown(prompt) if body.echo else "" for prompt in prompts]
        form = _CompletionForm(self._frontend.model_name, shown)
        num_tokens = sum(len(prompt) for prompt in prompts)
        return await self._respond(request, body, form, answers, num_tokens)

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        body = await self._body(request, ChatRequest)
        if self._tokenizer is None:
            raise ApiError(
                400, "the server has no tokenizer (--tokenizer); use /v1/completions with token ids"
            )
        try:
            prompt = self._tokenizer.chat(body.messages)
        except InputError as error:
            raise ApiError(400, str(error), param="messages") from error
        room = max(self._frontend.max_context_tokens - len(prompt), 1)
        most = body.max_completion_tokens or body.max_tokens or room
        answers = [self._answer(body, prompt, most) for _ in range(body.n)]
        form = _ChatForm(self._frontend.model_name)
        return await self._respond(request, body, form, answers, len(prompt))

    async def _body(self, request: Request, kind: type[_Body]) -> _Body:
        raw = b""
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > _MAX_BODY_BYTES:
                raise ApiError(413, f"the body has more than {_MAX_BODY_BYTES} bytes")
        try:
            body = kind.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            param = ".".join(map(str, first["loc"])) or None
            raise ApiError(400, f"{param or 'body'}: {first['msg']}", param=param) from error
        if body.model not in (None, self._frontend.model_name):
            raise ApiError(
                404,
                f"there is no model '{body.model}', only '{self._frontend.model_name}'",
                param="model",
            )
        return body

    def _prompts(self, body: CompletionRequest) -> list[list[int]]:
        """Token ids of the prompt of every answer: all prompts, each `n` times."""
        prompt: Any = body.prompt
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        several = [prompt] if is_one else prompt
        found: list[list[int]] = []
        for each in several:
            if isinstance(each, str):
                if self._tokenizer is None:
                    raise ApiError(
                        400,
                        "the server has no tokenizer (--tokenizer): prompts must be token ids",
                        param="prompt",
                    )
                each = self._tokenizer.encode(each)  # noqa: PLW2901
            if not each:
                raise ApiError(400, "a prompt needs at least one token", param="prompt")
            found += [each] * body.n
        return found

    def _shown(self, prompt: list[int]) -> str:
        if self._tokenizer is None:
            return " ".join(map(str, prompt)) + " "
        return self._tokenizer.decode(prompt)

    def _answer(self, body: AnswerFields, prompt: list[int], max_tokens: int | None) -> Answer:
        ends = frozenset(body.stop_token_ids)
        if self._tokenizer is not None and not body.ignore_eos:
            ends |= self._tokenizer.end_tokens
        generation = GenerationRequest(
            prompt=prompt,
            max_tokens=max_tokens or _DEFAULT_TOKENS,
            stop_tokens=ends,
            sampling=Sampling(temperature=body.temperature, top_p=body.top_p, seed=body.seed),
        )
        return Answer(self._frontend, generation, self._tokenizer, body.stops, self._metrics)

    async def _respond(
        self,
        request: Request,
        body: AnswerFields,
        form: _Form,
        answers: list[Answer],
        prompt_tokens: int,
    ) -> Response:
        usage = _Usage(prompt_tokens, answers)
        if body.stream:
            # A refused request gets an error status, so streams begin after their first piece.
            streams = [answer.pieces() for answer in answers]
            firsts = await _all_or_none(request, [_next(stream) for stream in streams])
            events = _events(form, streams, firsts, usage if body.wants_usage else None)
            return StreamingResponse(events, media_type="text/event-stream")
        found = await _all_or_none(request, [_whole(answer) for answer in answers])
        choices = [form.choice(index, piece) for index, piece in enumerate(found)]
        return JSONResponse(form.whole(choices) | {"usage": usage.as_dict()})


async def _whole(answer: Answer) -> Piece:
    text, tokens, reason = "", list[int](), None
    async for piece in answer.pieces():
        text += piece.text
        tokens += piece.tokens
        reason = piece.reason
    return Piece(text, tokens, reason)


async def _next(stream: AsyncIterator[Piece]) -> Piece:
    return await anext(stream)


async def _all_or_none(request: Request, waits: list[Coroutine[Any, Any, Piece]]) -> list[Piece]:
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
        raise _api_error(error) from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _api_error(error: NoAnswerError) -> ApiError:
    cause = error.cause
    if not isinstance(cause, Refused):
        return ApiError(503, cause.message)
    if cause.retry_after_s is None:
        return ApiError(400, cause.message)
    return ApiError(429, cause.message, retry_s=cause.retry_after_s)


class _Usage:
    def __init__(self, prompt_tokens: int, answers: list[Answer]) -> None:
        self._prompt_tokens = prompt_tokens
        self._answers = answers

    def as_dict(self) -> dict[str, int]:
        completion = sum(answer.num_tokens for answer in self._answers)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self._prompt_tokens + completion,
        }


class _Form(ABC):
    """The format of an answer: a completion or a chat completion."""

    kind = ""
    prefix = ""

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"{self.prefix}-{uuid4().hex}",
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


class _CompletionForm(_Form):
    kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, shown: list[str]) -> None:
        super().__init__(model)
        self._shown = shown

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return self.delta(index, piece, is_first=True)

    def delta(self, index: int, piece: Piece, *, is_first: bool) -> dict[str, Any]:
        return {
            "index": index,
            "text": (self._shown[index] if is_first else "") + piece.text,
            "token_ids": piece.tokens,
            "logprobs": None,
            "finish_reason": piece.reason,
        }


class _ChatForm(_Form):
    kind = "chat.completion"
    prefix = "chatcmpl"

    def part(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self.whole(choices) | {"object": "chat.completion.chunk"}

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": piece.text},
            "token_ids": piece.tokens,
            "logprobs": None,
            "finish_reason": piece.reason,
        }

    def delta(self, index: int, piece: Piece, *, is_first: bool) -> dict[str, Any]:
        role = {"role": "assistant"} if is_first else {}
        return {
            "index": index,
            "delta": role | {"content": piece.text},
            "token_ids": piece.tokens,
            "logprobs": None,
            "finish_reason": piece.reason,
        }


async def _events(
    form: _Form,
    streams: list[AsyncIterator[Piece]],
    firsts: list[Piece],
    usage: _Usage | None,
) -> AsyncIterator[str]:
    """Server-sent events of all choices, in the order in which their pieces are made."""
    pieces: asyncio.Queue[tuple[int, Piece | NoAnswerError | None]] = asyncio.Queue()

    async def follow(index: int, stream: AsyncIterator[Piece]) -> None:
        try:
            async for piece in stream:
                await pieces.put((index, piece))
        except NoAnswerError as error:
            await pieces.put((index, error))
        await pieces.put((index, None))

    tasks = [asyncio.ensure_future(follow(*each)) for each in enumerate(streams)]
    try:
        for index, piece in enumerate(firsts):
            yield _event(form.part([form.delta(index, piece, is_first=True)]))
        going = len(tasks)
        while going:
            index, found = await pieces.get()
            if found is None:
                going -= 1
            elif isinstance(found, NoAnswerError):
                yield _event(_api_error(found).body())
            else:
                yield _event(form.part([form.delta(index, found, is_first=False)]))
        if usage is not None:
            yield _event(form.part([]) | {"usage": usage.as_dict()})
        yield "data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"

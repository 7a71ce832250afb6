"""The HTTP application: its routes."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from helixreal.serving.errors import ApiError, http_error
from helixreal.serving.frontend import Frontend
from helixreal.serving.generation import GenerationRoutes
from helixreal.serving.information import InformationRoutes
from helixreal.serving.metrics import Metrics
from helixreal.serving.prompts import PromptReader
from helixreal.serving.request_ids import RequestIds
from helixreal.serving.tokenizer import Tokenizer

_Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    frontend: Frontend,
    tokenizer: Tokenizer | None = None,
    *,
    api_key: str | None = None,
    served_model_names: Sequence[str] = (),
    max_model_len: int | None = None,
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
    served_model_names
        Names of the model for clients; the first is in responses. Default: its name in the
        scenario.
    max_model_len
        Limit of the tokens of a prompt and its answer together, if it is to be lower than the
        cluster's.
    """
    names = tuple(served_model_names) or (frontend.model_name,)
    most = frontend.max_context_tokens
    prompts = PromptReader(
        frontend, tokenizer, most if max_model_len is None else min(most, max_model_len)
    )
    metrics = Metrics(frontend)
    answers = GenerationRoutes(frontend, prompts, metrics, names)
    information = InformationRoutes(frontend, prompts, metrics, names)

    def guarded(path: str, handler: _Handler, method: str) -> Route:
        return Route(path, _guarded(handler, api_key), methods=[method])

    routes = [
        guarded("/v1/completions", answers.completions, "POST"),
        guarded("/v1/chat/completions", answers.chat, "POST"),
        guarded("/v1/models", information.models, "GET"),
        guarded("/v1/models/{name:path}", information.model, "GET"),
        guarded("/tokenize", information.tokenize, "POST"),
        guarded("/detokenize", information.detokenize, "POST"),
        Route("/health", information.health, methods=["GET"]),
        Route("/ping", information.health, methods=["GET", "POST"]),
        Route("/version", information.version, methods=["GET"]),
        Route("/metrics", information.metrics, methods=["GET"]),
        Route("/openapi.json", information.openapi, methods=["GET"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(RequestIds)],
        exception_handlers={HTTPException: http_error, Exception: _internal_error},
    )


def _guarded(handler: _Handler, api_key: str | None) -> _Handler:
    """A handler that checks the key, and turns errors into responses."""

    async def handle(request: Request) -> Response:
        try:
            if api_key is not None:
                _check_key(request, api_key)
            return await handler(request)
        except ApiError as error:
            return error.response()
        except ClientDisconnect:
            return Response(status_code=499)

    return handle


def _check_key(request: Request, api_key: str) -> None:
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    is_right = hmac.compare_digest(sent.strip().encode(), api_key.encode())
    if scheme.lower() != "bearer" or not is_right:
        raise ApiError(401, "the API key is missing or wrong; send 'Authorization: Bearer KEY'")


async def _internal_error(request: Request, error: Exception) -> Response:
    """The response to an error of the server itself, which is logged with its traceback."""
    return ApiError(500, f"internal error: {type(error).__name__}").response()

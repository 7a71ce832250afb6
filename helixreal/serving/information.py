"""The routes about the server and its model, and the routes of its tokenizer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from helixreal.serving.bodies import check_model, read_body
from helixreal.serving.frontend import Frontend
from helixreal.serving.metrics import Metrics
from helixreal.serving.openapi import document, release
from helixreal.serving.prompts import PromptReader
from helixreal.serving.requests import DetokenizeRequest, TokenizeRequest


class InformationRoutes:
    """Handlers of the routes that generate nothing.

    Parameters
    ----------
    frontend
        The cluster.
    prompts
        Reads prompts.
    metrics
        Metrics of the endpoint.
    model_names
        Names of the model.
    """

    def __init__(
        self,
        frontend: Frontend,
        prompts: PromptReader,
        metrics: Metrics,
        model_names: Sequence[str],
    ) -> None:
        self._frontend = frontend
        self._prompts = prompts
        self._metrics = metrics
        self._model_names = model_names
        self._created = int(time.time())

    async def health(self, _: Request) -> Response:
        """``GET /health`` and ``/ping``: 200 while a route covers all layers."""
        return Response(status_code=200 if self._frontend.is_ready else 503)

    async def version(self, _: Request) -> Response:
        """``GET /version``."""
        return JSONResponse({"version": release()})

    async def metrics(self, _: Request) -> Response:
        """``GET /metrics``, for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def openapi(self, _: Request) -> Response:
        """``GET /openapi.json``."""
        return JSONResponse(self._document)

    @cached_property
    def _document(self) -> Mapping[str, Any]:
        return document()

    async def models(self, _: Request) -> Response:
        """``GET /v1/models``: the names of the model."""
        data = [self._model(name) for name in self._model_names]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/{name}``."""
        name = request.path_params["name"]
        check_model(name, self._model_names)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "helixreal",
            "root": self._frontend.model_name,
            "max_model_len": self._prompts.max_context_tokens,
        }

    # -- tokenizer -----------------------------------------------------------------------------

    async def tokenize(self, request: Request) -> Response:
        """``POST /tokenize``: the token ids of a text or a conversation."""
        body = await read_body(request, TokenizeRequest, self._model_names)
        if body.prompt is None:
            tokens = await self._prompts.conversation(body)
        else:
            plain = body.add_special_tokens is False
            tokens = await self._prompts.encode(body.prompt, plain=plain)
        tokenizer = self._prompts.tokenizer
        return JSONResponse(
            {
                "count": len(tokens),
                "max_model_len": self._prompts.max_context_tokens,
                "tokens": tokens,
                "token_strs": [tokenizer.name(token) for token in tokens]
                if body.return_token_strs
                else None,
            }
        )

    async def detokenize(self, request: Request) -> Response:
        """``POST /detokenize``: the text of token ids."""
        body = await read_body(request, DetokenizeRequest, self._model_names)
        return JSONResponse({"prompt": self._prompts.tokenizer.decode(body.tokens)})

"""``/openapi.json``: the description of the endpoint, from the models of its request bodies."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from helixreal.serving.known_fields import HARMLESS, ONLY_DEFAULT
from helixreal.serving.requests import (
    AnswerFields,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

_BODIES: Mapping[str, tuple[str, type[BaseModel]]] = {
    "/v1/completions": ("Complete prompts", CompletionRequest),
    "/v1/chat/completions": ("Answer a conversation", ChatRequest),
    "/tokenize": ("Token ids of a text or a conversation", TokenizeRequest),
    "/detokenize": ("The text of token ids", DetokenizeRequest),
}
_READS = {
    "/v1/models": "The names of the model",
    "/health": "Whether a route covers all layers",
    "/ping": "Whether a route covers all layers",
    "/version": "The version of the server",
    "/metrics": "Metrics for Prometheus",
    "/openapi.json": "This document",
}
_POST_STATUSES = {
    "400": "The request is invalid or not supported",
    "401": "The API key is missing or wrong",
    "404": "There is no such model",
    "413": "The body is too long",
    "429": "There is no room now; see Retry-After",
    "503": "No route is left, or a node was lost; see Retry-After",
}
_REFERENCES = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
            },
        }
    },
}


def release() -> str:
    """The version of the package; 0 if it is not installed."""
    try:
        return version("helixsim")
    except PackageNotFoundError:
        return "0"


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    names, definitions = models_json_schema(
        [(model, "validation") for _, model in _BODIES.values()], ref_template=_REFERENCES
    )
    schemas = {**definitions.get("$defs", {}), "Error": _ERROR}
    for _, model in _BODIES.values():
        _close(schemas[model.__name__])
    paths: dict[str, Any] = {
        path: {
            "post": _post(
                summary, names[model, "validation"], may_stream=issubclass(model, AnswerFields)
            )
        }
        for path, (summary, model) in _BODIES.items()
    }
    for path, summary in _READS.items():
        paths[path] = {"get": _get(summary, may_be_unavailable=path in ("/health", "/ping"))}
    paths["/v1/models/{name}"] = {
        "get": _get("One model")
        | {
            "parameters": [
                {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        }
    }
    paths["/v1/models/{name}"]["get"]["responses"]["404"] = _error("There is no such model")
    return {
        "openapi": "3.1.0",
        "info": {"title": "helixreal", "version": release()},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _close(schema: dict[str, Any]) -> None:
    """Add the fields that may have their default only, and that there are no others."""
    known: dict[str, Any] = {name: {} for name in HARMLESS} | {
        name: {"enum": [None, *defaults]} for name, defaults in ONLY_DEFAULT.items()
    }
    schema["properties"] = known | schema["properties"]
    schema["additionalProperties"] = False


def _post(summary: str, schema: Mapping[str, Any], *, may_stream: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if may_stream:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    answer = {"description": "The answer", "content": content}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": answer}
        | {status: _error(text) for status, text in _POST_STATUSES.items()},
    }


def _get(summary: str, *, may_be_unavailable: bool = False) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": summary}}
    if may_be_unavailable:
        responses["503"] = {"description": "No route covers all layers"}
    return {"summary": summary, "responses": responses}


def _error(description: str) -> dict[str, Any]:
    reference = {"$ref": _REFERENCES.format(model="Error")}
    return {
        "description": description,
        "content": {"application/json": {"schema": reference}},
    }

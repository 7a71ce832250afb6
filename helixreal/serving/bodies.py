"""Reads request bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from helixreal.serving.errors import ApiError, error_of_body
from helixreal.serving.known_fields import check_others
from helixreal.serving.requests import Body

MAX_BODY_BYTES = 16_000_000

_Body = TypeVar("_Body", bound=Body)


async def read_body(request: Request, kind: type[_Body], model_names: Sequence[str]) -> _Body:
    """Read and check the body of a request.

    Raises
    ------
    ApiError
        If it is too long, is not valid, or names another model.
    """
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body has more than {MAX_BODY_BYTES} bytes")
    return parse_body(bytes(raw), kind, model_names)


def parse_body(raw: bytes, kind: type[_Body], model_names: Sequence[str]) -> _Body:
    """Parse and check a body.

    Raises
    ------
    ApiError
        If it is not valid, or names another model.
    """
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise error_of_body(error) from error
    check_others(body.others)
    check_model(body.model, model_names)
    return body


def check_model(name: str | None, model_names: Sequence[str]) -> None:
    """Check that a model is served here, if one is named.

    Raises
    ------
    ApiError
        If it is not.
    """
    if name is not None and name not in model_names:
        known = ", ".join(f"'{each}'" for each in model_names)
        raise ApiError(404, f"there is no model '{name}', only {known}", param="model")

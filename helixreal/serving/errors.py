"""Errors of the endpoint, in the format of OpenAI's API."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from helixreal.serving.answers import NoAnswerError
from helixreal.serving.frontend import Refused

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_RETRY_LOST_S = 1.0


class ApiError(Exception):
    """An error response in the format of OpenAI's API.

    Parameters
    ----------
    status
        HTTP status.
    param
        The field of the request that is wrong.
    retry_s
        Seconds after which the client may try again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, retry_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.retry_s = status, message, param, retry_s

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _TYPES.get(self.status, usual)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return {"error": error}

    def response(self) -> Response:
        """The HTTP response."""
        headers = {}
        if self.retry_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_s)))
        return JSONResponse(self.body(), self.status, headers=headers)


def error_of_answer(error: NoAnswerError) -> ApiError:
    """The response to a request that the cluster has refused or could not complete."""
    cause = error.cause
    if not isinstance(cause, Refused):
        return ApiError(503, cause.message, retry_s=_RETRY_LOST_S)
    if cause.retry_after_s is None:
        return ApiError(400, cause.message)
    status = 503 if cause.is_unavailable else 429
    return ApiError(status, cause.message, retry_s=cause.retry_after_s)


def error_of_body(error: ValidationError) -> ApiError:
    """The response to a body that is not valid; it names the first wrong field."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = _field(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param or 'the body'}: {message}", param=param)


def _field(location: tuple[int | str, ...]) -> str | None:
    """The name of a field, such as ``messages.0.content``."""
    # Members of a union, such as 'list[int]', are no fields.
    parts = [str(part) for part in location if str(part).replace("_", "").isalnum()]
    return ".".join(parts) or None


async def http_error(request: Request, error: Exception) -> Response:
    """The response where no route or no method fits."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return ApiError(404, f"there is no {path}").response()
    if error.status_code == 405:
        response = ApiError(405, f"{path} does not take {request.method}").response()
        response.headers.update(error.headers or {})
        return response
    return ApiError(error.status_code, str(error.detail)).response()

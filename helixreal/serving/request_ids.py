"""Request identifiers: taken from ``X-Request-Id`` or made, in responses and in the log."""

from __future__ import annotations

import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_HEADER = "X-Request-Id"
_VALID = re.compile(r"[\x21-\x7e]{1,128}")
_KEY = "helixreal.request_id"


def request_id_of(request: Request) -> str:
    """The identifier of a request."""
    return str(request.scope[_KEY])


class RequestIds:
    """Gives each HTTP request an identifier, and logs its status.

    Parameters
    ----------
    app
        The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(_HEADER, "")
        request_id = scope[_KEY] = sent if _VALID.fullmatch(sent) else uuid4().hex
        began_s = time.monotonic()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = request_id
                logger.log(
                    logging.WARNING if message["status"] >= 500 else logging.INFO,
                    "request %s: %s %s: status %d after %.3f s",
                    request_id,
                    scope["method"],
                    scope["path"],
                    message["status"],
                    time.monotonic() - began_s,
                )
            await send(message)

        await self._app(scope, receive, send_with_id)

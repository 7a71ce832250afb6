"""Runs the HTTP application until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from threading import Event, Thread
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.config import HTTPProtocolType

from helixreal.serving.connections import (
    Acceptor,
    Limits,
    TimedProtocol,
    default_max_connections,
    protocol_class,
)
from helixsim.errors import InputError

BACKLOG = 1024
_LEAVE_S = 3
_TICKS_PER_CHECK = 10


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, which does not listen yet; port 0 takes a free port.

    Raises
    ------
    InputError
        If the address cannot be bound.
    """
    try:
        found = socket.getaddrinfo(
            host,
            port,
            socket.AF_INET6 if ":" in host else socket.AF_INET,
            socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
        family, kind, proto, _, address = found[0]
        bound = socket.socket(family, kind, proto)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _cannot_listen(host, port, error) from error
    return bound


def _cannot_listen(host: str, port: int, error: OSError) -> InputError:
    return InputError(f"cannot listen at {host}:{port}: {error.strerror or error}", where="--port")


def url_of(bound: socket.socket, host: str) -> str:
    """The URL of a bound socket, such as ``http://127.0.0.1:8000``."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{bound.getsockname()[1]}"


def run_server(
    app: Starlette,
    host: str,
    port: int,
    *,
    ready: Callable[[str], None] | None = None,
    until: Event | None = None,
    limits: Limits | None = None,
) -> None:
    """Run the application until Ctrl-C or SIGTERM, or until an event is set.

    Parameters
    ----------
    port
        Port; 0 takes a free port.
    ready
        Called with the URL, such as ``http://127.0.0.1:8000``.
    until
        Event that ends the server.
    limits
        What clients may take up.

    Raises
    ------
    InputError
        If the address cannot be bound.
    """
    with bind(host, port) as bound:
        server = HttpServer(app, limits)
        if until is not None:
            Thread(target=_end_with, args=(server, until), daemon=True).start()
        bound.listen(BACKLOG)
        if ready is not None:
            ready(url_of(bound, host))
        server.run(sockets=[bound])


def _end_with(server: uvicorn.Server, until: Event) -> None:
    until.wait()
    server.should_exit = True


class HttpServer(uvicorn.Server):
    """Serves the application at a listening socket, which other processes may share.

    Parameters
    ----------
    app
        The application.
    limits
        What clients may take up.
    on_started
        Called when connections are accepted.
    catches_signals
        Whether Ctrl-C and SIGTERM end it; else, the caller sets `should_exit`.
    """

    def __init__(
        self,
        app: Starlette,
        limits: Limits | None = None,
        *,
        on_started: Callable[[], None] = lambda: None,
        catches_signals: bool = True,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_http_protocol(),
                ws="none",
                lifespan="off",
                access_log=False,
                log_level="warning",
                timeout_graceful_shutdown=_LEAVE_S,
            )
        )
        self._limits = limits or Limits(default_max_connections())
        self._on_started = on_started
        self._catches_signals = catches_signals
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections at the sockets."""
        await super().startup(sockets=[])
        state, config = self.server_state, self.config

        def make_protocol() -> asyncio.Protocol:
            made: Any = config.http_protocol_class
            protocol: asyncio.Protocol = made(
                config=config, server_state=state, app_state=self.lifespan.state
            )
            return protocol

        acceptors: list[Any] = []
        for listening in sockets or []:
            listening.setblocking(False)
            acceptors.append(
                Acceptor(listening, make_protocol, state.connections, self._limits.max_connections)
            )
        self.servers = acceptors
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        """Close connections whose client says nothing; whether to end."""
        if counter % _TICKS_PER_CHECK == 0:
            now_s = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, TimedProtocol) and connection.is_overdue(
                    now_s, self._limits
                ):
                    connection.transport.close()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end the server; they are not raised again when it has ended."""
        if not self._catches_signals or threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            self.handle_exit(number, frame)

        before = {each: signal.signal(each, end) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def _http_protocol() -> type[asyncio.Protocol] | HTTPProtocolType:
    return protocol_class()


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Leave tracebacks of tasks out that the server itself has cancelled at its end."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, asyncio.CancelledError)

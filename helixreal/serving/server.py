"""Runs the HTTP application until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Callable
from threading import Event, Thread

import uvicorn
from starlette.applications import Starlette

from helixsim.errors import InputError


def run_server(
    app: Starlette,
    host: str,
    port: int,
    *,
    ready: Callable[[str], None] | None = None,
    until: Event | None = None,
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

    Raises
    ------
    InputError
        If the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise InputError(
                f"cannot listen at {host}:{port}: {error.strerror or error}", where="--port"
            ) from error
        listening.listen(1024)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        )
        if until is not None:
            Thread(target=_end_with, args=(server, until), daemon=True).start()
        if ready is not None:
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{listening.getsockname()[1]}")
        server.run(sockets=[listening])


def _end_with(server: uvicorn.Server, until: Event) -> None:
    until.wait()
    server.should_exit = True

"""The process of a front end: HTTP on one side, the coordinator on the other."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette

from helixreal.frontends.garbage import collect_rarely
from helixreal.frontends.remote import RemoteFrontend
from helixreal.net.transport import Keys
from helixreal.serving.app import create_app
from helixreal.serving.connections import Limits, default_max_connections
from helixreal.serving.frontend import STOPPED
from helixreal.serving.server import BACKLOG, HttpServer
from helixreal.serving.tokenizer import Tokenizer

API_KEY = "HELIXREAL_API_KEY"
"""Environment variable with the key that clients must send."""
_LEAVE_S = 2.0
"""Requests may go on for this time when the front end is to end; then they fail. The server cuts
off what has not ended 1 s later."""


class FrontEndSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a front end.

    Attributes
    ----------
    name
        Its name, and that of its keys.
    coordinator
        Address of the coordinator's door.
    keys
        Folder of keys; None without keys.
    tokenizer
        Folder of the tokenizer; None without one.
    chat_template
        File of a chat template to use instead of the tokenizer's; None for the tokenizer's.
    served_model_names
        Names of the model for clients; that of the scenario's LLM if empty.
    max_connections
        Limit of open connections; None for what the limit of open files allows.
    """

    name: str
    coordinator: str
    keys: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    served_model_names: tuple[str, ...] = ()
    max_connections: int | None = None


def run_front_end(
    settings: FrontEndSettings,
    bound: socket.socket,
    *,
    on_listening: Callable[[RemoteFrontend], None] = lambda frontend: None,
    ends_with: int | None = None,
) -> None:
    """Serve HTTP at a bound socket until Ctrl-C or SIGTERM.

    Parameters
    ----------
    on_listening
        Called when connections are accepted, which they are when the coordinator has answered.
    ends_with
        A file: at its end, or when the coordinator says goodbye, the front end ends too.

    Raises
    ------
    InputError
        If the tokenizer or the keys cannot be read.
    """
    tokenizer = None
    if settings.tokenizer is not None:
        template = settings.chat_template
        tokenizer = Tokenizer(
            Path(settings.tokenizer), chat_template=None if template is None else Path(template)
        )
    keys = None if settings.keys is None else Keys(Path(settings.keys), settings.name)
    made = _FrontEnd(settings, tokenizer, keys, bound, on_listening, ends_with)
    _run_in_loop(made.run())


def _run_in_loop(main: Coroutine[Any, Any, None]) -> None:
    with suppress(ModuleNotFoundError):  # uvloop is optional
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
        return
    asyncio.run(main)


class _FrontEnd:
    def __init__(
        self,
        settings: FrontEndSettings,
        tokenizer: Tokenizer | None,
        keys: Keys | None,
        bound: socket.socket,
        on_listening: Callable[[RemoteFrontend], None],
        ends_with: int | None,
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._bound = bound
        self._on_listening = on_listening
        self._ends_with = ends_with
        self._frontend = RemoteFrontend(settings.coordinator, settings.name, keys)
        self._server: HttpServer | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Connect to the coordinator, then serve until the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        if self._ends_with is not None:
            loop.add_reader(self._ends_with, self._parent_wrote)
            self._frontend.on_goodbye = self._stop
        connecting = loop.create_task(self._frontend.connect())
        stopping = loop.create_task(self._stopping.wait())
        try:
            await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stopping.is_set():
                await self._serve()
        finally:
            connecting.cancel()
            stopping.cancel()
            self._frontend.close()

    async def _serve(self) -> None:
        limit = self._settings.max_connections or default_max_connections()
        self._server = HttpServer(
            self._app(), Limits(limit), on_started=self._announce, catches_signals=False
        )
        collect_rarely()
        self._bound.listen(BACKLOG)
        await self._server.serve(sockets=[self._bound])

    def _app(self) -> Starlette:
        return create_app(
            self._frontend,
            self._tokenizer,
            api_key=os.environ.get(API_KEY),
            served_model_names=self._settings.served_model_names,
        )

    def _announce(self) -> None:
        self._frontend.announce()
        self._on_listening(self._frontend)

    def _stop(self) -> None:
        if not self._stopping.is_set():
            loop = asyncio.get_running_loop()
            loop.call_later(_LEAVE_S, self._frontend.give_up, "the front end has been stopped")
        self._stopping.set()
        if self._server is not None:
            self._server.should_exit = True

    def _parent_wrote(self) -> None:
        assert self._ends_with is not None
        if not os.read(self._ends_with, 4096):
            asyncio.get_running_loop().remove_reader(self._ends_with)
            self._frontend.give_up(STOPPED)
            self._stop()


def main() -> None:
    """Run a front end that its parent has started: settings in the first line of standard input.

    The arguments are the number of the inherited socket. The end of standard input, when the parent
    has gone, ends the front end.
    """
    line = b""
    while not line.endswith(b"\n"):
        if not (part := os.read(0, 1)):
            return
        line += part
    settings = msgspec.json.decode(line, type=FrontEndSettings)
    logging.basicConfig(format=f"{settings.name}: %(message)s", level=logging.WARNING)
    with socket.socket(fileno=int(sys.argv[1])) as bound:
        run_front_end(settings, bound, ends_with=0)


if __name__ == "__main__":
    main()

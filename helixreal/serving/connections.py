"""Accepts connections, and closes them if their client says nothing.

The limit of open files is never reached: at a limit of connections, and where the system has no
files left, new connections wait in the system's queue.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    _Base = H11Protocol
else:
    _Base = object

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ModuleNotFoundError:  # httptools is optional
    HttpToolsProtocol = None  # type: ignore[assignment,misc]

logger = logging.getLogger(__name__)

_PAUSE_S = 0.2
_TELL_EVERY_S = 10.0
_NO_FILES_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RESERVED_FILES = 64
_MOST_CONNECTIONS = 10_000
_MAX_HEAD_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take up.

    Attributes
    ----------
    max_connections
        Limit of open connections; further ones wait until one is closed.
    head_s
        Time in which the head of a request must have arrived, from the connection or from the
        request's first byte.
    body_s
        The longest pause of a client that sends the body of a request.
    """

    max_connections: int
    head_s: float = 10.0
    body_s: float = 10.0


def default_max_connections() -> int:
    """The most connections that this process can have open beside its other files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(min(files - _RESERVED_FILES, _MOST_CONNECTIONS), 1)


class Acceptor:
    """Accepts connections at a listening socket, one in each turn of the event loop.

    Several processes may share the socket: one connection at a time, they share the connections
    too.

    Parameters
    ----------
    listening
        The socket; it must not block.
    make_protocol
        Makes the protocol of a connection.
    connections
        The open connections.
    limit
        The most open connections.
    """

    def __init__(
        self,
        listening: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: Sized,
        limit: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._make_protocol = make_protocol
        self._connections = connections
        self._limit = limit
        self._starting: set[asyncio.Task[Any]] = set()
        self._resuming: asyncio.TimerHandle | None = None
        self._told_s = -_TELL_EVERY_S
        self._is_closed = False
        self._resume()

    def _resume(self) -> None:
        self._resuming = None
        self._loop.add_reader(self._listening, self._accept)

    def _pause(self, why: str) -> None:
        self._loop.remove_reader(self._listening)
        self._resuming = self._loop.call_later(_PAUSE_S, self._resume)
        now_s = time.monotonic()
        if now_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = now_s
            logger.warning("%s: new connections wait", why)

    def _accept(self) -> None:
        count = len(self._connections) + len(self._starting)
        if count >= self._limit:
            self._pause(f"{count} connections are open, as many as allowed")
            return
        try:
            accepted, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in _NO_FILES_LEFT:
                raise
            self._pause(f"{error.strerror} with {count} connections")
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._start(accepted))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, accepted)
        except OSError as error:  # the client has gone
            logger.debug("a connection has ended at once: %s", error)
            accepted.close()

    def close(self) -> None:
        """Accept no further connections."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._resuming is not None:
            self._resuming.cancel()
        else:
            self._loop.remove_reader(self._listening)

    async def wait_closed(self) -> None:
        """Wait for connections that are being set up."""
        await asyncio.gather(*self._starting, return_exceptions=True)


class TimedProtocol(_Base):
    """Knows since when it waits for its client; base of a protocol of uvicorn.

    It closes the connection if the head of a request is larger than 64 KiB.

    Attributes
    ----------
    head_since_s, body_since_s
        Since when the rest of a head, or the next part of a body, is awaited; None otherwise.
    """

    head_since_s: float | None = None
    body_since_s: float | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.head_since_s = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        super().data_received(data)
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            if self.head_since_s is None:
                self.head_since_s = self.loop.time()
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.transport.close()
        else:
            self.head_since_s, self._head_bytes = None, 0
            self.body_since_s = self.loop.time() if cycle.more_body else None

    def is_overdue(self, now_s: float, limits: Limits) -> bool:
        """Whether the client has taken longer than the limits allow."""
        head, body = self.head_since_s, self.body_since_s
        if head is not None and now_s - head > limits.head_s:
            return True
        is_waiting = body is not None and not self.flow.read_paused
        return is_waiting and now_s - body > limits.body_s  # type: ignore[operator]


class TimedH11Protocol(TimedProtocol, H11Protocol):
    """HTTP by h11."""


def protocol_class() -> type[asyncio.Protocol]:
    """The protocol of connections: by httptools, if it is installed, else by h11."""
    if HttpToolsProtocol is None:
        return TimedH11Protocol
    return type("TimedHttpToolsProtocol", (TimedProtocol, HttpToolsProtocol), {})

"""The coordinator's side of front ends: takes their requests, and sends them events in batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zmq
from zmq.auth.thread import ThreadAuthenticator

from helixreal.coordinator.intake import Intake
from helixreal.frontends import wire
from helixreal.net.encoding import WireError
from helixreal.net.messages import Frame
from helixreal.net.sockets import admit_keys_of, bind_tcp, check_open_to_others
from helixreal.net.transport import Keys
from helixreal.serving.frontend import STOPPED, Failed, StreamEvent, Token

logger = logging.getLogger(__name__)

_REPORT_INTERVAL_S = 0.25
_SILENCE_S = 10.0
_PAUSE_S = 1.0
"""If reports are later than this, this process was paused, and what front ends say may wait."""
_MESSAGES_AT_ONCE = 500
_HIGH_WATER = 10_000
_FAREWELL_S = 1.0
_FAREWELL_POLL_MS = 20


@dataclass(slots=True)
class _Visitor:
    """A front end that has said hello, and the events that wait to be sent to it."""

    socket: zmq.Socket[bytes]
    identity: bytes
    name: str
    instance: str
    heard_s: float
    requests: dict[int, int] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    others: list[wire.Other] = field(default_factory=list)

    def add(self, number: int, event: StreamEvent) -> None:
        """Keep an event, other than a bare token, to be sent."""
        self.others.append(wire.other_of(len(self.numbers), number, event))

    def take_events(self) -> wire.Events:
        """The events to be sent, which are not kept any more."""
        events = wire.Events(self.numbers, self.tokens, self.others)
        self.numbers, self.tokens, self.others = [], [], []
        return events


class _Outlet:
    """Listens to one request, for a front end."""

    __slots__ = ("has_ended", "number", "visitor")

    def __init__(self, visitor: _Visitor, number: int) -> None:
        self.visitor = visitor
        self.number = number
        self.has_ended = False

    def __call__(self, event: StreamEvent) -> None:
        visitor = self.visitor
        if isinstance(event, Token):
            if wire.is_bare(event):
                visitor.numbers.append(self.number)
                visitor.tokens.append(event.token)
            else:
                visitor.add(self.number, event)
            return
        visitor.add(self.number, event)
        self.has_ended = True
        visitor.requests.pop(self.number, None)


class Door:
    """The sockets to which front ends connect; used from the thread of the cluster's loop.

    Call :meth:`turn` after each turn of the loop.

    Parameters
    ----------
    intake
        The cluster.
    watch
        Makes the loop call a function whenever a socket is readable.
    silence_s
        A front end that says nothing for so long is given up, and its requests are cancelled.

    Attributes
    ----------
    on_listening
        Called with the name of a front end that accepts connections.
    on_silent
        Called with the name of a front end of this machine that was given up.
    num_refused
        Number of received messages that were refused.
    """

    def __init__(
        self,
        intake: Intake,
        watch: Callable[[zmq.Socket[bytes], Callable[[], None]], None],
        *,
        silence_s: float = _SILENCE_S,
    ) -> None:
        self._intake = intake
        self._watch = watch
        self._silence_s = silence_s
        self.on_listening: Callable[[str], None] = lambda name: None
        self.on_silent: Callable[[str], None] = lambda name: None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._sockets: list[zmq.Socket[bytes]] = []
        self._local: zmq.Socket[bytes] | None = None
        self._visitors: dict[tuple[zmq.Socket[bytes], bytes], _Visitor] = {}
        self._next_report_s = 0.0
        self.num_refused = 0

    def open_local(self, address: str) -> None:
        """Accept front ends of this machine at an ``ipc://`` address, in a private folder."""
        self._local = self._new_socket()
        self._local.bind(address)

    def open(self, bind: str, keys: Keys | None, *, insecure: bool) -> str:
        """Accept front ends at ``tcp://host:port``; the address with the port that it got.

        Raises
        ------
        InputError
            If the address cannot be bound, or can be reached by other machines without keys.
        """
        check_open_to_others(bind, has_keys=keys is not None, insecure=insecure)
        socket = self._new_socket()
        if keys is not None:
            self._authenticator = admit_keys_of(self._context, socket, keys.own(), keys.public)
        return bind_tcp(socket, bind)

    def _new_socket(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
        self._sockets.append(socket)
        self._watch(socket, lambda: self._receive(socket))
        return socket

    # -- what front ends say ---------------------------------------------------------------------

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                identity, *frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = wire.decode_from_frontend(frames[0] if frames else b"")
                self._handle(socket, identity, message, frames[1:])
            except WireError as error:
                self._refuse(str(error))

    def _handle(
        self,
        socket: zmq.Socket[bytes],
        identity: bytes,
        message: wire.FromFrontend,
        frames: list[bytes],
    ) -> None:
        if isinstance(message, wire.Hello):
            self._welcome(socket, identity, message)
            return
        visitor = self._visitors.get((socket, identity))
        if visitor is None:
            self._send_to(socket, identity, wire.Reset())
            return
        visitor.heard_s = time.monotonic()
        match message:
            case wire.Submit():
                self._submit(visitor, message, frames)
            case wire.Cancel(numbers):
                for number in numbers:
                    if (index := visitor.requests.pop(number, None)) is not None:
                        self._intake.cancel(index)
            case wire.Listening():
                self.on_listening(visitor.name)
            case wire.Leave():
                self._part_from(visitor)

    def _welcome(self, socket: zmq.Socket[bytes], identity: bytes, hello: wire.Hello) -> None:
        for earlier in list(self._visitors.values()):
            if earlier.instance == hello.instance:
                self._part_from(earlier)
        now_s = time.monotonic()
        visitor = _Visitor(socket, identity, hello.name, hello.instance, now_s)
        self._visitors[socket, identity] = visitor
        intake = self._intake
        self._send(
            visitor,
            wire.Welcome(intake.model_name, intake.max_context_tokens, intake.vocabulary),
        )
        self._report(visitor)

    def _submit(self, visitor: _Visitor, message: wire.Submit, frames: Sequence[Frame]) -> None:
        number = message.number
        if number in visitor.requests:
            raise WireError(f"a second request of number {number}")
        try:
            generation = wire.request_of(message, frames)
        except WireError as error:
            visitor.add(number, Failed(f"the coordinator cannot read the request: {error}"))
            raise
        outlet = _Outlet(visitor, number)
        index = self._intake.take(generation, outlet)
        if not outlet.has_ended:
            visitor.requests[number] = index

    def _refuse(self, why: str) -> None:
        self.num_refused += 1
        if self.num_refused <= 10 or self.num_refused % 1000 == 0:
            logger.warning(
                "refused a message of a front end (number %d): %s", self.num_refused, why
            )

    # -- what they are told ----------------------------------------------------------------------

    def turn(self) -> None:
        """Send all events since the last call, each front end's in one message; reports, if due."""
        for visitor in list(self._visitors.values()):
            if visitor.numbers or visitor.others:
                self._send(visitor, visitor.take_events())
        now_s = time.monotonic()
        if now_s < self._next_report_s:
            return
        was_paused = now_s - self._next_report_s > _PAUSE_S
        self._next_report_s = now_s + _REPORT_INTERVAL_S
        for visitor in list(self._visitors.values()):
            if now_s - visitor.heard_s > self._silence_s and not was_paused:
                self._give_up(visitor, now_s)
            else:
                self._report(visitor)

    def _give_up(self, visitor: _Visitor, now_s: float) -> None:
        logger.warning(
            "%s has been silent for %.0f s: its requests are cancelled",
            visitor.name,
            now_s - visitor.heard_s,
        )
        self._part_from(visitor)
        if visitor.socket is self._local:
            self.on_silent(visitor.name)

    def left(self, name: str) -> None:
        """The process of a front end has ended: its requests are cancelled."""
        for visitor in list(self._visitors.values()):
            if visitor.name == name:
                self._part_from(visitor)

    def _report(self, visitor: _Visitor) -> None:
        self._send(visitor, wire.LoadReport(self._intake.load(), self._intake.is_ready))

    def _send(self, visitor: _Visitor, message: wire.ToFrontend) -> None:
        if not self._send_to(visitor.socket, visitor.identity, message):
            logger.warning("%s cannot be reached: its requests are cancelled", visitor.name)
            self._part_from(visitor)

    def _send_to(
        self, socket: zmq.Socket[bytes], identity: bytes, message: wire.ToFrontend
    ) -> bool:
        try:
            socket.send_multipart([identity, wire.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:  # it has gone, or reads nothing
            return False
        return True

    def _part_from(self, visitor: _Visitor) -> None:
        if self._visitors.pop((visitor.socket, visitor.identity), None) is None:
            return
        requests = list(visitor.requests.values())
        visitor.requests.clear()
        for index in requests:
            self._intake.cancel(index)

    def close(self, reason: str = STOPPED) -> None:
        """Let all requests fail, say goodbye to the front ends, and close the sockets."""
        self._intake.fail_all(reason)
        for visitor in list(self._visitors.values()):
            self._send(visitor, visitor.take_events())
            self._send_to(visitor.socket, visitor.identity, wire.Goodbye())
        # What a front end has not read when a connection ends is lost: wait for their answers.
        until_s = time.monotonic() + _FAREWELL_S
        while self._visitors and time.monotonic() < until_s:
            for socket in self._sockets:
                socket.poll(_FAREWELL_POLL_MS)
                self._receive(socket)
        for socket in self._sockets:
            socket.close(linger=0)
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()

"""A front end's side of the coordinator: what it submits, and what it hears of its requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from uuid import uuid4

import zmq

from helixreal.frontends import wire
from helixreal.net.encoding import WireError
from helixreal.net.transport import Keys
from helixreal.serving.frontend import STOPPED, Failed, GenerationRequest, Listener, Load, Token
from helixsim.cluster import COORDINATOR
from helixsim.errors import InputError

logger = logging.getLogger(__name__)

_BEAT_INTERVAL_S = 0.5
_HELLO_INTERVAL_S = 0.1
_HIGH_WATER = 10_000
_FAREWELL_MS = 500
_MESSAGES_AT_ONCE = 100
_NOT_REACHED = "the coordinator cannot be reached"
_RESTARTED = "the coordinator has been restarted, or was cut off"
_UNKNOWN_LOAD = Load(
    running=0,
    waiting=0,
    kv_share=0.0,
    nodes_up={},
    prompt_tokens=0,
    output_tokens=0,
    completed=0,
    failed=0,
    refused=0,
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a coordinator may be silent.

    Attributes
    ----------
    ready_s
        After this time, new requests fail at once and the front end is not ready.
    give_up_s
        After this time, requests that have not ended fail.
    """

    ready_s: float = 3.0
    give_up_s: float = 15.0


class RemoteFrontend:
    """A cluster whose coordinator is another process: a `Frontend` of `helixreal.serving.frontend`.

    Its methods are called in the event loop in which :meth:`connect` was called, and listeners are
    called there.

    Parameters
    ----------
    coordinator
        Address of the coordinator's door, ``ipc://...`` or ``tcp://host:port``.
    name
        Name of this front end.
    keys
        The keys of the cluster; None for connections without encryption.
    patience
        How long the coordinator may be silent.
    """

    def __init__(
        self,
        coordinator: str,
        name: str,
        keys: Keys | None = None,
        patience: Patience = Patience(),
    ) -> None:
        self.model_name = ""
        self.max_context_tokens = 0
        self.vocabulary: int | None = None
        self.name = name
        self._address = coordinator
        self._patience = patience
        self._instance = uuid4().hex
        self._numbers = count(1)
        self._listeners: dict[int, Listener] = {}
        self._load = _UNKNOWN_LOAD
        self._is_ready = False
        self._is_known = False
        self._heard_s = 0.0
        self._welcomed = asyncio.Event()
        self._is_listening = False
        self._has_left = False
        self.on_goodbye: Callable[[], None] = lambda: logger.warning(STOPPED)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._open(keys)

    def _open(self, keys: Keys | None) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        # Messages to a coordinator that has gone are not kept for the one that comes after it.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
        if "[" in self._address:
            socket.setsockopt(zmq.IPV6, 1)
        if keys is not None:
            socket.curve_publickey, socket.curve_secretkey = keys.own()
            socket.curve_serverkey = keys.of(COORDINATOR)
        try:
            socket.connect(self._address)
        except zmq.ZMQError as error:
            socket.close()
            raise InputError(
                f"cannot connect to the coordinator at {self._address}: {error}"
            ) from error
        return socket

    # -- life ------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Connect; returns when the coordinator has answered."""
        self._loop = asyncio.get_running_loop()
        self._file = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._file, self._receive)
        self._beat()
        await self._welcomed.wait()

    def announce(self) -> None:
        """Tell the coordinator that connections are accepted."""
        self._is_listening = True
        self._send(wire.Listening())

    def close(self) -> None:
        """Close the connection; no listener is called any more."""
        self._loop.remove_reader(self._file)
        self._timer.cancel()
        self._send(wire.Leave())
        self._has_left = True
        self._socket.close(linger=_FAREWELL_MS)
        self._context.term()

    def _beat(self) -> None:
        """Say that this process is alive, and find out whether the coordinator is."""
        wait_s = _BEAT_INTERVAL_S if self._is_known else _HELLO_INTERVAL_S
        self._timer = self._loop.call_later(wait_s, self._beat)
        self._receive()
        if self._is_known:
            self._send(wire.Beat())
        else:
            self._send(wire.Hello(self.name, self._instance))
        silent_s = self._loop.time() - self._heard_s
        if self._is_ready and silent_s > self._patience.ready_s:
            logger.warning("the coordinator has been silent for %.0f s", silent_s)
            self._is_ready = False
        if self._listeners and silent_s > self._patience.give_up_s:
            self._send(wire.Cancel(list(self._listeners)))
            self._fail_all(f"the coordinator has been silent for {silent_s:.0f} s")

    def give_up(self, reason: str) -> None:
        """Let all requests fail now, because this front end or its coordinator has ended."""
        self._lose_session(reason)

    def _fail_all(self, reason: str) -> None:
        listeners = list(self._listeners.values())
        self._listeners.clear()
        for listener in listeners:
            listener(Failed(reason))

    # -- messages --------------------------------------------------------------------------------

    def _send(self, message: wire.FromFrontend) -> bool:
        return self._send_frames([wire.encode(message)])

    def _send_frames(self, frames: list[bytes]) -> bool:
        if self._has_left:
            return False
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        # The file becomes readable once for messages that arrive; sending may take that up.
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._receive)
        return True

    def _receive(self) -> None:
        if self._has_left:
            return
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard_s = self._loop.time()
            try:
                self._handle(wire.decode_to_frontend(frames[0]))
            except WireError as error:
                logger.warning("refused a message of the coordinator: %s", error)
        self._loop.call_soon(self._receive)

    def _handle(self, message: wire.ToFrontend) -> None:
        match message:
            case wire.Events():
                self._deliver(message)
            case wire.LoadReport(load, is_ready):
                self._load, self._is_ready = load, is_ready
            case wire.Welcome():
                self.model_name, self.vocabulary = message.model_name, message.vocabulary
                self.max_context_tokens = message.max_context_tokens
                self._is_known = True
                self._welcomed.set()
                if self._is_listening:
                    self._send(wire.Listening())
            case wire.Reset():
                self._lose_session(_RESTARTED)
                logger.warning("%s", _RESTARTED)
            case wire.Goodbye():
                self._send(wire.Leave())
                self._lose_session(STOPPED)
                self.on_goodbye()

    def _lose_session(self, reason: str) -> None:
        self._is_known = self._is_ready = False
        self._fail_all(reason)

    def _deliver(self, events: wire.Events) -> None:
        listeners = self._listeners
        place = 0
        for other in events.others:
            self._deliver_tokens(events.numbers[place : other.place], events.tokens[place:])
            place = other.place
            event = wire.event_of(other)
            keep = isinstance(event, Token)
            listener = listeners.get(other.number) if keep else listeners.pop(other.number, None)
            if listener is not None:
                listener(event)
        self._deliver_tokens(events.numbers[place:], events.tokens[place:])

    def _deliver_tokens(self, numbers: list[int], tokens: list[int]) -> None:
        listeners = self._listeners
        for number, token in zip(numbers, tokens, strict=False):
            if (listener := listeners.get(number)) is not None:
                listener(Token(token))

    # -- interface of front ends ---------------------------------------------------------------

    def submit(self, generation: GenerationRequest, listener: Listener) -> int:
        """Submit a request; the listener receives every token and exactly one final event."""
        number = next(self._numbers)
        silent_s = self._loop.time() - self._heard_s
        if not self._is_known or silent_s > self._patience.ready_s:
            listener(Failed(_NOT_REACHED))
            return number
        self._listeners[number] = listener
        if not self._send_frames(wire.encode_request(number, generation)):
            del self._listeners[number]
            listener(Failed(_NOT_REACHED))
        return number

    def cancel(self, request: int) -> None:
        """Cancel a request; its listener is not called any more."""
        if self._listeners.pop(request, None) is not None:
            self._send(wire.Cancel([request]))

    def load(self) -> Load:
        """The load of the cluster, as the coordinator has last reported it."""
        if self._is_known:
            return self._load
        return replace(self._load, nodes_up=dict.fromkeys(self._load.nodes_up, False))

    @property
    def is_ready(self) -> bool:
        """Whether the coordinator answers, and a route covers all layers."""
        return self._is_ready

"""Sockets of a process: one inbox, and one outgoing socket for each peer.

The inbox is a ZeroMQ PULL socket, outgoing sockets are PUSH sockets: a message is delivered as a
whole or, if the peer has gone, not at all. With keys, messages are encrypted and connections
without a known key are rejected (CurveZMQ).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from helixreal.net import encoding
from helixreal.net.encoding import WireError
from helixreal.net.messages import AnyMessage, Frame, Message
from helixreal.net.sockets import admit_keys_of, bind_tcp, check_open_to_others
from helixsim.errors import InputError

logger = logging.getLogger(__name__)

_HIGH_WATER = 10_000
_ASK_EVERY = 8


@dataclass(frozen=True, slots=True)
class Keys:
    """A folder of keys: ``public/NAME.key`` of all, ``secret/NAME.key_secret`` of this process.

    Attributes
    ----------
    folder
        The folder.
    name
        Name of this process: of its node, or ``coordinator``.
    """

    folder: Path
    name: str

    @property
    def public(self) -> Path:
        """The folder of all public keys."""
        return self.folder / "public"

    def own(self) -> tuple[bytes, bytes]:
        """The public and the secret key of this process.

        Raises
        ------
        InputError
            If the folder has no secret key for its name.
        """
        file = self.folder / "secret" / f"{self.name}.key_secret"
        try:
            public, secret = zmq.auth.load_certificate(file)
        except (OSError, ValueError) as error:
            raise InputError(
                "no secret key here; make keys with `helixreal keys`, and copy this one to this "
                "machine",
                file=file,
            ) from error
        assert secret is not None
        return public, secret

    def of(self, name: str) -> bytes:
        """The public key of another process.

        Raises
        ------
        InputError
            If the folder has none.
        """
        file = self.public / f"{name}.key"
        try:
            return zmq.auth.load_certificate(file)[0]
        except (OSError, ValueError) as error:
            raise InputError(
                "no public key here; make keys for all nodes with `helixreal keys`", file=file
            ) from error


def make_keys(folder: Path, names: Sequence[str]) -> None:
    """Make a key pair for each name without one; see :class:`Keys`."""
    public, secret = folder / "public", folder / "secret"
    public.mkdir(parents=True, exist_ok=True)
    secret.mkdir(mode=0o700, exist_ok=True)
    for name in names:
        if (secret / f"{name}.key_secret").exists():
            continue
        _, made = zmq.auth.create_certificates(secret, name)
        Path(made).chmod(0o600)
        (secret / f"{name}.key").replace(public / f"{name}.key")


class Transport:
    """The sockets of one process; used from one thread.

    Parameters
    ----------
    bind
        ``tcp://host:port`` of the inbox; port 0 takes a free port.
    keys
        The keys of the cluster; None for connections without encryption.
    insecure
        Allow an address beyond loopback without keys.

    Attributes
    ----------
    address
        Address of the inbox.
    num_refused
        Number of received messages that were refused.
    num_lost
        Number of messages that could not be sent.
    session
        The run of the coordinator to which this process belongs: messages of other runs are
        refused. 0 for none.

    Raises
    ------
    InputError
        If the address cannot be bound, or can be reached by other machines without keys.
    """

    def __init__(self, bind: str, keys: Keys | None = None, *, insecure: bool = False) -> None:
        check_open_to_others(bind, has_keys=keys is not None, insecure=insecure)
        self._keys = keys
        self._context = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._inbox = self._context.socket(zmq.PULL)
        self._out: dict[str, zmq.Socket[bytes]] = {}
        self._own: tuple[bytes, bytes] | None = None
        self._is_burst = False
        self._unasked = 0
        self.num_refused = 0
        self.num_lost = 0
        self.session = 0
        try:
            self._open(bind)
        except BaseException:
            self.close()
            raise

    def _open(self, bind: str) -> None:
        if self._keys is not None:
            self._own = self._keys.own()
            self._authenticator = admit_keys_of(
                self._context, self._inbox, self._own, self._keys.public
            )
        self._inbox.setsockopt(zmq.LINGER, 0)
        self._inbox.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, encoding.MAX_BODY_BYTES)
        self.address = bind_tcp(self._inbox, bind)

    @property
    def inbox(self) -> zmq.Socket[bytes]:
        """The inbox, for pollers."""
        return self._inbox

    def connect(self, name: str, address: str) -> None:
        """Connect to a process, or to its new address."""
        self.disconnect(name)
        socket = self._context.socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if "[" in address:
            socket.setsockopt(zmq.IPV6, 1)
        if self._keys is not None:
            assert self._own is not None
            socket.curve_publickey, socket.curve_secretkey = self._own
            socket.curve_serverkey = self._keys.of(name)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            socket.close()
            raise InputError(f"cannot connect to {name} at {address}: {error}") from error
        self._out[name] = socket

    def disconnect(self, name: str) -> None:
        """Close the connection to a process; unsent messages are lost."""
        if (socket := self._out.pop(name, None)) is not None:
            socket.close()

    def send(self, name: str, message: Message, frames: Sequence[Frame] = ()) -> bool:
        """Send a message; False if it is lost: no connection, or a full send queue."""
        socket = self._out.get(name)
        if socket is None:
            self.num_lost += 1
            return False
        parts = encoding.encode(message, frames, self.session)
        try:
            if len(parts) == 1:
                socket.send(parts[0], zmq.NOBLOCK)
            else:
                socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self.num_lost += 1
            logger.warning("the send queue to %s is full; a message was lost", name)
            return False
        return True

    def received(self, limit: int) -> Iterator[tuple[AnyMessage, list[Frame]]]:
        """Received messages, at most `limit`; to be called when the inbox is readable.

        Messages that cannot be decoded are counted and left out. To find out whether more have
        arrived, the socket's events are read, which costs less than a failing receive; while
        messages arrive one at a time, only once in several calls, because the caller polls anyway.
        """
        inbox = self._inbox
        for _ in range(limit):
            try:
                first = inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            parts: list[Frame] = [first]
            while inbox.getsockopt(zmq.RCVMORE):
                parts.append(inbox.recv(copy=False).buffer)
            try:
                received = encoding.decode(parts, self.session)
            except WireError as error:
                self.refuse(str(error))
            else:
                yield received
            if not self._is_burst:
                self._unasked = (self._unasked + 1) % _ASK_EVERY
                if self._unasked:
                    return
            self._is_burst = bool(int(inbox.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
            if not self._is_burst:
                return

    def refuse(self, why: str) -> None:
        """Count and log a message that is invalid."""
        self.num_refused += 1
        if self.num_refused <= 10 or self.num_refused % 1000 == 0:
            logger.warning("refused a message (number %d): %s", self.num_refused, why)

    def flush(self, timeout_s: float = 1.0) -> None:
        """Close outgoing sockets; unsent messages get `timeout_s` to leave."""
        for socket in self._out.values():
            socket.close(linger=int(timeout_s * 1000))
        self._out.clear()

    def close(self) -> None:
        """Close all sockets; sockets that were flushed keep their timeout."""
        for name in list(self._out):
            self.disconnect(name)
        self._inbox.close(linger=0)
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()

    def __enter__(self) -> Self:
        """The transport itself, which is open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all sockets."""
        self.close()

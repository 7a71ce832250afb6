"""Listening sockets, and when they need keys."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from socket import gethostbyname

import zmq
from zmq.auth.thread import ThreadAuthenticator

from helixsim.errors import InputError


def is_loopback(address: str) -> bool:
    """Whether an address such as ``tcp://127.0.0.1:5`` can be reached from this machine only."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_open_to_others(bind: str, *, has_keys: bool, insecure: bool) -> None:
    """Check that an address which other machines can reach is used with keys, or on purpose not.

    Raises
    ------
    InputError
        If it is not.
    """
    if not (has_keys or insecure or is_loopback(bind)):
        raise InputError(
            f"{bind} is open to other machines: give keys (made by `helixreal keys`), by --keys or "
            "in the inventory, or --insecure on a network without other users"
        )


def bind_tcp(socket: zmq.Socket[bytes], bind: str) -> str:
    """Bind a socket to ``tcp://host:port``; the address with the port that it got.

    Raises
    ------
    InputError
        If the address cannot be bound.
    """
    socket.setsockopt(zmq.IPV6, 1 if "[" in bind else 0)
    host, _, port = bind.removeprefix("tcp://").rpartition(":")
    try:
        # ZeroMQ binds addresses only; peers get the host name as it was given.
        own = host if host.startswith("[") else gethostbyname(host)
        socket.bind(f"tcp://{own}:{'*' if port == '0' else port}")
    except (OSError, zmq.ZMQError) as error:
        raise InputError(f"cannot listen at {bind}: {error.strerror or error}") from error
    bound = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    return f"tcp://{host}:{bound.rpartition(':')[2]}"


def admit_keys_of(
    context: zmq.Context[zmq.Socket[bytes]],
    socket: zmq.Socket[bytes],
    own: tuple[bytes, bytes],
    public: Path,
) -> ThreadAuthenticator:
    """Let a listening socket accept only peers whose public key is in a folder; stop it at the end.

    Parameters
    ----------
    own
        The public and the secret key of this process.
    """
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve(domain="*", location=str(public))
    socket.curve_publickey, socket.curve_secretkey = own
    socket.curve_server = True
    return authenticator

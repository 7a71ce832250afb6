"""Processes without the keys are turned away; those with keys serve on."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
import zmq
from typer.testing import CliRunner

from helixreal.cli import app
from helixreal.net import encoding, messages
from helixreal.net.transport import Keys, Transport, make_keys
from helixsim.cluster import COORDINATOR
from helixsim.errors import InputError

PATIENCE_S = 20
ANYWHERE = "0.0.0.0"  # noqa: S104  (refused without keys, which is the point)
HELLO = messages.Hello("n0", "tcp://127.0.0.1:9", "host", "x", "emulated")


@pytest.fixture
def keys(tmp_path):
    make_keys(tmp_path / "keys", [COORDINATOR, "n0", "n1"])
    return tmp_path / "keys"


@contextmanager
def unknown_peer(address, server_key=None, own=None):
    """A client with whatever keys, not ours."""
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 0)
    if server_key is not None:
        socket.curve_serverkey = server_key
        socket.curve_publickey, socket.curve_secretkey = own or zmq.curve_keypair()
    socket.connect(address)
    try:
        yield socket
    finally:
        socket.close()
        context.term()


def messages_of(transport, seconds=0.0):
    """Everything that comes within that time."""
    found, until = [], time.monotonic() + seconds
    while True:
        if transport.inbox.poll(max((until - time.monotonic()) * 1000, 0)):
            found += transport.received(100)
        elif time.monotonic() >= until:
            return found


def expect_hello(transport):
    until = time.monotonic() + PATIENCE_S
    while not (found := messages_of(transport, 0.1)):
        assert time.monotonic() < until, "nothing came"
    assert [type(message) for message, _ in found] == [messages.Hello]


def friend_is_heard(home, keys, name="n1"):
    with Transport("tcp://127.0.0.1:0", Keys(keys, name)) as friend:
        friend.connect(COORDINATOR, home.address)
        friend.send(COORDINATOR, HELLO)
        expect_hello(home)


@pytest.mark.parametrize("kind", ["no key", "an unknown key", "a known name, another secret"])
def test_processes_without_the_keys_are_turned_away(keys, tmp_path, kind):
    with Transport("tcp://127.0.0.1:0", Keys(keys, COORDINATOR)) as home:
        friend_is_heard(home, keys)
        known = Keys(keys, COORDINATOR).own()[0]
        own = None
        if kind.startswith("a known name"):
            own = (Keys(keys, "n0").own()[0], zmq.curve_keypair()[1])
        with unknown_peer(home.address, None if kind == "no key" else known, own) as socket:
            for part in range(20):
                socket.send_multipart(encoding.encode(HELLO), zmq.NOBLOCK)
                assert part < 20
            assert messages_of(home, 1.0) == []
            friend_is_heard(home, keys, "n0")
        assert messages_of(home, 0.2) == []


def test_without_the_coordinators_key_no_process_talks_to_it(keys, tmp_path):
    make_keys(tmp_path / "others", [COORDINATOR, "n0"])
    with Transport("tcp://127.0.0.1:0", Keys(keys, COORDINATOR)) as home:
        with Transport("tcp://127.0.0.1:0", Keys(tmp_path / "others", "n0")) as other:
            other.connect(COORDINATOR, home.address)
            other.send(COORDINATOR, HELLO)
            assert messages_of(home, 1.0) == []
        friend_is_heard(home, keys)


def test_keys_are_private_and_stay(keys):
    secrets = sorted((keys / "secret").iterdir())
    assert [file.name for file in secrets] == [
        "coordinator.key_secret",
        "n0.key_secret",
        "n1.key_secret",
    ]
    assert {file.stat().st_mode & 0o777 for file in secrets} == {0o600}
    before = [file.read_bytes() for file in secrets]
    make_keys(keys, [COORDINATOR, "n0", "n2"])
    assert [file.read_bytes() for file in secrets] == before
    assert (keys / "public" / "n2.key").exists()


def test_open_addresses_want_keys():
    with pytest.raises(InputError, match="open to other machines"):
        Transport(f"tcp://{ANYWHERE}:0")
    Transport(f"tcp://{ANYWHERE}:0", insecure=True).close()
    Transport("tcp://127.0.0.1:0").close()


def test_names_of_hosts_are_found_and_told():
    with Transport("tcp://localhost:0") as named, Transport("tcp://127.0.0.1:0") as other:
        assert named.address.startswith("tcp://localhost:")
        other.connect("named", named.address)
        other.send("named", HELLO)
        expect_hello(named)
    with pytest.raises(InputError, match="cannot listen at tcp"):
        Transport("tcp://no.such.host.invalid:0", insecure=True)


def test_missing_keys_are_named(keys):
    with pytest.raises(InputError, match=r"n9\.key_secret: no secret key here"):
        Transport("tcp://127.0.0.1:0", Keys(keys, "n9"))


def test_the_command_makes_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["keys", "a", "b"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "keys/secret/a.key_secret").exists()
    assert (tmp_path / "keys/public/coordinator.key").exists()
    assert CliRunner().invoke(app, ["keys"]).exit_code == 2


def test_a_worker_that_is_open_to_others_ends_with_one_error():
    arguments = ["worker", "--node", "n0", "--coordinator", "127.0.0.1:1", "--listen", ANYWHERE]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "--insecure" in result.output

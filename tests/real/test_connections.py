"""Clients that say nothing, or too slowly: their connections are closed, others are served."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from queue import Queue

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from helixreal.serving import connections
from helixreal.serving.connections import Limits
from helixreal.serving.server import bind, run_server
from helixsim.errors import InputError

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n"


async def echo(request):
    return JSONResponse({"said": (await request.body()).decode()})


@contextmanager
def served(limits):
    """The address of a server that echoes."""
    urls, until = Queue(), threading.Event()
    app = Starlette(routes=[Route("/", echo, methods=["GET", "POST"])])
    thread = threading.Thread(
        target=run_server,
        args=(app, "127.0.0.1", 0),
        kwargs={"ready": urls.put, "until": until, "limits": limits},
    )
    thread.start()
    try:
        host, _, port = urls.get(timeout=30).removeprefix("http://").rpartition(":")
        yield host, int(port)
    finally:
        until.set()
        thread.join(30)
        assert not thread.is_alive()


def rest(connection):
    """What the server still says until it closes the connection."""
    said = b""
    while part := connection.recv(4096):
        said += part
    return said


@pytest.fixture(params=["h11", "httptools"])
def protocol(request, monkeypatch):
    if request.param == "h11":
        monkeypatch.setattr(connections, "HttpToolsProtocol", None)
    elif connections.HttpToolsProtocol is None:
        pytest.skip("httptools is not installed")
    return request.param


def test_slow_clients_are_closed_and_others_are_not(protocol):
    with served(Limits(max_connections=50, head_s=0.6, body_s=0.6)) as address:
        silent, head, body, steady = (socket.create_connection(address, 10) for _ in range(4))
        head.sendall(b"GET / HTT")
        body.sendall(HEAD + b"abc")
        steady.sendall(HEAD)
        for _ in range(6):
            time.sleep(0.3)
            steady.sendall(b"x")
        for slow in (silent, head, body):
            assert rest(slow) == b""
            slow.close()
        steady.shutdown(socket.SHUT_WR)
        assert steady.recv(4096).startswith(b"HTTP/1.1 200")
        steady.close()


def test_an_endless_head_is_cut_off(protocol):
    with served(Limits(max_connections=50)) as address:
        with socket.create_connection(address, 10) as endless:
            endless.sendall(b"GET / HTTP/1.1\r\n")
            with pytest.raises(ConnectionError):  # long before it is too slow
                for number in range(10_000):
                    endless.sendall(b"X-%d: %s\r\n" % (number, b"y" * 1000))
                    time.sleep(0.0005)
        with httpx.Client(base_url="http://{}:{}".format(*address)) as client:
            assert client.get("/").status_code == 200


def test_connections_beyond_the_limit_wait(protocol, caplog):
    with served(Limits(max_connections=3)) as address:
        held = [socket.create_connection(address, 10) for _ in range(3)]
        for each in held:
            each.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(0.2)
        late = socket.create_connection(address, 10)
        late.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        late.settimeout(0.5)
        with pytest.raises(TimeoutError):
            late.recv(10)
        held[0].close()
        late.settimeout(10)
        assert late.recv(4096).startswith(b"HTTP/1.1 200")
        for each in (*held, late):
            each.close()
    assert caplog.text.count("as many as allowed") == 1


def test_many_connections_are_all_accepted(protocol):
    with (
        served(Limits(max_connections=500)) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}") as client,
    ):
        held = [socket.create_connection((host, port), 10) for _ in range(200)]
        for each in held:
            each.sendall(HEAD + b"hello!")
        for each in held:
            said = b""
            while b"hello!" not in said:
                part = each.recv(4096)
                assert part
                said += part
            each.close()
        assert client.get("/").json() == {"said": ""}


def test_an_address_of_another_machine_cannot_be_bound():
    with pytest.raises(InputError, match=r"cannot listen at 203\.0\.113\.1:0"):
        bind("203.0.113.1", 0)
    with pytest.raises(InputError, match="cannot listen at no such host"):
        bind("no such host", 0)

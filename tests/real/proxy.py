"""A TCP proxy in threads, whose connections a test can cut and heal."""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Event, Lock, Thread


class Proxy:
    """Forwards connections to an address.

    While cut, it takes bytes and connections, and forwards nothing: as a network does that loses
    packets. `reset` ends all connections.
    """

    def __init__(self, address):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._is_open = Event()
        self._is_open.set()
        self._lock = Lock()
        self._sockets = []
        self._is_closed = False
        self._spawn(self._accept)

    def _spawn(self, target, *arguments):
        Thread(target=target, args=arguments, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.append(client)
            self._spawn(self._serve, client)

    def _serve(self, client):
        self._is_open.wait()
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        with self._lock:
            self._sockets.append(server)
        self._spawn(self._pump, client, server)
        self._spawn(self._pump, server, client)

    def _pump(self, source, target):
        with suppress(OSError):
            while data := source.recv(65_536):
                self._is_open.wait()
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self):
        self._is_open.clear()

    def heal(self):
        self._is_open.set()

    def reset(self):
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self):
        self.heal()
        self._listener.close()
        self.reset()

"""The network of a chaos run: namespaces between which links can be cut, or this machine's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from itertools import count

_numbers = count()


def run(*words):
    subprocess.run(words, check=True, capture_output=True, text=True)


def has_namespaces():
    """Whether this process may make network namespaces, and drop packets between them."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    try:
        with Namespaces(["a", "b"]) as probe:
            probe.cut("a", "b")
            probe.heal("a", "b")
    except subprocess.CalledProcessError:
        return False
    return True


class Loopback:
    """All processes share one network; no link can be cut."""

    can_cut = False

    def __init__(self, names):
        self.names = list(names)

    def address(self, name):
        return "127.0.0.1"

    def prefix(self, name):
        return []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Namespaces:
    """A network namespace for each name, joined by a bridge that this process reaches as well."""

    can_cut = True

    def __init__(self, names):
        self.names = list(names)
        self._tag = f"hx{os.getpid() % 10_000}{next(_numbers)}"
        self._subnet = f"10.77.{os.getpid() % 250}"

    def address(self, name):
        return f"{self._subnet}.{self.names.index(name) + 1}"

    def prefix(self, name):
        return ["ip", "netns", "exec", self._space(name)]

    def _space(self, name):
        return f"{self._tag}-{name}"

    def _port(self, name):
        """The end of a name's cable at the bridge."""
        return f"{self._tag}p{self.names.index(name)}"

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self):
        bridge = f"{self._tag}b"
        run("ip", "link", "add", bridge, "type", "bridge")
        run("ip", "addr", "add", f"{self._subnet}.254/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        for name in self.names:
            space, port = self._space(name), self._port(name)
            run("ip", "netns", "add", space)
            run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "link", "set", port, "master", bridge, "up")
            inside = ("ip", "-n", space)
            run(*inside, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "up")
            run(*inside, "link", "set", "lo", "up")

    def cut(self, one, other):
        """Drop all packets between two of them."""
        self._route("add", one, other)

    def heal(self, one, other):
        """Let packets pass again."""
        self._route("del", one, other)

    def _route(self, change, one, other):
        for near, far in ((one, other), (other, one)):
            target = f"{self.address(far)}/32"
            run("ip", "-n", self._space(near), "route", change, "blackhole", target)

    def __exit__(self, *_):
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                run("ip", "netns", "del", self._space(name))
        with suppress(subprocess.CalledProcessError):
            run("ip", "link", "del", f"{self._tag}b")

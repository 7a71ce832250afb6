"""`helixreal serve` as a process, for tests of what a user sees of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

PATIENCE_S = 30
ROOT = Path(__file__).parents[2]


class Process:
    """A command of helixreal, and the lines that it has written to standard error."""

    def __init__(self, *arguments, **settings):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helixreal", *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            **settings,
        )
        self.pid = self._process.pid
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._children = []

    def _read(self):
        with self._process.stderr as lines:
            for line in lines:
                self.lines.append(line.rstrip())

    @property
    def text(self):
        return "\n".join(self.lines)

    def wait_for(self, pattern, count=1):
        """The last of `count` lines with a pattern."""
        until = time.monotonic() + PATIENCE_S
        while True:
            found = [match for line in list(self.lines) if (match := re.search(pattern, line))]
            if len(found) >= count:
                return found[count - 1]
            assert time.monotonic() < until, f"waited in vain for {pattern}: {self.text}"
            assert self._process.poll() is None or self._reader.is_alive(), self.text
            time.sleep(0.02)

    def children(self, part=""):
        """The processes that it has started whose command contains a text."""
        found = psutil.Process(self.pid).children(recursive=True)
        self._children = [*{*self._children, *found}]
        return [child for child in found if part in " ".join(child.cmdline())]

    def front_ends(self):
        return self.children("helixreal.frontends.process")

    def code(self):
        """The exit code, when it has ended."""
        code = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def end(self, number=signal.SIGINT):
        """Send a signal, and wait for the end; its exit code. No child must survive."""
        if self._process.poll() is None:
            self.children()
            os.kill(self.pid, number)
        code = self.code()
        _, alive = psutil.wait_procs(self._children, timeout=5)
        assert not alive
        return code


@contextmanager
def serving(*arguments, **settings):
    """A server at a free port, and a client of it; ended with Ctrl-C."""
    process = Process("serve", *arguments, "--port", "0", **settings)
    try:
        url = process.wait_for(r"serving \S+ at (http://\S+)/v1")[1]
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            yield process, client
    finally:
        process.end()

"""Starts the processes of front ends, and starts them again when they have ended."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

import msgspec

from helixsim.errors import HelixError

if TYPE_CHECKING:
    from helixreal.frontends.process import FrontEndSettings

logger = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 0.1
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_WELL_AFTER_S = 60.0
_LONGEST_PATH = 90
"""Paths of sockets have a limit of about 100 bytes."""


def private_folder() -> Path:
    """A new folder for the sockets of this process, which only this user can enter."""
    made = Path(tempfile.mkdtemp(prefix="helixreal-"))
    if len(str(made)) > _LONGEST_PATH:
        made.rmdir()
        made = Path(tempfile.mkdtemp(prefix="helixreal-", dir="/tmp"))
    return made


@dataclass(slots=True)
class _Child:
    settings: FrontEndSettings
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    start_at_s: float = 0.0
    wait_s: float = _FIRST_WAIT_S


class FrontEndProcesses:
    """Processes of front ends that share a listening socket; used from one thread.

    Parameters
    ----------
    settings
        Settings of each front end.
    bound
        The socket, bound; None if there are no settings.
    folder
        A private folder, for the metrics that the processes share.
    on_end
        Called with the name of a front end whose process has ended.
    """

    def __init__(
        self,
        settings: list[FrontEndSettings],
        bound: socket.socket | None,
        folder: Path,
        on_end: Callable[[str], None],
    ) -> None:
        self._bound = bound
        self._on_end = on_end
        self._metrics = folder / "metrics"
        self._metrics.mkdir()
        self._children = [_Child(each) for each in settings]
        self._listening: set[str] = set()
        self._next_check_s = 0.0

    def start(self) -> None:
        """Start all processes."""
        for child in self._children:
            self._start(child)

    def _start(self, child: _Child) -> None:
        assert self._bound is not None
        file = self._bound.fileno()
        process = subprocess.Popen(  # noqa: S603  (our own command)
            [sys.executable, "-m", "helixreal.frontends.process", str(file)],
            stdin=subprocess.PIPE,
            pass_fds=[file],
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(self._metrics)},
            # In a separate session: Ctrl-C goes to the coordinator, which ends front ends.
            start_new_session=True,
        )
        child.process, child.started_s = process, time.monotonic()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(child.settings) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            logger.debug("%s has ended at once", child.settings.name)

    def listens(self, name: str) -> bool:
        """Note that a front end accepts connections; True once, when all of them do."""
        own = {child.settings.name for child in self._children}
        if name not in own - self._listening:
            return False  # one that was restarted, or of another machine
        self._listening.add(name)
        return self._listening == own

    @property
    def pids(self) -> list[int]:
        """Process ids of the front ends that run."""
        return [child.process.pid for child in self._children if child.process is not None]

    def check(self) -> None:
        """Start processes again that have ended, each after a while.

        Raises
        ------
        HelixError
            If one has ended before it ever accepted connections.
        """
        now_s = time.monotonic()
        if now_s < self._next_check_s:
            return
        self._next_check_s = now_s + _CHECK_INTERVAL_S
        for child in self._children:
            if child.process is None:
                if now_s >= child.start_at_s:
                    self._start(child)
            elif (code := child.process.poll()) is not None:
                self._has_ended(child, code, now_s)

    def replace(self, name: str) -> None:
        """Kill a front end that says nothing any more; :meth:`check` starts it again."""
        for child in self._children:
            if child.settings.name == name and child.process is not None:
                child.process.kill()

    def _has_ended(self, child: _Child, code: int, now_s: float) -> None:
        name = child.settings.name
        assert child.process is not None
        if child.process.stdin is not None:
            child.process.stdin.close()
        child.process = None
        self._on_end(name)
        if name not in self._listening:
            raise HelixError(f"{name} has ended with exit code {code} before it could serve")
        if now_s - child.started_s > _WELL_AFTER_S:
            child.wait_s = _FIRST_WAIT_S
        logger.warning(
            "%s has ended with exit code %d: it starts again in %.1f s", name, code, child.wait_s
        )
        child.start_at_s = now_s + child.wait_s
        child.wait_s = min(2 * child.wait_s, _LONGEST_WAIT_S)

    def stop(self, patience_s: float = 5.0) -> None:
        """End all processes: ask, then kill."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            if process.stdin is not None:
                process.stdin.close()
        until_s = time.monotonic() + patience_s
        for process in running:
            try:
                process.wait(timeout=max(until_s - time.monotonic(), 0.05))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in self._children:
            child.process = None
        rmtree(self._metrics, ignore_errors=True)

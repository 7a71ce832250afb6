"""Keeps a process running: starts it again when it ends, with growing waits and a limit."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from signal import Signals
from threading import Event, Lock

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 10.0


class Restarts:
    """Decides whether and when a process that has ended is started again; it has no clock.

    Parameters
    ----------
    most, within_s
        A process that has been started again this often within this time, seconds, stays ended.
    """

    def __init__(self, most: int = 5, within_s: float = 60.0) -> None:
        self.most = most
        self.within_s = within_s
        self._ends_s: deque[float] = deque()

    @property
    def num_recent(self) -> int:
        """Number of ends within the time."""
        return len(self._ends_s)

    def wait_s(self, ended_s: float) -> float | None:
        """How long to wait before the start after an end at this time; None for no start.

        The wait doubles with every end within the time.
        """
        while self._ends_s and ended_s - self._ends_s[0] > self.within_s:
            self._ends_s.popleft()
        self._ends_s.append(ended_s)
        if len(self._ends_s) > self.most:
            return None
        return float(min(_FIRST_WAIT_S * 2 ** (len(self._ends_s) - 1), _LONGEST_WAIT_S))


class SupervisedProcess:
    """A `helixreal` command as a process, which ends with this one.

    Parameters
    ----------
    name
        What it is, for log lines.
    command
        Arguments of the command; it must have the option ``--end-with-stdin``.
    restarts
        When it is started again.
    """

    def __init__(self, name: str, command: Sequence[str], restarts: Restarts | None = None) -> None:
        self._name = name
        self._command = [sys.executable, "-m", "helixreal", *command, "--end-with-stdin"]
        self._restarts = restarts or Restarts()
        self._is_closing = Event()
        self._lock = Lock()
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # In a session of its own: Ctrl-C goes to this process, which ends the other. If this
        # process is killed, the standard input of the other is closed.
        return subprocess.Popen(  # noqa: S603  (our own command)
            self._command, stdin=subprocess.PIPE, start_new_session=True
        )

    @property
    def pid(self) -> int:
        """Process id of the process that runs, or ran last."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of the process that ran last; None while it runs."""
        return self._process.poll()

    def keep_running(self) -> int:
        """Start it again whenever it ends with a fault; its last exit code.

        Returns when it has ended as it was told to (exit code 0), or too often.
        """
        while True:
            code = self._process.wait()
            if code == 0 or self._is_closing.is_set():
                return code
            wait_s = self._restarts.wait_s(time.monotonic())
            if wait_s is None:
                logger.error(
                    "%s %s, %d times within %g s: it is not started again",
                    self._name,
                    described(code),
                    self._restarts.num_recent,
                    self._restarts.within_s,
                )
                return code
            logger.warning(
                "%s %s: it is started again in %g s (%d of %d within %g s)",
                self._name,
                described(code),
                wait_s,
                self._restarts.num_recent,
                self._restarts.most,
                self._restarts.within_s,
            )
            self._is_closing.wait(wait_s)
            with self._lock:
                if self._is_closing.is_set():
                    return code
                self._close_pipe()
                self._process = self._start()

    def stop_restarting(self) -> None:
        """Do not start it again when it ends."""
        with self._lock:
            self._is_closing.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; whether it has."""
        try:
            self._process.wait(timeout=max(timeout_s, 0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """Terminate it, if need be by force."""
        self.stop_restarting()
        self._process.terminate()
        if not self.wait(1.0):
            self._process.kill()
            self._process.wait()
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()


def described(code: int) -> str:
    """An exit code of a process in words."""
    if code < 0:
        return f"was ended by {Signals(-code).name}"
    return f"has ended with exit code {code}"

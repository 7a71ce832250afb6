"""The solving process as its parent sees it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from math import inf
from types import TracebackType
from typing import Any

from helixsim.errors import SimulationError
from helixsim.planner.milp.inputs import MilpInputs

_TICK_S = 0.2
"""How long to wait at a time: on some systems Ctrl-C arrives only between waits."""


class SolverProcess:
    """A :mod:`.worker`; as a context manager, so that none is left behind.

    Parameters
    ----------
    inputs, solver, seed
        Of the program.
    """

    def __init__(self, inputs: MilpInputs, solver: str, seed: int) -> None:
        self._task = {"inputs": asdict(inputs), "solver": solver, "seed": seed}
        self._answers: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> SolverProcess:
        """Start the process, with the modules that this one would find."""
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helixsim.planner.milp.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, who ends it
        )
        threading.Thread(target=self._read, daemon=True).start()
        self._send(self._task)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process, whatever it is doing."""
        process = self._process
        process.kill()
        process.wait()
        assert process.stdin is not None
        with suppress(OSError):  # what is left to say to a process that is gone
            process.stdin.close()

    def solve(
        self, seconds: float, start: Mapping[str, float] | None, patience_s: float = inf
    ) -> dict[str, Any] | None:
        """Have it solve for `seconds`; None if there is no answer within `patience_s`.

        Raises
        ------
        SimulationError
            If the process has ended.
        """
        self._send({"seconds": seconds, "start": start})
        end = time.monotonic() + patience_s
        while (left := end - time.monotonic()) > 0:
            try:
                line = self._answers.get(timeout=min(left, _TICK_S))
            except queue.Empty:
                continue
            if line is None:
                self._raise_ended()
            answer: dict[str, Any] = json.loads(str(line))
            return answer
        return None

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            self._raise_ended()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put(None)

    def _raise_ended(self) -> None:
        raise SimulationError(
            f"the process that solves the program ended with code {self._process.wait()}; it may "
            "have run out of memory"
        )

"""Solve the program in a process of its own, which the planner can stop at any time.

A solver's library returns to Python only when it has finished: not on Ctrl-C, and not exactly at
a time limit. :class:`SolverProcess` is the planner's end. The other end is :func:`main` of this
module: it reads one line of JSON with the inputs, then one line per attempt, and answers each
attempt with one line::

    -> {"inputs": {...}, "solver": "CBC", "seed": 0}
    -> {"seconds": 10, "start": {"start_0": 0, ...}}
    <- {"status": "FEASIBLE", "bound": 99.0, "values": {"start_0": 0, ...}}

The process ends as soon as its input is closed, also while it solves.
"""

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
from typing import Any, TextIO

from helixsim.errors import SimulationError
from helixsim.planner.milp.formulation import build
from helixsim.planner.milp.inputs import MilpInputs

_TICK_S = 0.2
"""Longest single wait for an answer: some systems deliver Ctrl-C only between waits."""


class SolverProcess:
    """A process that solves one program; a context manager, so that the process always ends.

    Parameters
    ----------
    inputs, solver, seed
        The program, the back end of python-mip, and its random seed.
    """

    def __init__(self, inputs: MilpInputs, solver: str, seed: int) -> None:
        self._task = {"inputs": asdict(inputs), "solver": solver, "seed": seed}
        self._answers: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> SolverProcess:
        """Start the process, with the same module search path as this one."""
        path = os.pathsep.join(entry for entry in sys.path if entry)
        command = f"from {__name__} import main; main()"
        self._process = subprocess.Popen(  # noqa: S603  (our own module)
            [sys.executable, "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C goes to the parent, which ends the process
        )
        threading.Thread(target=self._read_answers, daemon=True).start()
        self._send(self._task)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill the process."""
        process = self._process
        process.kill()
        process.wait()
        assert process.stdin is not None
        with suppress(OSError):  # unsent data of a process that has ended
            process.stdin.close()

    def solve(
        self, seconds: float, start: Mapping[str, float] | None, patience_s: float = inf
    ) -> dict[str, Any] | None:
        """Run one attempt of at most `seconds`.

        Parameters
        ----------
        seconds
            Time limit of the solver, in seconds.
        start
            Values of the integer variables to start from, by name.
        patience_s
            How long to wait for the answer, in seconds.

        Returns
        -------
        dict or None
            The answer as of :func:`solve`; None if none came within `patience_s`.

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

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put(None)

    def _raise_ended(self) -> None:
        raise SimulationError(
            f"the solver's process ended with code {self._process.wait()}; it may have run out of "
            "memory"
        )


# -- the process itself ------------------------------------------------------------------------


def main() -> None:
    """Answer attempts until the input is closed."""
    answers = _reserve_output()
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_input, args=(lines,), daemon=True).start()
    task = json.loads(lines.get())
    inputs = MilpInputs(**task["inputs"])
    while True:
        attempt = json.loads(lines.get())
        answer = solve(inputs, task["solver"], task["seed"], attempt["seconds"], attempt["start"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def solve(
    inputs: MilpInputs, solver: str, seed: int, seconds: float, start: Mapping[str, float] | None
) -> dict[str, Any]:
    """Build and solve the program.

    Parameters
    ----------
    inputs, solver, seed
        The program, the back end of python-mip, and its random seed.
    seconds
        Time limit.
    start
        Values of the integer variables to start from, by name.

    Returns
    -------
    dict
        ``status`` (name of python-mip's status), ``bound`` on the flow in tokens per second or
        None, and ``values`` of all variables by name, or None without a solution.
    """
    model = build(inputs, solver, seed).model
    if start:
        named = ((model.var_by_name(name), value) for name, value in start.items())
        model.start = [(var, value) for var, value in named if var is not None]
    status = model.optimize(max_seconds=seconds)
    values = {var.name: float(var.x) for var in model.vars} if model.num_solutions else None
    bound = model.objective_bound
    return {
        "status": status.name,
        "bound": None if bound is None else float(bound),
        "values": values,
    }


def _reserve_output() -> TextIO:
    """Reserve standard output for answers; discard what the solver's library prints."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    return answers


def _read_input(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)

"""A process of its own that solves the program, so that whoever waits can always stop waiting.

A solver's library returns to Python only when it is done: not for Ctrl-C, and not at once for a
time limit. The process reads one line of JSON with the inputs, then one line for each attempt,
and answers each attempt with one line::

    -> {"inputs": {...}, "solver": "CBC", "seed": 0}
    -> {"seconds": 10, "start": {"start_0": 0, ...}}
    <- {"status": "FEASIBLE", "bound": 99.0, "values": {"start_0": 0, ...}}

When its input ends, it ends, in the midst of solving too: nobody is there to hear the answer.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from helixsim.planner.milp.formulation import build
from helixsim.planner.milp.inputs import MilpInputs


def main() -> None:
    """Serve until the input ends."""
    answers = _own_output()
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
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
    """Solve for so long at most; the answer as the process gives it.

    Parameters
    ----------
    start
        Values of variables to start from, by name.
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


def _own_output() -> TextIO:
    """Keep the output for answers; what the solver's library prints goes nowhere."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    return answers


def _read(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()

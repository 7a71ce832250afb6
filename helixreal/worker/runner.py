"""Runners: run the steps of a worker on its engine, in real or in emulated time.

A runner takes one step at a time and reports the end of each of its passes. The worker's loop
continues meanwhile: it takes messages and sends heartbeats.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from helixreal.engines.engine import Engine
from helixreal.worker.step_run import Outcome, PassRows, StepRun
from helixsim.physics.performance_model import StepTimer
from helixsim.steps import Step

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs steps on the engine of a worker.

    Attributes
    ----------
    engine
        The engine; None until it has been loaded.
    slack_s
        Up to this delay, by the clock, events keep the times at which they were due.
    poll_s
        Interval, in seconds of the run, in which an idle node notices arrivals; 0 for at once.
    """

    engine: Engine | None
    slack_s: float
    poll_s: float

    def start(self, now: float, step: Step, passes: Sequence[PassRows]) -> list[int]:
        """Start a step at this time of the run; the numbers of the passes that will end."""
        ...

    @property
    def end_s(self) -> float | None:
        """End of the current pass, in time of the run; None if not known yet."""
        ...

    def finish(self) -> Outcome:
        """Take the result of the pass that has ended."""
        ...

    @property
    def busy_for_s(self) -> float:
        """Time that the engine has been running the current pass, by the clock."""
        ...

    @property
    def lost(self) -> str | None:
        """Why the engine cannot go on, as far as it has been noted outside of a pass."""
        ...

    def fileno(self) -> int:
        """A file that becomes readable when a pass has ended; -1 without one."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


class TimedRunner:
    """For the emulated engine: passes end at the times of the performance model."""

    slack_s = 0.02

    def __init__(self, engine: Engine, timer: StepTimer) -> None:
        self.engine: Engine | None = engine
        self.poll_s = timer.poll_s
        self._timer = timer
        self._ends_s: list[float] = []
        self._outcomes: list[Outcome] = []

    def start(self, now: float, step: Step, passes: Sequence[PassRows]) -> list[int]:
        """Start a step at this time of the run."""
        assert self.engine is not None
        ends, _ = self._timer.time_step(step, now)
        numbers = step.passes_that_end(ends)
        self._ends_s = [ends[number] for number in numbers]
        run = StepRun(self.engine)
        self._outcomes = [run.run(passes[number]) for number in numbers]
        return numbers

    @property
    def end_s(self) -> float | None:
        """End of the current pass."""
        return self._ends_s[0] if self._ends_s else None

    def finish(self) -> Outcome:
        """Take the result of the pass that has ended."""
        self._ends_s.pop(0)
        return self._outcomes.pop(0)

    @property
    def busy_for_s(self) -> float:
        """Always 0: an emulated engine cannot get stuck."""
        return 0.0

    @property
    def lost(self) -> str | None:
        """Always None: an emulated engine has no parts that end."""
        return None

    def fileno(self) -> int:
        """Always -1: the end of a pass is known in advance."""
        return -1

    def close(self) -> None:
        """Nothing to release."""


class ThreadRunner:
    """For real engines: runs steps in a separate thread.

    Parameters
    ----------
    load
        Makes the engine; called in the thread, which owns the engine's device context.
    now
        Returns the time of the run.
    """

    slack_s = 0.0
    poll_s = 0.0

    def __init__(self, load: Callable[[], Engine], now: Callable[[], float]) -> None:
        self.engine: Engine | None = None
        self._now = now
        self._steps: SimpleQueue[list[PassRows] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[float, Outcome]] = SimpleQueue()
        self._done: tuple[float, Outcome] | None = None
        self._num_left = 0
        self._began_s: float | None = time.monotonic()
        self._readable, self._writable = os.pipe()
        self.load_failure: BaseException | None = None
        self._thread = Thread(target=self._run_engine, args=(load,), name="engine", daemon=True)
        self._thread.start()

    def _run_engine(self, load: Callable[[], Engine]) -> None:
        try:
            engine = load()
        except BaseException as error:
            self.load_failure = error
            self._began_s = None
            os.write(self._writable, b"x")
            return
        self.engine = engine
        self._began_s = None
        os.write(self._writable, b"x")
        while (passes := self._steps.get()) is not None:
            run = StepRun(engine)
            for each in passes:
                outcome = run.run(each)
                self._outcomes.put((self._now(), outcome))
                os.write(self._writable, b"x")
                if outcome.fatal is not None:
                    break  # the rest of the step is not run
        try:
            engine.close()
        except Exception as error:
            logger.warning("the engine could not be closed: %s", error)

    def start(self, now: float, step: Step, passes: Sequence[PassRows]) -> list[int]:
        """Start a step: its passes run one after another."""
        self._began_s = time.monotonic()
        numbers = [number for number, batch in enumerate(step.passes) if batch.requests]
        self._num_left = len(numbers)
        self._steps.put([passes[number] for number in numbers])
        return numbers

    @property
    def end_s(self) -> float | None:
        """End of the current pass; None while it runs."""
        if self._done is None and not self._outcomes.empty():
            self._done = self._outcomes.get()
        return None if self._done is None else self._done[0]

    def finish(self) -> Outcome:
        """Take the result of the pass that has ended."""
        assert self._done is not None
        outcome = self._done[1]
        self._done = None
        self._num_left = 0 if outcome.fatal is not None else self._num_left - 1
        self._began_s = time.monotonic() if self._num_left else None
        return outcome

    @property
    def busy_for_s(self) -> float:
        """Time that the engine has been loading or running the current pass, by the clock."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    @property
    def lost(self) -> str | None:
        """Why the engine cannot go on: for example, because a process of it has ended."""
        return getattr(self.engine, "lost", None)

    def fileno(self) -> int:
        """Readable when the engine is loaded, and when a pass has ended."""
        return self._readable

    def close(self) -> None:
        """End the thread after the current step."""
        self._steps.put(None)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            os.close(self._readable)
            os.close(self._writable)

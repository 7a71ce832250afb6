"""How a worker lets its engine work: for as long as it takes, or for as long as is emulated.

Both take one batch at a time and say when it is through. A worker's loop goes on meanwhile: it
hears of the coordinator's end, and says that it is there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from helixreal.engines.engine import Engine, Payload, Row
from helixsim.control.batching import Batch
from helixsim.physics import StepTimer


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers to run on a batch.

    Attributes
    ----------
    received_tokens
        Tokens that came to the node since it last began at its first layer; emulation bills
        their coming to this batch.
    """

    start_layer: int
    end_layer: int
    received_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch: payloads or, if the engine failed, why."""

    payloads: list[Payload]
    failure: BaseException | None = None


class Runner(Protocol):
    """Lets the engine of a worker work.

    Attributes
    ----------
    engine
        The engine, or None until it has been loaded.
    slack_s
        By so much, by the clock, may the worker be late without that being billed.
    """

    engine: Engine | None
    slack_s: float

    def start(self, now: float, batch: Batch, rows: Sequence[Row], segment: Segment) -> None:
        """Begin a batch at this time of the run."""
        ...

    @property
    def end_s(self) -> float | None:
        """When the batch that runs is through, in time of the run; None if not known yet."""
        ...

    def finish(self) -> Outcome:
        """Take the batch that is through."""
        ...

    @property
    def busy_for_s(self) -> float:
        """How long the engine has been at what it does, by the clock."""
        ...

    def fileno(self) -> int:
        """What becomes readable when something is through; -1 if nothing does."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class TimedRunner:
    """For the emulated engine: a batch is through when the latency profile says so."""

    slack_s = 0.02

    def __init__(self, engine: Engine, timer: StepTimer) -> None:
        self.engine: Engine | None = engine
        self._timer = timer
        self._payloads: list[Payload] = []
        self._end_s: float | None = None

    def start(self, now: float, batch: Batch, rows: Sequence[Row], segment: Segment) -> None:
        """Begin a batch at this time of the run."""
        assert self.engine is not None
        num_layers = segment.end_layer - segment.start_layer
        self._end_s, _ = self._timer.finish(now, batch, num_layers, segment.received_tokens)
        self._payloads = self.engine.run(rows, segment.start_layer, segment.end_layer)

    @property
    def end_s(self) -> float | None:
        """When the batch that runs is through."""
        return self._end_s

    def finish(self) -> Outcome:
        """Take the batch that is through."""
        self._end_s = None
        return Outcome(self._payloads)

    @property
    def busy_for_s(self) -> float:
        """It never gets stuck."""
        return 0.0

    def fileno(self) -> int:
        """The time tells."""
        return -1

    def close(self) -> None:
        """There is nothing to give back."""


class ThreadRunner:
    """For engines that compute: in a thread of their own.

    Parameters
    ----------
    load
        Makes the engine; called in that thread, to keep its context there.
    now
        The time of the run.
    """

    slack_s = 0.0

    def __init__(self, load: Callable[[], Engine], now: Callable[[], float]) -> None:
        self.engine: Engine | None = None
        self._now = now
        self._tasks: SimpleQueue[tuple[Sequence[Row], Segment] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[float, Outcome]] = SimpleQueue()
        self._done: tuple[float, Outcome] | None = None
        self._began_s: float | None = time.monotonic()
        self._readable, self._writable = os.pipe()
        self.load_failure: BaseException | None = None
        self._thread = Thread(target=self._live, args=(load,), name="engine", daemon=True)
        self._thread.start()

    def _live(self, load: Callable[[], Engine]) -> None:
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
        while (task := self._tasks.get()) is not None:
            rows, segment = task
            try:
                outcome = Outcome(engine.run(rows, segment.start_layer, segment.end_layer))
            except Exception as error:
                outcome = Outcome([], error)
            self._outcomes.put((self._now(), outcome))
            os.write(self._writable, b"x")
        engine.close()

    def start(self, now: float, batch: Batch, rows: Sequence[Row], segment: Segment) -> None:
        """Begin a batch."""
        self._began_s = time.monotonic()
        self._tasks.put((rows, segment))

    @property
    def end_s(self) -> float | None:
        """When the batch was through; None if it is not."""
        if self._done is None and not self._outcomes.empty():
            self._done = self._outcomes.get()
        return None if self._done is None else self._done[0]

    def finish(self) -> Outcome:
        """Take the batch that is through."""
        assert self._done is not None
        outcome = self._done[1]
        self._done = self._began_s = None
        return outcome

    @property
    def busy_for_s(self) -> float:
        """How long the engine has been at what it does, by the clock."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    def fileno(self) -> int:
        """Readable when the engine is loaded, and when a batch is through."""
        return self._readable

    def close(self) -> None:
        """End the thread once its batch is through."""
        self._tasks.put(None)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            os.close(self._readable)
            os.close(self._writable)

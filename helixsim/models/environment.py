"""A SimPy environment in which events can be put at exact times and re-armed.

SimPy schedules by delay, and ``now + delay`` rounds: two events meant for the same instant may
end up a bit apart. Here an event goes to an absolute time. Among events of the same instant
the one goes first that was created first in the modelled system, which is not always the one
that was pushed first here; the heap's priority field carries that creation time.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

import simpy


class ExactEnvironment(simpy.Environment):
    """A SimPy environment that runs up to and including a given time."""

    def next_number(self) -> int:
        """Number whatever happens, in order of its happening."""
        return next(self._eid)

    def run_through(self, until: float = inf) -> None:
        """Process every event up to and including `until`, then stand at that time.

        With `until` infinite, the run ends when no event is left, at the time of the last one.
        """
        queue = self._queue
        while queue and queue[0][0] <= until:
            self._now, _, _, event = heappop(queue)
            callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
            for callback in callbacks:
                callback(event)
            if not event._ok and not event.defused:
                raise event._value
        if until != inf:
            self._now = until


class Alarm(simpy.Event):
    """An event that can be set off again and again, at exact times.

    It may stand in the queue several times at once. Its handler is called for each.

    Parameters
    ----------
    environment
        Where time passes.
    handler
        Called without arguments when the alarm goes off.
    """

    def __init__(self, environment: ExactEnvironment, handler: Callable[[], None]) -> None:
        super().__init__(environment)
        self._ok = True
        self._value = None
        self._environment = environment
        self._handler = handler
        self._again = [self._ring]
        self.callbacks = self._again  # type: ignore[assignment]

    def set(self, at: float, created: float, number: int | None = None) -> None:
        """Go off at time `at`.

        Events of the same instant go in order of `created`, then of `number`, which is drawn
        now from the environment's own unless it is given.
        """
        environment = self._environment
        if number is None:
            number = environment.next_number()
        heappush(environment._queue, (at, created, number, self))  # type: ignore[misc]

    def _ring(self, _: simpy.Event) -> None:
        self.callbacks = self._again  # type: ignore[assignment]
        self._handler()

"""A SimPy environment in which events can be put at exact times and re-armed.

SimPy schedules by delay, and ``now + delay`` rounds: two events meant for the same instant may
end up a bit apart. Here an event goes to an absolute time. Among events of the same instant
the one goes first that was created first in the modelled system, which is not always the one
that was pushed first here; the heap's priority field carries that creation time.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf, nextafter

import simpy


class ExactEnvironment(simpy.Environment):
    """A SimPy environment that runs up to and including a given time.

    Attributes
    ----------
    next_number
        Numbers whatever happens, in order of its happening: SimPy's own count of events.
    stopping
        Set it, and the run ends after the event that is being processed.
    until_s
        Events up to and including this time are being processed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.until_s = inf
        self.next_number: Callable[[], int] = self._eid.__next__
        self.stopping = False

    def run_through(self, until: float = inf) -> None:
        """Process every event up to and including `until`, then stand at that time.

        Without an end, or told to stop, it stands at the time of the last event.
        """
        queue = self._queue
        self.until_s = until
        while queue and queue[0][0] <= until:
            if self.stopping:
                return
            self._now, _, _, event = heappop(queue)
            if event.__class__ is ReusableEvent:  # nearly all are
                event.handler()
            else:
                self._call_back(event)
        self.until_s = inf
        if until != inf:
            self._now = until

    def run_while(self, goes_on: Callable[[], bool]) -> None:
        """Process events while there are any and a condition holds; stand at the last one."""
        while self._queue and not self.stopping and goes_on():
            self.step()

    @property
    def next_s(self) -> float:
        """Before this time nothing happens but for what the caller does; infinite without an event.

        An instant after the end of the run, if that comes first.
        """
        due = self._queue[0][0] if self._queue else inf
        return due if due <= self.until_s else nextafter(self.until_s, inf)

    def step(self) -> None:
        """Process the next event."""
        self._now, _, _, event = heappop(self._queue)
        if event.__class__ is ReusableEvent:
            event.handler()
        else:
            self._call_back(event)

    def _call_back(self, event: simpy.Event) -> None:
        """Do as SimPy does with an event of its own."""
        callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
        for callback in callbacks:
            callback(event)
        if not event._ok and not event.defused:
            raise event._value

    @property
    def is_waited_for(self) -> bool:
        """Whether any event is scheduled: whether anything can still happen in the model."""
        return any(entry[3].__class__ is ReusableEvent for entry in self._queue)


class ReusableEvent(simpy.Event):
    """An event that can be scheduled again and again, at exact times.

    It may stand in the queue several times at once; its handler is called for each.

    Attributes
    ----------
    handler
        Called without arguments when the event happens.
    """

    __slots__ = ("_queue", "handler", "next_number")

    def __init__(self, environment: ExactEnvironment, handler: Callable[[], None]) -> None:
        super().__init__(environment)
        self.handler = handler
        self._queue = environment._queue
        self.next_number = environment.next_number

    def schedule(self, at: float, created: float) -> None:
        """Happen at time `at`; among events of that instant, in order of `created`."""
        heappush(self._queue, (at, created, self.next_number(), self))  # type: ignore[misc]

    def schedule_numbered(self, at: float, created: float, number: int) -> None:
        """Happen at time `at` for what has been numbered before; the number breaks ties."""
        heappush(self._queue, (at, created, number, self))  # type: ignore[misc]

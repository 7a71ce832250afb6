"""When an idle node begins a step of few decodes: a wait for the requests right behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Protocol

from helixsim.control.node_schedulers.composition import StepComposer
from helixsim.control.node_schedulers.scheduler import NodeScheduler


class ComposingScheduler(NodeScheduler, Protocol):
    """A node scheduler that limits its steps by what it sees.

    Attributes
    ----------
    composer
        Says what a step may take, and how long it may wait.
    """

    composer: StepComposer

    def waits_for_more(self) -> bool:
        """Whether the next step would be of decodes only, and of fewer than it may have."""
        ...


class BurstWait:
    """Says when a node begins its next step, and keeps its composer informed.

    It waits until nothing has arrived for a moment. Where arrivals are simulated, that moment is
    known in advance; a node that cannot look ahead asks again at every arrival.

    Parameters
    ----------
    scheduler
        Composes the steps.
    last_of_burst
        :func:`last_of_burst` over the arrivals that are known and have not been taken in.

    Attributes
    ----------
    composer
        The scheduler's.
    """

    def __init__(
        self,
        scheduler: ComposingScheduler,
        last_of_burst: Callable[[float, float, float], float],
    ) -> None:
        self._scheduler = scheduler
        self.composer = scheduler.composer
        self._last_of_burst = last_of_burst
        self._last_arrival_s = -inf
        self._could_begin_s = inf
        self._quiet_s = 0.0
        self._settled_s = -inf

    def arrived(self, num_requests: int, span_s: float, last_s: float) -> None:
        """Take note of requests that came one behind the other, and when the last did."""
        if num_requests > 1:
            self.composer.arrived(num_requests, span_s)
        self._last_arrival_s = max(self._last_arrival_s, last_s)

    def begins_s(self, now: float) -> float:
        """When the next step begins, not before now, unless something more arrives till then."""
        if not self._scheduler.waits_for_more():
            self._could_begin_s = inf
            return now
        if now == self._settled_s and self._last_arrival_s < now:
            return now  # nothing has come at the very end of the wait
        begins_s = self._end_s(now, self._last_arrival_s)
        return begins_s if begins_s > now else now

    def begins_after_s(self, first_s: float) -> float:
        """When the step of an idle node begins for which decodes arrive from `first_s` on."""
        self._settled_s = self._end_s(first_s, first_s)
        return self._settled_s

    def _end_s(self, first_s: float, last_s: float) -> float:
        """The end of the wait, which goes by what was usual when it began."""
        if first_s < self._could_begin_s:
            if self._could_begin_s == inf:
                self._quiet_s = self.composer.quiet_s
            self._could_begin_s = first_s
        quiet_s = self._quiet_s
        if not quiet_s:
            return first_s
        end_s = self._could_begin_s + self.composer.max_wait_s
        return min(self._last_of_burst(last_s, quiet_s, end_s) + quiet_s, end_s)

    def has_begun(self) -> None:
        """Take note of a step that begins."""
        self._could_begin_s = inf


def last_of_burst(arrivals: Iterable[float], since_s: float, gap_s: float, until_s: float) -> float:
    """The last of the arrivals that follow `since_s` and one another within a gap.

    None of them comes after `until_s`; `since_s` if none comes at all.
    """
    last_s = since_s
    for arrival in sorted(arrivals):
        if arrival > until_s or arrival - last_s > gap_s:
            break
        last_s = arrival
    return last_s

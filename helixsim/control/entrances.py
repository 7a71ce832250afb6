"""At which front end each request enters, where a cluster has several."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from helixsim.control.load import Arrival, LoadGenerator

if TYPE_CHECKING:
    from random import Random


class Entrances:
    """A load generator whose requests enter at front ends, by their shares.

    A request whose front end is known enters there; one that follows another, in a conversation,
    enters where that did; for all others it is drawn.

    Parameters
    ----------
    load_generator
        Says when requests come.
    shares
        Share of each front end; they add up to 1.
    rng
        A random stream of its own: the same requests come, however many front ends there are.
    """

    def __init__(self, load_generator: LoadGenerator, shares: Sequence[float], rng: Random) -> None:
        self._load_generator = load_generator
        self._ends = list(accumulate(shares))
        self._rng = rng
        self._front_ends = array("L")  # of all requests, which are numbered as they are created

    def opening(self) -> Iterator[Arrival]:
        """The requests that are there when the run begins, in order of creation."""
        return map(self._placed, self._load_generator.opening())

    def later(self) -> Iterator[Arrival]:
        """The requests that come at times of their own, in order of time."""
        return map(self._placed, self._load_generator.later())

    def after_prompt(self, now: float, share: float | None, index: int) -> Arrival | None:
        """What comes because a prompt is through."""
        arrival = self._load_generator.after_prompt(now, share, index)
        return None if arrival is None else self._placed(arrival)

    def after_end(self, now: float, share: float | None, index: int | None) -> Arrival | None:
        """What comes because a request has ended."""
        arrival = self._load_generator.after_end(now, share, index)
        return None if arrival is None else self._placed(arrival)

    def _placed(self, arrival: Arrival) -> Arrival:
        front_end = arrival.front_end
        if front_end is None:
            follows = arrival.follows
            front_end = self._draw() if follows is None else self._front_ends[follows]
        self._front_ends.append(front_end)
        return replace(arrival, front_end=front_end)

    def _draw(self) -> int:
        # The last share is what is left: their sum may be a rounding error short of 1.
        return bisect_right(self._ends, self._rng.random(), hi=len(self._ends) - 1)

"""At which front end each request enters, where a cluster has several.

Users send their requests to the front end that is nearest to their region.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from helixsim.control.load import Arrival, LoadGenerator

if TYPE_CHECKING:
    from random import Random

    from helixsim.cluster import Cluster


class Entrances:
    """A load generator whose requests enter at front ends.

    A request of a known region enters at the front end nearest to that; one that follows another,
    in a conversation, enters where that did; for all others it is drawn by shares.

    Parameters
    ----------
    load_generator
        Says when requests come.
    cluster
        The front ends, their shares, and which of them is nearest to a region.
    rng
        A random stream of its own: the same requests come, however many front ends there are.
    """

    def __init__(self, load_generator: LoadGenerator, cluster: Cluster, rng: Random) -> None:
        self._load_generator = load_generator
        self._cluster = cluster
        self._nearest: dict[str, int] = {}
        self._ends = list(accumulate(front_end.share for front_end in cluster.front_ends))
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
        if arrival.follows is not None:
            front_end = self._front_ends[arrival.follows]
        elif arrival.region is not None:
            front_end = self._nearest_to(arrival.region)
        else:
            front_end = self._draw()
        self._front_ends.append(front_end)
        return replace(arrival, front_end=front_end)

    def _nearest_to(self, region: str) -> int:
        if region not in self._nearest:
            self._nearest[region] = self._cluster.nearest_front_end(region)
        return self._nearest[region]

    def _draw(self) -> int:
        # The last share is what is left: their sum may be a rounding error short of 1.
        return bisect_right(self._ends, self._rng.random(), hi=len(self._ends) - 1)

"""Sets of machines in the order of their cost: a best-first search.

A set has n_t machines of each kind t. It is listed if the machines together have what is needed of
each resource (requests per second, layers), also after the loss of any one machine, if that is
asked for. A partial set has decided numbers of the first kinds; its floor is its own cost plus the
least cost of what it still lacks, at the lowest price per unit of the kinds that are undecided.
Fractions of machines are allowed there, so no set that completes it costs less. The search always
continues the partial set of the lowest floor: sets come out in the order of their cost, and the
first is the optimum of the integer program

    minimise sum p_t n_t  subject to  sum a_rt n_t >= need_r,  least_t <= n_t <= most_t.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

_SLACK = 1e-9
"""Relative error of sums of floating-point numbers: a need counts as met this much below it."""
_MOST_STEPS = 200_000

Counts = tuple[int, ...]
"""Number of machines of each kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Machines that are equal for the search.

    Attributes
    ----------
    price
        Cost of one, at least 0.
    amounts
        What one has of each resource, at least 0.
    least, most
        Limits on their number.
    """

    price: float
    amounts: tuple[float, ...]
    least: int = 0
    most: int = 10_000


def _has(kinds: Sequence[Kind], counts: Counts, resource: int) -> float:
    """What a set has of a resource; amounts may be infinite."""
    return sum(kind.amounts[resource] * n for kind, n in zip(kinds, counts, strict=True) if n)


def lacks(kinds: Sequence[Kind], counts: Counts, needs: Sequence[float], survive: int = 0) -> bool:
    """Whether a set, after the loss of any `survive` machines of one kind, has too little."""
    for resource, need in enumerate(needs):
        has = _has(kinds, counts, resource)
        for number, count in enumerate(counts):
            if gone := min(survive, count):
                left = (*counts[:number], count - gone, *counts[number + 1 :])
                has = min(has, _has(kinds, left, resource))
        if has < need * (1 - _SLACK):
            return True
    return False


@dataclass
class CheapestSets:
    """Lists the sets that have what is needed, the cheapest first.

    Attributes
    ----------
    kinds, needs
        The kinds of machines, and the amount that is needed of each resource.
    survive
        Machines that may be lost, 0 or 1.
    most_steps
        Partial sets that are looked at before the search gives up.
    floor
        No set that has not been listed so far costs less; infinite if there is no other.
    """

    kinds: Sequence[Kind]
    needs: Sequence[float]
    survive: int = 0
    most_steps: int = _MOST_STEPS
    floor: float = field(default=0.0, init=False)

    def __iter__(self) -> Iterator[tuple[float, Counts]]:
        """Yield costs and sets. Of equal costs, sets with fewer machines come first."""
        first = tuple(kind.least for kind in self.kinds)
        # (floor, machines, kinds that are decided, set): the rest of an entry is never compared
        # where floors and numbers are equal but by the set itself, so that the order is fixed.
        heap = [(self._floor(first, 0), sum(first), 0, first)]
        for _ in range(self.most_steps):
            if not heap or heap[0][0] == inf:
                self.floor = inf
                return
            self.floor, machines, decided, counts = heappop(heap)
            if decided == len(self.kinds):
                if not lacks(self.kinds, counts, self.needs, self.survive):
                    yield self.cost(counts), counts
                continue
            heappush(heap, (self._floor(counts, decided + 1), machines, decided + 1, counts))
            if counts[decided] < self.kinds[decided].most:
                more = (*counts[:decided], counts[decided] + 1, *counts[decided + 1 :])
                heappush(heap, (self._floor(more, decided), machines + 1, decided, more))

    def cost(self, counts: Counts) -> float:
        """Cost of a set."""
        return sum(kind.price * n for kind, n in zip(self.kinds, counts, strict=True))

    def _floor(self, counts: Counts, decided: int) -> float:
        """Least cost of a set with these numbers of the decided kinds, and of others or more."""
        rest = 0.0
        for resource, need in enumerate(self.needs):
            has = _has(self.kinds, counts, resource)
            missing = need * (1 - _SLACK) - has
            if missing <= 0:
                continue
            prices, room = [inf], 0.0
            for number in range(decided, len(self.kinds)):
                kind = self.kinds[number]
                left = kind.most - counts[number]
                if left and kind.amounts[resource]:
                    prices.append(kind.price / kind.amounts[resource])
                    room += left * kind.amounts[resource]
            rest = max(rest, missing * min(prices) if room >= missing else inf)
        return self.cost(counts) + rest

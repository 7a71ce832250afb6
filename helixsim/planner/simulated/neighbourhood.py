"""Random small changes of a placement, for annealing and for the search by trial.

Placements are aligned: the nodes start and end at a few layers, the *points*. Changes move points,
or nodes between points.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.simulated.allowed import allowed

_Change = Callable[["Neighbours", dict[int, tuple[int, int]], Random], None]


class Neighbours:
    """Draws neighbours of placements of one problem.

    Parameters
    ----------
    problem
        The planning problem.
    max_stages
        Most nodes of a route; None for any number.
    budget
        How many changes a neighbour has, and how often drawing is attempted.

    Attributes
    ----------
    max_stages
        As given.
    """

    def __init__(
        self,
        problem: PlanningProblem,
        max_stages: int | None = None,
        budget: SearchBudget = DEFAULT_BUDGET,
    ) -> None:
        self.problem = problem
        self._budget = budget
        self.max_stages = max_stages
        self._num_layers = problem.num_layers
        self._num_nodes = len(problem)
        self._room = [problem.max_layers(node) for node in range(len(problem))]

    def draw(self, ranges: Ranges, rng: Random) -> dict[int, tuple[int, int]]:
        """Draw a placement that differs by a few changes and has a route through all layers.

        It keeps to the problem's constraints. Nodes on no route are left out. If no valid neighbour
        is found, the placement itself is returned.
        """
        for _ in range(self._budget.draw_tries):
            changed = dict(ranges)
            for _ in range(rng.choice(self._budget.draw_changes)):
                rng.choice(_CHANGES)(self, changed, rng)
            if changed != ranges and self._fits(changed):
                cleaned = allowed(self.problem, changed, self.max_stages)
                if cleaned and cleaned != ranges:
                    return cleaned
        return dict(ranges)

    def _fits(self, ranges: Ranges) -> bool:
        room, last = self._room, self._num_layers
        return all(
            0 <= start < end <= last and end - start <= room[node]
            for node, (start, end) in ranges.items()
        )

    # -- changes -----------------------------------------------------------------------------

    def _swap(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Exchange the layers of two nodes, the second of which may hold none."""
        a, b = rng.choice(sorted(ranges)), rng.randrange(self._num_nodes)
        theirs = ranges.pop(b, None)
        if a == b:
            ranges[a] = theirs or ranges[a]
            return
        ranges[b] = ranges.pop(a)
        if theirs is not None:
            ranges[a] = theirs

    def _copy(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Give a node the same layers as another one."""
        ranges[rng.randrange(self._num_nodes)] = ranges[rng.choice(sorted(ranges))]

    def _span(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Give a node the layers between two points."""
        node = rng.randrange(self._num_nodes)
        points = _points(ranges)
        if len(points) < 2:  # an earlier shift of this draw has joined all points
            return
        start = rng.choice(points[:-1])
        ends = [point for point in points if start < point <= start + self._room[node]]
        if ends:
            ranges[node] = (start, rng.choice(ends))

    def _bridge(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Give two nodes the layers between two points, one after the other."""
        first, second = rng.randrange(self._num_nodes), rng.randrange(self._num_nodes)
        points = _points(ranges)
        if first == second or len(points) < 2:
            return
        start = rng.choice(points[:-1])
        most = self._room[first] + self._room[second]
        ends = [point for point in points if start + 1 < point <= start + most]
        if not ends:
            return
        end = rng.choice(ends)
        low, high = (
            max(start + 1, end - self._room[second]),
            min(end - 1, start + self._room[first]),
        )
        middle = rng.randint(low, high)
        ranges[first], ranges[second] = (start, middle), (middle, end)

    def _shift(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Move a point, or several consecutive points, by one layer."""
        points = _points(ranges)[1:-1]
        if not points:
            return
        first = rng.randrange(len(points))
        last = rng.randrange(len(points)) if rng.random() < 0.5 else first
        moved = frozenset(points[min(first, last) : max(first, last) + 1])
        by = rng.choice((-1, 1))
        for node, (start, end) in ranges.items():
            ranges[node] = (start + by * (start in moved), end + by * (end in moved))

    def _split(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Split the layers of nodes that hold the same ones, at a random layer."""
        start, end = ranges[rng.choice(sorted(ranges))]
        alike = [node for node in sorted(ranges) if ranges[node] == (start, end)]
        if len(alike) < 2 or end - start < 2:
            return
        middle = rng.randrange(start + 1, end)
        for node in alike:
            ranges[node] = (start, middle) if rng.random() < 0.5 else (middle, end)

    def _join(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Give two consecutive groups of nodes the layers of both, in parallel."""
        start, middle = ranges[rng.choice(sorted(ranges))]
        after = sorted({span for span in ranges.values() if span[0] == middle})
        if not after:
            return
        last = rng.choice(after)
        for node, span in ranges.items():
            if span in ((start, middle), last):
                ranges[node] = (start, last[1])

    def _reorder(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Exchange two consecutive parts of the layers, cut at points that all routes pass."""
        cuts = _cuts(ranges, self._num_layers)
        if len(cuts) < 3:
            return
        chosen = sorted(rng.sample(range(len(cuts)), 3)) if len(cuts) > 3 else [0, 1, 2]
        a, b, c = (cuts[index] for index in chosen)
        for node, (start, end) in ranges.items():
            if a <= start and end <= b:
                ranges[node] = (start + c - b, end + c - b)
            elif b <= start and end <= c:
                ranges[node] = (start - (b - a), end - (b - a))

    def _remove(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Remove a node from the placement."""
        if len(ranges) > 1:
            ranges.pop(rng.choice(sorted(ranges)))


_CHANGES: tuple[_Change, ...] = (
    Neighbours._swap,
    Neighbours._swap,
    Neighbours._copy,
    Neighbours._span,
    Neighbours._bridge,
    Neighbours._shift,
    Neighbours._shift,
    Neighbours._shift,
    Neighbours._split,
    Neighbours._join,
    Neighbours._reorder,
    Neighbours._remove,
)
"""The changes; repeated entries are drawn more often."""


def _points(ranges: Ranges) -> list[int]:
    return sorted({point for span in ranges.values() for point in span})


def _cuts(ranges: Ranges, num_layers: int) -> list[int]:
    """Points that no node's layers extend across."""
    crossed = [0] * (num_layers + 1)
    for start, end in ranges.values():
        for layer in range(start + 1, end):
            crossed[layer] += 1
    return [point for point in _points(ranges) if not crossed[point]]

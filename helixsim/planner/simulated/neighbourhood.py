"""Small changes of a placement: what a search by trial tries next.

A placement is kept aligned: its nodes begin and end at a few layers, and changes move these
points, or nodes between them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from helixsim.planner.max_flow.dinic import longest_route
from helixsim.planner.problem import PlanningProblem, Ranges

_Change = Callable[["Neighbours", dict[int, tuple[int, int]], Random], None]

_TRIES = 60
_MOST_CHANGES = 3


class Neighbours:
    """Draws neighbours of placements of one problem.

    Parameters
    ----------
    problem
        What is planned.
    max_stages
        The most nodes that a request may pass; None for any number.
    """

    def __init__(self, problem: PlanningProblem, max_stages: int | None = None) -> None:
        self.problem = problem
        self._max_stages = max_stages
        self._num_layers = problem.num_layers
        self._num_nodes = len(problem)
        self._room = [problem.max_layers(node) for node in range(len(problem))]

    def draw(self, ranges: Ranges, rng: Random) -> dict[int, tuple[int, int]]:
        """A placement that differs in one to three changes and leads through all layers.

        Nodes that lie on no way through are left out of it. If no change is found, the
        placement itself is returned.
        """
        for _ in range(_TRIES):
            changed = dict(ranges)
            for _ in range(rng.choice((1, 1, 1, 2, 2, _MOST_CHANGES))):
                rng.choice(_CHANGES)(self, changed, rng)
            if changed != ranges and self._fits(changed):
                cleaned = on_a_way(changed, self._num_layers)
                if cleaned and cleaned != ranges and self._short_enough(cleaned):
                    return cleaned
        return dict(ranges)

    def _fits(self, ranges: Ranges) -> bool:
        room, last = self._room, self._num_layers
        return all(
            0 <= start < end <= last and end - start <= room[node]
            for node, (start, end) in ranges.items()
        )

    def _short_enough(self, ranges: Ranges) -> bool:
        return self._max_stages is None or longest_route(self.problem, ranges) <= self._max_stages

    # -- changes -----------------------------------------------------------------------------

    def _swap(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Two nodes take each other's layers; one of them may hold none."""
        a, b = rng.choice(sorted(ranges)), rng.randrange(self._num_nodes)
        theirs = ranges.pop(b, None)
        if a == b:
            ranges[a] = theirs or ranges[a]
            return
        ranges[b] = ranges.pop(a)
        if theirs is not None:
            ranges[a] = theirs

    def _follow(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """A node takes the same layers as another."""
        ranges[rng.randrange(self._num_nodes)] = ranges[rng.choice(sorted(ranges))]

    def _span(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """A node takes what lies between two points."""
        node = rng.randrange(self._num_nodes)
        points = _points(ranges)
        if len(points) < 2:  # a shift before this one has left nothing between two points
            return
        start = rng.choice(points[:-1])
        ends = [point for point in points if start < point <= start + self._room[node]]
        if ends:
            ranges[node] = (start, rng.choice(ends))

    def _shift(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """A point, or all points of a stretch, move by a layer: a layer changes hands."""
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
        """Nodes that hold the same layers divide these among them."""
        start, end = ranges[rng.choice(sorted(ranges))]
        alike = [node for node in sorted(ranges) if ranges[node] == (start, end)]
        if len(alike) < 2 or end - start < 2:
            return
        middle = rng.randrange(start + 1, end)
        for node in alike:
            ranges[node] = (start, middle) if rng.random() < 0.5 else (middle, end)

    def _join(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Nodes that follow each other hold the layers of both, side by side."""
        start, middle = ranges[rng.choice(sorted(ranges))]
        after = sorted({span for span in ranges.values() if span[0] == middle})
        if not after:
            return
        last = rng.choice(after)
        for node, span in ranges.items():
            if span in ((start, middle), last):
                ranges[node] = (start, last[1])

    def _reorder(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """Two stretches between points that all ways pass change places."""
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

    def _rest(self, ranges: dict[int, tuple[int, int]], rng: Random) -> None:
        """A node holds nothing."""
        if len(ranges) > 1:
            ranges.pop(rng.choice(sorted(ranges)))


_CHANGES: tuple[_Change, ...] = (
    Neighbours._swap,
    Neighbours._swap,
    Neighbours._follow,
    Neighbours._span,
    Neighbours._shift,
    Neighbours._shift,
    Neighbours._shift,
    Neighbours._split,
    Neighbours._join,
    Neighbours._reorder,
    Neighbours._rest,
)
"""Every kind of change, as often as it is drawn."""


def _points(ranges: Ranges) -> list[int]:
    return sorted({point for span in ranges.values() for point in span})


def _cuts(ranges: Ranges, num_layers: int) -> list[int]:
    """Points that no node's layers reach across."""
    crossed = [0] * (num_layers + 1)
    for start, end in ranges.values():
        for layer in range(start + 1, end):
            crossed[layer] += 1
    return [point for point in _points(ranges) if not crossed[point]]


def on_a_way(ranges: Ranges, num_layers: int) -> dict[int, tuple[int, int]]:
    """The nodes on some way from layer 0 through the last; empty if there is no way."""
    spans = sorted(set(ranges.values()))
    reached = {0}
    for start, end in spans:
        if start in reached:
            reached.add(end)
    returning = {num_layers}
    for start, end in sorted(spans, key=lambda span: -span[1]):
        if end in returning:
            returning.add(start)
    useful = reached & returning
    if num_layers not in reached:
        return {}
    return {node: span for node, span in ranges.items() if span[0] in useful and span[1] in useful}

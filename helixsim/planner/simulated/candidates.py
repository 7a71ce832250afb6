"""Placements that are compared by simulation, and what the simulations said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from helixsim.placement.placement import Placement
from helixsim.placement.topology import Topology
from helixsim.planner.objective import Figures, Goal, mean_figures

LATENCY = "decode_latency_s.mean"
THROUGHPUT = "decode_tokens_per_s"


@dataclass(eq=False)
class Candidate:
    """A placement and its trials.

    Attributes
    ----------
    label
        Where it comes from.
    ranges, placement
        What it is.
    brief, full
        Figures of the brief trial, and of runs of the scenario's length, seed by seed.
    max_flow_tokens_per_s, stages
        Its maximum flow, and the most nodes on a route.
    """

    label: str
    ranges: Mapping[int, tuple[int, int]]
    placement: Placement
    max_flow_tokens_per_s: float
    stages: int
    brief: list[Figures] = field(default_factory=list)
    full: list[Figures] = field(default_factory=list)

    @property
    def key(self) -> object:
        """Equal for equal placements."""
        return tuple(sorted(self.ranges.items())), self.placement.links

    @property
    def figures(self) -> dict[str, float]:
        """Means over seeds, of the full trials if there are any."""
        return mean_figures(self.full or self.brief)

    def score(self, goal: Goal) -> float:
        """Score of the first trial of full length; 0 without one."""
        return goal.score(self.full[0]) if self.full else 0.0

    def brief_score(self, goal: Goal) -> float:
        """Score of the brief trial; 0 without one."""
        return goal.score(self.brief[0]) if self.brief else 0.0


class Pool:
    """All candidates of a search, each placement once."""

    def __init__(self) -> None:
        self._by_key: dict[object, Candidate] = {}

    def __iter__(self) -> Iterator[Candidate]:
        """Iterate in order of their coming."""
        return iter(self._by_key.values())

    def __len__(self) -> int:
        """Count them."""
        return len(self._by_key)

    def add(self, candidate: Candidate) -> bool:
        """Add one; False if the same placement is there already."""
        if candidate.key in self._by_key:
            return False
        self._by_key[candidate.key] = candidate
        return True

    def best(self, goal: Goal, count: int) -> list[Candidate]:
        """The best: by runs of full length, and after these by brief ones."""
        tried = [candidate for candidate in self if candidate.brief]
        return sorted(
            tried,
            key=lambda each: (not each.full, -each.score(goal), -each.brief_score(goal)),
        )[:count]


def most_stages(topology: Topology) -> int:
    """The most nodes on a route; unlike from ranges alone, also where requests enter midway."""
    most = [0] * len(topology.nodes)
    for node in sorted(topology.nodes, key=lambda node: node.end_layer):
        for link in topology.incoming[node.index]:
            before = 0 if link.source == topology.coordinator else most[link.source]
            if before or link.source == topology.coordinator:
                most[node.index] = max(most[node.index], before + 1)
    return max((most[link.source] for link in topology.incoming[topology.coordinator]), default=0)


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other beats in both throughput and decode latency, fastest answers first."""
    measured = [each for each in candidates if LATENCY in each.figures]
    ordered = sorted(measured, key=lambda each: (each.figures[LATENCY], -each.figures[THROUGHPUT]))
    found: list[Candidate] = []
    for candidate in ordered:
        if not found or candidate.figures[THROUGHPUT] > found[-1].figures[THROUGHPUT]:
            found.append(candidate)
    return found


def spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Some of a front, evenly from one end to the other."""
    if len(candidates) <= count:
        return list(candidates)
    last = len(candidates) - 1
    return [candidates[round(index * last / (count - 1))] for index in range(count)]

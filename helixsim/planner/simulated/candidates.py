"""Placements that are compared by simulation, with the figures of their runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from helixsim.placement.placement import Placement
from helixsim.placement.topology import Topology
from helixsim.planner.objective import Figures, Objective, mean_figures

LATENCY = "decode_latency_s.mean"
THROUGHPUT = "decode_tokens_per_s"


@dataclass(eq=False)
class Candidate:
    """A placement and the figures of its simulations.

    Attributes
    ----------
    label
        Its origin: ``own``, the name of a method, ``proposal`` or ``trial`` with a number.
    ranges, placement
        The placement, by node number and by node name.
    max_flow_tokens_per_s, stages
        Its maximum flow, and the most nodes of a route.
    brief, full
        Figures of the brief run, and of runs of the scenario's length, one per seed.
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
        """A hashable key, equal for equal placements."""
        return tuple(sorted(self.ranges.items())), self.placement.links

    @property
    def figures(self) -> dict[str, float]:
        """Means over seeds, of the full runs if there are any, otherwise of the brief run."""
        return mean_figures(self.full or self.brief)

    def score(self, objective: Objective) -> float:
        """Score of the first full run; 0 without one."""
        return objective.score(self.full[0]) if self.full else 0.0

    def brief_score(self, objective: Objective) -> float:
        """Score of the brief run; 0 without one."""
        return objective.score(self.brief[0]) if self.brief else 0.0


class CandidatePool:
    """All candidates of a search; each placement is in it once."""

    def __init__(self) -> None:
        self._by_key: dict[object, Candidate] = {}

    def __iter__(self) -> Iterator[Candidate]:
        """Iterate in the order in which candidates were added."""
        return iter(self._by_key.values())

    def __len__(self) -> int:
        """Count the candidates."""
        return len(self._by_key)

    def add(self, candidate: Candidate) -> bool:
        """Add a candidate; False if the pool has the same placement already."""
        if candidate.key in self._by_key:
            return False
        self._by_key[candidate.key] = candidate
        return True

    def best(self, objective: Objective, count: int) -> list[Candidate]:
        """The best candidates: by full runs first, candidates without one by their brief run."""
        tried = [candidate for candidate in self if candidate.brief]
        return sorted(
            tried,
            key=lambda each: (not each.full, -each.score(objective), -each.brief_score(objective)),
        )[:count]


def most_stages(topology: Topology) -> int:
    """The most nodes of a route, also where requests enter a node at a later layer."""
    most = [0] * len(topology.nodes)
    for node in sorted(topology.nodes, key=lambda node: node.end_layer):
        for link in topology.incoming[node.index]:
            before = 0 if topology.is_front_end(link.source) else most[link.source]
            if before or topology.is_front_end(link.source):
                most[node.index] = max(most[node.index], before + 1)
    last = (link.source for home in topology.front_end_machines for link in topology.incoming[home])
    return max((most[node] for node in last), default=0)


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The Pareto front of throughput and decode latency, lowest latency first."""
    measured = [each for each in candidates if LATENCY in each.figures]
    ordered = sorted(measured, key=lambda each: (each.figures[LATENCY], -each.figures[THROUGHPUT]))
    found: list[Candidate] = []
    for candidate in ordered:
        if not found or candidate.figures[THROUGHPUT] > found[-1].figures[THROUGHPUT]:
            found.append(candidate)
    return found


def spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """At most `count` of the candidates, evenly spaced in their order."""
    if len(candidates) <= count:
        return list(candidates)
    last = len(candidates) - 1
    return [candidates[round(index * last / (count - 1))] for index in range(count)]

"""Placements that are compared by simulation, with the figures of their runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from helixsim.placement.placement import Placement
from helixsim.placement.topology import Topology
from helixsim.planner.objective import Figures, Objective, mean_figures
from helixsim.planner.simulated.estimates import Estimate

LATENCY = "decode_latency_s.mean"
THROUGHPUT = "decode_tokens_per_s"
OWN = "own"
"""Label of the scenario's own placement."""
TILES = "tiles"
"""Beginning of the label of a placement that is put together from tiles."""


@dataclass(eq=False)
class Candidate:
    """A placement and the figures of its simulations.

    Attributes
    ----------
    label
        Its origin: ``own``, the name of a method, ``proposal`` with a number, or ``tiles`` with
        their number and sizes.
    ranges, placement
        The placement, by node number and by node name.
    key
        Equal for placements that differ only by an exchange of alike nodes.
    max_flow_tokens_per_s, stages
        Its maximum flow, and the most nodes of a route.
    move_cost
        What it costs to move to it, in the unit of the optimised figure.
    estimate
        The surrogate's estimate; None for a placement that it cannot estimate.
    runs
        Seed -> figures of the run with that seed, of the scenario's length.
    looks
        Of the first of these runs: simulated time in seconds -> figures up to then.
    stopped_s, stopped
        A run that was stopped: the simulated time, and the figures up to then.
    projected
        What a run that was stopped would have come to, as the best one has gone on.
    """

    label: str
    ranges: Mapping[int, tuple[int, int]]
    placement: Placement
    key: object
    max_flow_tokens_per_s: float
    stages: int
    move_cost: float = 0.0
    estimate: Estimate | None = None
    runs: dict[int, Figures] = field(default_factory=dict)
    looks: Mapping[float, Figures] = field(default_factory=dict)
    stopped_s: float = 0.0
    stopped: Figures = field(default_factory=dict)
    projected: Figures = field(default_factory=dict)

    @property
    def is_tried(self) -> bool:
        """Whether a run of it has ended, or was stopped because it was losing."""
        return bool(self.runs or self.projected)

    @property
    def figures(self) -> dict[str, float]:
        """Means over the seeds, or figures of a run that was stopped; empty without a run."""
        return mean_figures(list(self.runs.values())) or mean_figures(
            [self.stopped] if self.stopped else []
        )

    def score(self, objective: Objective) -> float:
        """Mean score over the seeds, or the projected one; 0 without a run."""
        if self.runs:
            return sum(self.run_scores(objective)) / len(self.runs)
        return objective.score(self.projected, self.move_cost) if self.projected else 0.0

    def run_scores(self, objective: Objective) -> list[float]:
        """The score of each run, less the price of moving."""
        return [objective.score(figures, self.move_cost) for figures in self.runs.values()]


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

    def find(self, key: object) -> Candidate | None:
        """The candidate with a key, if there is one."""
        return self._by_key.get(key)

    def add(self, candidate: Candidate) -> bool:
        """Add a candidate; False if the pool has the same placement already."""
        if candidate.key in self._by_key:
            return False
        self._by_key[candidate.key] = candidate
        return True


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
    return [candidates[round(index * last / max(1, count - 1))] for index in range(count)]

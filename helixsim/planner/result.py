"""What planning comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from helixsim.placement.placement import Placement
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import Incumbent
from helixsim.planner.simulated.candidates import LATENCY, THROUGHPUT, Candidate, front


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """A placement that was simulated while planning.

    Attributes
    ----------
    label
        Where it comes from: ``own``, the name of a method, ``proposal``, ``trial``.
    placement
        The placement.
    max_flow_tokens_per_s, stages
        Its maximum flow, and the most nodes on a route.
    seeds, simulated_s
        How many runs its figures are the mean of, and how long each fed requests.
    figures
        Name, as in the summary of a run (``decode_latency_s.mean``), -> mean over seeds.
    on_front
        Whether it was simulated as long and as often as the plan, and no other that was has both
        more decode throughput and less mean decode latency.
    chosen
        Whether it is the plan.
    """

    label: str
    placement: Placement
    max_flow_tokens_per_s: float
    stages: int
    seeds: int
    simulated_s: float
    figures: dict[str, float]
    on_front: bool
    chosen: bool


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan, and how good it is known to be.

    Attributes
    ----------
    method, objective, goal
        What was asked.
    placement
        Which node holds which layers.
    max_flow_tokens_per_s
        Its maximum flow.
    upper_bound_tokens_per_s
        No placement has more; proved.
    stages
        The most nodes on a route.
    seconds
        How long planning took.
    unused
        Nodes that hold nothing.
    trace
        Every placement that was the best so far by flow (objective ``flow``).
    simulated
        With objective ``simulated``, its figures: name -> mean over seeds.
    candidates
        With objective ``simulated``, all placements that were simulated.
    interrupted
        Whether Ctrl-C ended the search.
    notes
        What a user should know, such as limits that could not be kept.
    """

    method: str
    objective: str
    goal: str
    placement: Placement
    max_flow_tokens_per_s: float
    upper_bound_tokens_per_s: float
    stages: int
    seconds: float
    unused: tuple[str, ...]
    optimal: bool
    trace: tuple[Incumbent, ...] = ()
    simulated: dict[str, float] | None = None
    candidates: tuple[CandidateResult, ...] = ()
    interrupted: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def value(self) -> float:
        """The maximum flow, in tokens per second."""
        return self.max_flow_tokens_per_s

    @property
    def bound(self) -> float:
        """The upper bound on the flow, in tokens per second."""
        return self.upper_bound_tokens_per_s

    @property
    def gap(self) -> float:
        """How far the flow may be below the best possible, relative to the bound."""
        return max(0.0, 1 - self.value / self.bound) if self.bound > 0 else 0.0

    @property
    def front(self) -> tuple[CandidateResult, ...]:
        """Candidates that no other beats in throughput and latency, quickest answers first."""
        found = [each for each in self.candidates if each.on_front]
        return tuple(sorted(found, key=lambda each: each.figures[LATENCY]))

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """As ``helixsim plan --json`` prints it; `names` are all nodes of the cluster."""
        bound = self.upper_bound_tokens_per_s
        document: dict[str, Any] = {
            "method": self.method,
            "objective": self.objective,
            "max_flow_tokens_per_s": self.max_flow_tokens_per_s,
            "upper_bound_tokens_per_s": bound if isfinite(bound) else None,
            "optimal": self.optimal,
            "stages": self.stages,
            "seconds": self.seconds,
            "placement": _layers(self.placement, names),
        }
        if self.simulated is not None:
            document["goal"] = self.goal
            document["simulated"] = nested(self.simulated)
            document["seeds"] = max((e.seeds for e in self.candidates if e.chosen), default=0)
            document["front"] = [
                {
                    "label": each.label,
                    "chosen": each.chosen,
                    "stages": each.stages,
                    "max_flow_tokens_per_s": each.max_flow_tokens_per_s,
                    "seeds": each.seeds,
                    **nested(each.figures),
                    "placement": _layers(each.placement, names),
                }
                for each in self.front
            ]
        if self.notes:
            document["notes"] = list(self.notes)
        if self.interrupted:
            document["partial"] = True
        return document

    def rows(self) -> list[dict[str, Any]]:
        """The candidates as rows of a table."""
        return [
            {
                "label": each.label,
                "chosen": each.chosen,
                "on_front": each.on_front,
                "stages": each.stages,
                "max_flow_tokens_per_s": each.max_flow_tokens_per_s,
                "seeds": each.seeds,
                "simulated_s": each.simulated_s,
                **{name.replace(".", "_"): value for name, value in each.figures.items()},
            }
            for each in self.candidates
        ]


def nested(figures: dict[str, float]) -> dict[str, Any]:
    """Figures as in the summary of a run: ``a.mean`` as ``mean`` within ``a``."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        head, _, statistic = name.partition(".")
        if statistic:
            found.setdefault(head, {})[statistic] = value
        else:
            found[head] = value
    return found


def candidate_results(
    candidates: Sequence[Candidate], chosen: Candidate, full_s: float, brief_s: float
) -> tuple[CandidateResult, ...]:
    """What is told of candidates once the search has ended."""
    tried = [each for each in candidates if THROUGHPUT in each.figures]
    # One lucky run must not stand beside means of several: only what was run as often as the
    # plan is compared with it.
    alike = [each for each in tried if len(each.full) == len(chosen.full)]
    best = set(map(id, front(alike)))
    return tuple(
        CandidateResult(
            label=each.label,
            placement=each.placement,
            max_flow_tokens_per_s=each.max_flow_tokens_per_s,
            stages=each.stages,
            seeds=len(each.full or each.brief),
            simulated_s=full_s if each.full else brief_s,
            figures=each.figures,
            on_front=id(each) in best,
            chosen=each is chosen,
        )
        for each in tried
    )


def unused_nodes(problem: PlanningProblem, placement: Placement) -> tuple[str, ...]:
    """Nodes of the cluster that hold nothing."""
    return tuple(name for name in problem.names if name not in placement.layers)


def _layers(placement: Placement, names: Sequence[str]) -> dict[str, list[int] | None]:
    layers = placement.layers
    return {name: list(layers[name]) if name in layers else None for name in names}

"""The result of planning: the plan, its bound, and the simulated candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import isfinite, sqrt
from typing import Any

from helixsim.display import shortened
from helixsim.placement.placement import Placement
from helixsim.planner.figures import OBJECTIVE_FIGURES
from helixsim.planner.objective import MISSED_SHARE, Limit, Objective, counted
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import Incumbent
from helixsim.planner.simulated.candidates import LATENCY, THROUGHPUT, Candidate, front
from helixsim.planner.simulated.standings import pooled_share


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """A placement that was simulated while planning.

    Attributes
    ----------
    label
        Its origin: ``own``, the name of a method, ``proposal`` or ``trial`` with a number.
    placement
        The placement.
    max_flow_tokens_per_s, stages
        Its maximum flow, and the most nodes of a route.
    seeds, simulated_s
        Number of runs that its figures are the means of, and the length of each run in seconds.
    figures
        Name, as in the summary of a run (``decode_latency_s.mean``), -> mean over seeds.
    errors
        Name -> standard deviation of that mean, for decode throughput and mean decode latency, as
        runs with other seeds scatter; empty for a run that was stopped.
    on_front
        Whether it was simulated as long and as often as the plan and is on the Pareto front of
        decode throughput and mean decode latency of such candidates.
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
    errors: dict[str, float]
    on_front: bool
    chosen: bool


@dataclass(frozen=True, slots=True, repr=False)
class PlanResult:
    """A plan, its upper bound, and the candidates that it was chosen from.

    Attributes
    ----------
    method, objective, goal
        The arguments of :func:`~helixsim.planner.plan.plan`.
    placement
        Which node holds which layers.
    max_flow_tokens_per_s
        Its maximum flow.
    upper_bound_tokens_per_s
        Proved upper bound on the maximum flow of any placement; infinite without a proof.
    stages
        The most nodes of a route.
    seconds
        Duration of planning.
    unused
        Names of the nodes that hold no layers.
    optimal
        Whether the maximum flow is proved to be the greatest possible.
    trace
        Every incumbent of the search by flow.
    simulated
        With objective ``simulated``, its figures: name -> mean over seeds.
    candidates
        With objective ``simulated``, all simulated placements.
    interrupted
        Whether Ctrl-C ended the search.
    notes
        Remarks for the user, such as limits that are not kept.
    limits
        The limits on figures.
    counted
        With objective ``simulated``, the figures of the goal and the limits with missed requests
        counted, as the choice does; and the share of missed requests (``missed_share``).
    error
        With objective ``simulated``, the standard deviation of the mean of the goal's figure over
        seeds, relative to it; with one seed, that of runs in general.
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
    limits: tuple[Limit, ...] = ()
    counted: dict[str, float] = field(default_factory=dict)
    error: float | None = None

    @property
    def subject_to(self) -> tuple[str, ...]:
        """The limits, as arguments of :func:`~helixsim.planner.plan.plan`."""
        return tuple(map(str, self.limits))

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
        """Relative distance of the maximum flow to the bound, 0 to 1."""
        return max(0.0, 1 - self.value / self.bound) if self.bound > 0 else 0.0

    @property
    def front(self) -> tuple[CandidateResult, ...]:
        """The candidates on the front, lowest decode latency first."""
        found = [each for each in self.candidates if each.on_front]
        return tuple(sorted(found, key=lambda each: each.figures[LATENCY]))

    def stage_nodes(self) -> dict[tuple[int, int], list[str]]:
        """Layers ``[start, end)`` -> names of the nodes that hold exactly these, in layer order."""
        found: dict[tuple[int, int], list[str]] = {}
        for name, span in sorted(
            self.placement.layers.items(), key=lambda item: (item[1], item[0])
        ):
            found.setdefault(span, []).append(name)
        return found

    def __repr__(self) -> str:
        """The method, the maximum flow, simulated throughput if any, and the nodes in use."""
        parts = [
            f"method={self.method!r}",
            f"max_flow={self.max_flow_tokens_per_s:,.1f} tokens/s",
            *([f"simulated={text}"] if (text := self._decode_throughput()) else []),
            f"nodes={self._nodes_in_use()}",
        ]
        return f"PlanResult({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """A small table of stages and their nodes, for notebooks."""
        facts = [f"max flow {self.max_flow_tokens_per_s:,.1f} tokens/s"]
        if text := self._decode_throughput():
            facts.append(f"simulated {text}")
        facts.append(f"nodes {self._nodes_in_use()}")
        rows = "".join(
            f"<tr><td>[{start}, {end})</td><td>{escape(shortened(names))}</td></tr>"
            for (start, end), names in self.stage_nodes().items()
        )
        return (
            f"<table><caption>Plan by {escape(self.method)}: {'; '.join(facts)}</caption>"
            "<thead><tr><th>layers</th><th>nodes</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )

    def _decode_throughput(self) -> str:
        rate = (self.simulated or {}).get(THROUGHPUT)
        return "" if rate is None else f"{rate:,.1f} decode tokens/s"

    def _nodes_in_use(self) -> str:
        used = len(self.placement.layers)
        return f"{used} of {used + len(self.unused)}"

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The document of ``helixsim plan --json``; `names` are all nodes of the cluster."""
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
            document["counted"] = nested(self.counted)
            document["relative_error"] = self.error
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
        """The candidates as rows of a table, with ``_`` for the dot in names of figures."""
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
                **{name.replace(".", "_") + "_error": e for name, e in each.errors.items()},
            }
            for each in self.candidates
        ]


def nested(figures: dict[str, float]) -> dict[str, Any]:
    """Figures as in the summary of a run: ``a.mean`` as ``mean`` within ``a``."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        *groups, last = name.split(".")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return found


def shown_figures(candidate: Candidate, objective: Objective) -> dict[str, float]:
    """The figures of a candidate, as a run's summary has them, that every plan shows.

    The figures that all runs have, and the figures of the objective.
    """
    figures = candidate.figures
    names = dict.fromkeys([*OBJECTIVE_FIGURES, *objective.figures])
    return {name: figures[name] for name in names if name in figures}


def counted_figures(candidate: Candidate, objective: Objective) -> dict[str, float]:
    """The figures of an objective with missed requests counted, and the share of these."""
    figures = candidate.figures
    found = {name: counted(figures, name) for name in objective.figures if name in figures}
    return found | {MISSED_SHARE: figures.get(MISSED_SHARE, 0.0)}


def candidate_results(
    candidates: Sequence[Candidate], chosen: Candidate, full_s: float, objective: Objective
) -> tuple[CandidateResult, ...]:
    """The results of all simulated candidates.

    Parameters
    ----------
    candidates, chosen
        The candidates of the search, and the plan among them.
    full_s
        Length of a complete run, in seconds.
    objective
        Its figures are shown, too.
    """
    tried = [each for each in candidates if THROUGHPUT in each.figures]
    # Only candidates with as many runs as the plan are compared with it: the best of many single
    # runs is partly the luckiest.
    alike = [each for each in tried if len(each.runs) == len(chosen.runs)]
    best = set(map(id, front(alike)))
    shares = {
        name: pooled_share(
            [run[name] for run in each.runs.values() if name in run] for each in tried
        )
        for name in (THROUGHPUT, LATENCY)
    }
    return tuple(
        CandidateResult(
            label=each.label,
            placement=each.placement,
            max_flow_tokens_per_s=each.max_flow_tokens_per_s,
            stages=each.stages,
            seeds=max(1, len(each.runs)),
            simulated_s=full_s if each.runs else each.stopped_s,
            figures=shown_figures(each, objective),
            errors={
                name: share * each.figures[name] / sqrt(len(each.runs))
                for name, share in shares.items()
                if each.runs and name in each.figures
            },
            on_front=id(each) in best,
            chosen=each is chosen,
        )
        for each in tried
    )


def unused_nodes(problem: PlanningProblem, placement: Placement) -> tuple[str, ...]:
    """Names of the nodes that hold no layers."""
    return tuple(name for name in problem.names if name not in placement.layers)


def _layers(placement: Placement, names: Sequence[str]) -> dict[str, list[int] | None]:
    layers = placement.layers
    return {name: list(layers[name]) if name in layers else None for name in names}

"""The result of sizing: the machines, what was proved and what was tried."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from helixsim.display import short_text, table_html
from helixsim.placement.placement import Placement
from helixsim.planner.objective import Limit
from helixsim.scenario.plain import placement_data
from helixsim.scenario.resolved import Scenario
from helixsim.studies.sizing.machine_sets import Counts
from helixsim.studies.sizing.trials import Trial


@dataclass(frozen=True)
class SizedMachine:
    """One kind of machine.

    Attributes
    ----------
    name
        Its machine type, with the region where several kinds have the same type.
    dollars_per_hour
        Price of one.
    bound_requests_per_s
        One adds no more to what any cluster serves (proved); infinite if no bound is known.
    sustained_requests_per_s
        What one was found to serve within the objectives, in a cluster of such machines only; 0
        if such machines meet them at no rate that was tried, None if it was not measured.
    """

    name: str
    dollars_per_hour: float
    bound_requests_per_s: float
    sustained_requests_per_s: float | None = None


@dataclass(frozen=True)
class SizeResult:
    """The cheapest machines found that meet objectives at a rate.

    Attributes
    ----------
    scenario
        Name of the scenario.
    requests_per_s
        The rate.
    objectives
        Limits on figures.
    survive
        Machines that may be lost.
    kinds
        The kinds of machines to choose from.
    best
        The cheapest set found that meets the objectives, as it was simulated; None if none does.
    lower_bound_dollars_per_hour
        No cheaper set serves the rate (proved, see :mod:`.machine_sets`); infinite if no set does.
    lower_bound_counts
        The set of that cost, of each kind; None if the proof names none.
    tried
        Everything that was simulated, in order.
    num_cheaper_untried
        Sets between the bound and the answer that were not simulated: they are part of a set that
        failed, or machines by themselves let expect too little of them.
    sized
        The scenario with these machines and their placement; None without an answer.
    watts
        Power of the machines; None if it is not known.
    seeds
        Seeds of the full runs.
    ended
        Why the search ended early: ``time limit``, ``interrupted`` or nothing.
    """

    scenario: str
    requests_per_s: float
    objectives: tuple[Limit, ...]
    survive: int
    kinds: tuple[SizedMachine, ...]
    best: Trial | None
    lower_bound_dollars_per_hour: float
    lower_bound_counts: Counts | None
    tried: tuple[Trial, ...]
    num_cheaper_untried: int
    sized: Scenario | None
    watts: float | None
    seeds: tuple[int, ...]
    ended: str = ""

    @property
    def machines(self) -> dict[str, int]:
        """Machine type -> number of machines of the answer; empty without one."""
        return {} if self.best is None else self.named(self.best.counts)

    @property
    def dollars_per_hour(self) -> float | None:
        """Price of the answer."""
        return None if self.best is None else self.best.dollars_per_hour

    @property
    def gap(self) -> float | None:
        """How much cheaper a better answer could be, at most: a share of the price found."""
        if self.best is None or not isfinite(self.lower_bound_dollars_per_hour):
            return None
        price = self.best.dollars_per_hour
        return 1 - self.lower_bound_dollars_per_hour / price if price else 0.0

    @property
    def placement(self) -> Placement | None:
        """The layers of each machine."""
        return None if self.sized is None else self.sized.placement

    @property
    def nearest(self) -> Trial | None:
        """Of the sets that fail, the one that comes closest to the objectives."""
        failed = [trial for trial in self.tried if not trial.meets]
        return max(failed, key=self._nearness, default=None)

    def _nearness(self, trial: Trial) -> tuple[float, bool]:
        figures = trial.verdict.figures
        return min(limit.kept_share(figures) for limit in self.objectives), trial.is_full

    def named(self, counts: Counts) -> dict[str, int]:
        """Machine type -> number of machines, where there are any."""
        return {kind.name: n for kind, n in zip(self.kinds, counts, strict=True) if n}

    def __repr__(self) -> str:
        if self.best is None:
            text = f"{self.scenario}: no machines found, {len(self.tried)} sets tried"
        else:
            machines = ", ".join(f"{n} x {name}" for name, n in self.machines.items())
            text = (
                f"{self.scenario}: {machines} for {self.best.dollars_per_hour:.2f} $/h; none for "
                f"less than {self.lower_bound_dollars_per_hour:.2f} $/h (proved)"
            )
        return short_text("SizeResult", text)

    def _repr_html_(self) -> str:
        rows = [
            (
                ", ".join(f"{n} x {name}" for name, n in self.named(trial.counts).items()),
                f"{trial.dollars_per_hour:.2f}",
                "met" if trial.meets else "; ".join(trial.verdict.misses),
            )
            for trial in sorted(self.tried, key=lambda trial: trial.dollars_per_hour)
        ]
        objectives = ", ".join(map(str, self.objectives))
        title = f"{self.scenario} at {self.requests_per_s:g} requests/s with {objectives}"
        return table_html(title, rows, head=("machines", "$/h", "objectives"))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        bound = self.lower_bound_dollars_per_hour
        proof = self.lower_bound_counts
        return {
            "scenario": self.scenario,
            "requests_per_s": self.requests_per_s,
            "objectives": [str(limit) for limit in self.objectives],
            "survive": self.survive,
            "machines": self.machines,
            "dollars_per_hour": self.dollars_per_hour,
            "watts": self.watts,
            "layout": None if self.placement is None else placement_data(self.placement),
            "found": None if self.best is None else self._trial_json(self.best),
            "lower_bound_dollars_per_hour": bound if bound < inf else None,
            "lower_bound_machines": None if proof is None else self.named(proof),
            "gap": self.gap,
            "cheaper_sets_not_simulated": self.num_cheaper_untried,
            "ended": self.ended or None,
            "seeds": list(self.seeds),
            "kinds": [
                {
                    "name": kind.name,
                    "dollars_per_hour": kind.dollars_per_hour,
                    "bound_requests_per_s": kind.bound_requests_per_s
                    if isfinite(kind.bound_requests_per_s)
                    else None,
                    "sustained_requests_per_s": kind.sustained_requests_per_s,
                }
                for kind in self.kinds
            ],
            "tried": [self._trial_json(trial) for trial in self.tried],
        }

    def _trial_json(self, trial: Trial) -> dict[str, Any]:
        return {
            "machines": self.named(trial.counts),
            "dollars_per_hour": trial.dollars_per_hour,
            "meets": trial.meets,
            "misses": list(trial.verdict.misses),
            "full_runs": trial.is_full,
            "without": trial.lost or None,
            "figures": dict(trial.verdict.figures),
            "by_seed": {str(seed): dict(figures) for seed, figures in trial.by_seed.items()},
        }

"""The result of a search for the highest arrival rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helixsim.display import short_text, table_html
from helixsim.planner.objective import Limit
from helixsim.studies.capacity_interval import CapacityInterval
from helixsim.studies.objectives import Verdict


@dataclass(frozen=True)
class Probe:
    """One rate that was tried.

    Attributes
    ----------
    rate
        Value of the scenario's rate.
    requests_per_s
        Requests per second at this rate, on average.
    verdict
        Whether the rate is sustained, and the figures.
    """

    rate: float
    requests_per_s: float
    verdict: Verdict

    @property
    def meets(self) -> bool:
        """Whether all objectives are kept and requests do not pile up."""
        return not self.verdict.misses

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        sustained = self.verdict.sustained
        return {
            "rate": self.rate,
            "requests_per_s": self.requests_per_s,
            "meets": self.meets,
            "misses": list(self.verdict.misses),
            "sustained": sustained if sustained == sustained else None,  # noqa: PLR0124
            "figures": dict(self.verdict.figures),
        }


@dataclass(frozen=True)
class CapacityResult:
    """The result of a search for the highest rate.

    Attributes
    ----------
    scenario
        Name of the scenario.
    path
        The key that was varied: ``workload.requests_per_s`` or ``workload.mean_tokens_per_s``, or
        ``workload.rate_scale`` of a trace, of a rate that varies, or of rates of classes, or
        ``workload.trace.scale``.
    objectives
        Limits on figures.
    seeds
        Seeds of the runs at each rate.
    probes
        All rates tried, in order.
    best
        The highest rate tried that meets the objectives and is below every rate that does not;
        None if there is none.
    above
        The lowest rate tried that does not meet them; None if there is none.
    interrupted
        Whether the search was ended by Ctrl-C.
    interval
        Confidence interval of the capacity; None with fewer than three seeds, without a capacity,
        or if the search was ended before.
    """

    scenario: str
    path: str
    objectives: tuple[Limit, ...]
    seeds: tuple[int, ...]
    probes: tuple[Probe, ...]
    best: Probe | None
    above: Probe | None
    interrupted: bool = False
    interval: CapacityInterval | None = None

    def __repr__(self) -> str:
        best = self.best
        found = (
            "no rate meets the objectives"
            if best is None
            else f"{best.requests_per_s:.4g} requests/s at {self.path}={best.rate:g}"
        )
        text = f"{self.scenario}: {found}; {len(self.probes)} rates tried"
        return short_text("CapacityResult", text)

    def _repr_html_(self) -> str:
        rows = [
            (
                f"{probe.rate:g}",
                f"{probe.requests_per_s:.4g}",
                f"{probe.verdict.sustained:.1%}",
                "met" if probe.meets else "; ".join(probe.verdict.misses),
            )
            for probe in sorted(self.probes, key=lambda probe: probe.rate)
        ]
        best = "none" if self.best is None else f"{self.best.requests_per_s:.4g} requests/s"
        objectives = ", ".join(map(str, self.objectives))
        title = f"Capacity of {self.scenario} with {objectives}: {best}"
        return table_html(title, rows, head=(self.path, "requests/s", "sustained", "objectives"))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "scenario": self.scenario,
            "path": self.path,
            "objectives": [str(limit) for limit in self.objectives],
            "seeds": list(self.seeds),
            "capacity": None if self.best is None else self.best.to_json(),
            "not_met_at": None if self.above is None else self.above.rate,
            "interval": None if self.interval is None else self.interval.to_json(),
            "interrupted": self.interrupted,
            "probes": [probe.to_json() for probe in self.probes],
        }

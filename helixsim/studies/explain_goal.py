"""The figure by which an explanation ranks changes, as runs and as the surrogate have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from helixsim.errors import InputError
from helixsim.metrics.summary import figures_of
from helixsim.yaml_files import did_you_mean

if TYPE_CHECKING:
    from helixsim.metrics.result import RunResult
    from helixsim.planner.simulated.estimates import Estimate
    from helixsim.scenario.resolved import Scenario

THROUGHPUT = "decode_tokens_per_s"
GOALS = (THROUGHPUT, "ttft_s.p95", "tpot_s.p95", "e2e_s.p95")
_SHOWN = (*GOALS, "ttft_s.mean", "tpot_s.mean", "output_tokens_per_s", "total_tokens_per_s")
_REJECTED = 0.05
"""More rejected requests are overload."""
_GROWS = 1.5
"""Growth of the time to first token, from the first third of a window to the next, that is too."""
_KEEPS_UP = 0.8
"""Share of the arriving requests that a cluster completes in a window if it is not overloaded."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The figure to improve.

    Attributes
    ----------
    figure
        One of :data:`GOALS`.
    reason
        Why this one.
    """

    figure: str
    reason: str = ""

    @property
    def is_throughput(self) -> bool:
        """Whether more is better."""
        return self.figure == THROUGHPUT

    def gain(self, before: float, after: float) -> float:
        """The gain of a figure as a share; negative for a loss."""
        if not before or before == inf:
            return 0.0
        change = after / before - 1
        return change if self.is_throughput else -change

    def of_estimate(self, estimate: Estimate) -> float:
        """The figure by the surrogate, which knows means; they stand for percentiles."""
        if self.is_throughput:
            return estimate.decode_tokens_per_s
        prompt_s, decode_s = estimate.prompt_latency_s, estimate.decode_latency_s
        if self.figure.startswith("ttft"):
            return prompt_s
        if self.figure.startswith("tpot"):
            return decode_s
        return _request_s(estimate)


def _request_s(estimate: Estimate) -> float:
    """The time of a request by Little's law: in flight, over requests per second.

    Over decodes per second here, which is less by the mean length of answers: no change touches it.
    """
    rate = estimate.decode_tokens_per_s
    return estimate.requests_in_flight / rate if rate else inf


def figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a run that an explanation shows."""
    found = figures_of(summary, _SHOWN)
    for name, slo in summary["slo"].items():
        if slo["attainment"] is not None:
            found[f"slo.{name}.attainment"] = slo["attainment"]
    return found


def parse_goal(figure: str) -> Goal:
    """A goal that a user names.

    Raises
    ------
    InputError
        If it is none of :data:`GOALS`.
    """
    if figure not in GOALS:
        raise InputError(
            f"no goal '{figure}'; {did_you_mean(figure, GOALS)}",
            where="goal",
        )
    return Goal(figure)


def goal_of(scenario: Scenario, result: RunResult) -> Goal:
    """The figure that matters for a scenario, given the result of its run.

    Offline, and online where requests are not finished as they arrive, the throughput. Otherwise
    the latency that is closest to its limit, or the end-to-end latency without limits.
    """
    if scenario.workload.mode == "offline":
        return Goal(THROUGHPUT, "the load is offline")
    if not _keeps_up(result):
        return Goal(THROUGHPUT, "more requests arrive than are served")
    best, most = Goal("e2e_s.p95", "all requests are served, and there is no SLO"), 0.0
    for slo in scenario.slos:
        for key, limit_s in (("ttft_s", slo.ttft_s), ("tpot_s", slo.tpot_s), ("e2e_s", slo.e2e_s)):
            p95_s = result.summary[key]["p95"]
            if limit_s and p95_s is not None and p95_s / limit_s > most:
                most = p95_s / limit_s
                text = f"p95 is at {most:.0%} of the limit of SLO {slo.name}"
                best = Goal(f"{key}.p95", text)
    return best


def _keeps_up(result: RunResult) -> bool:
    """Whether few requests are rejected, and they are served about as fast as they arrive.

    Requests that live as long as the window are not completed in it. So under overload, fewer
    are completed than arrive, and the time to first token grows as well.
    """
    summary, requests = result.summary, result.requests
    counts = summary["requests"]
    if counts["rejected"] > _REJECTED * counts["arrived"]:
        return False
    start_s, end_s = summary["window_start_s"], summary["window_end_s"]
    inside = requests[requests["arrival_s"].between(start_s, end_s)]
    if summary["requests_per_s"] * (end_s - start_s) >= _KEEPS_UP * len(inside):
        return True
    waits_s = inside["ttft_s"].fillna(end_s - inside["arrival_s"])
    third_s = (end_s - start_s) / 3  # what arrives last has had no time to wait
    first = inside["arrival_s"] < start_s + third_s
    second = inside["arrival_s"].between(start_s + third_s, start_s + 2 * third_s)
    return bool(waits_s[second].mean() <= _GROWS * waits_s[first].mean())

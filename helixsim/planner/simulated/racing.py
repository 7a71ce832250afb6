"""Races: runs that clearly lose against the best one so far are stopped early.

All runs of a race have the same seed, so that the same requests arrive. A run is compared with the
best at the same simulated times, from the lifetime of a request on: before that, it says more about
how the cluster fills than about what it serves. What a stopped run would have come to is projected
from how the best one went on.
"""

from __future__ import annotations

from helixsim.planner.objective import Figures, Objective
from helixsim.planner.simulated.candidates import LATENCY, Candidate
from helixsim.planner.simulated.trials import TrialRun

_LOOK_EVERY, _LOOKS = 0.15, 4
"""Share of a run's length between looks at its figures, and their number."""
_LOSING = 0.88
"""Share of the best score at the same time below which a run is stopped: no run of some hundreds
that were compared came back from there to within 3 % of the best."""


def look_times(duration_s: float) -> tuple[float, ...]:
    """Simulated times at which runs are compared, in seconds since the first request."""
    return tuple((number + 1) * _LOOK_EVERY * duration_s for number in range(_LOOKS))


def cuts(
    leader: Candidate | None, objective: Objective, output_tokens: float
) -> dict[float, float]:
    """Time -> score below which a run is stopped then; empty without a leader to compare with."""
    if leader is None or not leader.runs or not leader.looks:
        return {}
    figures = leader.figures
    lifetime_s = figures.get("prompt_latency_s.mean", 0.0) + output_tokens * figures.get(
        LATENCY, 0.0
    )
    return {
        at_s: _LOSING * objective.score(noted, leader.move_cost)
        for at_s, noted in leader.looks.items()
        if at_s >= lifetime_s > 0
    }


def projected(run: TrialRun, leader: Candidate, seed: int) -> dict[str, float]:
    """Figures that a run which was stopped would have come to, in proportion to the leader's."""
    assert run.cut_s is not None
    then: Figures = leader.looks[run.cut_s]
    at_end: Figures = leader.runs[seed]
    return {
        name: value * at_end[name] / then[name] if then.get(name) and name in at_end else value
        for name, value in run.figures.items()
    }

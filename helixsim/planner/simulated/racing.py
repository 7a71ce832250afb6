"""Races: runs that clearly lose against the best one so far are stopped early.

All runs of a race have the same seed, so that the same requests arrive. A run is compared with the
best at the same simulated times, from the lifetime of a request after the warm-up on: before that,
it says more about how the cluster fills than about what it serves. What a stopped run would have
come to is projected from how the best one went on.
"""

from __future__ import annotations

from helixsim.planner.figures import is_share
from helixsim.planner.objective import Figures, Objective
from helixsim.planner.simulated.candidates import LATENCY, THROUGHPUT, Candidate
from helixsim.planner.simulated.trials import TrialRun

_LOOKS_FROM, _LOOK_EVERY, _LOOKS = 8, 0.05, 14
"""First of the looks at its figures at which a run may be stopped; share of its length between
looks; and their number."""
_STEADY = 0.8
"""Share of its final score that the best run must have reached by then: as long as its load still
grows, what a run serves says little."""
_REQUESTS = 200
"""Requests that the best run must have served by then: fewer differ too much from one another."""
_LOSING = 0.88
"""Share of the best score at the same time below which a run is stopped: no run of some hundreds
that were compared came back from there to within 3 % of the best."""
_LOSING_OTHERWISE = 0.7
"""The same where latencies or SLOs count, which vary more than rates do: of 50 placements under two
classes of users with SLOs, one came back from 0.86."""


def look_times(duration_s: float) -> tuple[float, ...]:
    """Simulated times at which runs are compared, in seconds since the first request."""
    return tuple((number + 1) * _LOOK_EVERY * duration_s for number in range(_LOOKS))


def cuts(
    leader: Candidate | None, objective: Objective, output_tokens: float, warmup_s: float
) -> dict[float, float]:
    """Time -> score below which a run is stopped then; empty without a leader to compare with.

    Empty, too, if the leader breaks a limit: a run that keeps all limits wins with any score.
    """
    if leader is None or not leader.runs or not leader.looks:
        return {}
    if not objective.kept(leader.figures):
        return {}
    losing = _LOSING if objective.is_of_rates else _LOSING_OTHERWISE
    figures = leader.figures
    decode_s, prompt_s = figures.get(LATENCY, 0.0), figures.get("prompt_latency_s.mean", 0.0)
    lifetime_s = prompt_s + output_tokens * decode_s
    enough = _STEADY * leader.run_scores(objective)[0]
    found = {}
    for at_s, noted in sorted(leader.looks.items())[_LOOKS_FROM - 1 :]:
        measured_s = at_s - warmup_s
        served = noted.get(THROUGHPUT, 0.0) * measured_s / output_tokens
        score = objective.score(noted, leader.move_cost)
        if measured_s >= lifetime_s and served >= _REQUESTS and score >= enough:
            found[at_s] = losing * score
    return found


def projected(run: TrialRun, leader: Candidate, seed: int) -> dict[str, float]:
    """Figures that a run which was stopped would have come to, in proportion to the leader's."""
    assert run.cut_s is not None
    then: Figures = leader.looks[run.cut_s]
    at_end: Figures = leader.runs[seed]
    found = {
        name: value * at_end[name] / then[name] if then.get(name) and name in at_end else value
        for name, value in run.figures.items()
    }
    return {name: min(1.0, value) if is_share(name) else value for name, value in found.items()}

"""Whether the window of some runs says anything of a rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from helixsim.errors import InputError
from helixsim.metrics.summary import figures_of
from helixsim.studies.capacity_result import Probe
from helixsim.studies.runs import Outcome

LEAST_ARRIVALS = 5
"""Of fewer requests in the windows of all runs together nothing can be said."""
_LIVES = 5
"""A window should be this many times as long as a request's life."""
_LEAST_HALVED = 0.6
"""With so large a share of its requests, a cluster keeps up with half of the rate."""


def tells_nothing(outcomes: Sequence[Outcome]) -> bool:
    """Whether too few requests arrived in the windows of all runs."""
    return sum(outcome.num_arrived for outcome in outcomes) < LEAST_ARRIVALS


def check_halved(
    probe: Probe, half: Probe, outcomes: Sequence[Outcome], window_s: float, *, file: Path
) -> None:
    """Refuse a window in which requests lag behind at half of a rate as well.

    If most requests of a rate finish in the window, all of half of that rate could. What lacks are
    requests that begin in the window and end after it, which says nothing of the rate.

    Parameters
    ----------
    probe, half
        A rate that is not kept, and about half of it.
    outcomes
        The runs of the latter.
    window_s
        Length of the window, in seconds.
    file
        The scenario, for the message.

    Raises
    ------
    InputError
        With a longer window.
    """
    lag_only = probe.verdict.lags_only and half.verdict.lags_only
    rejected = any((each.summary or {})["requests"]["rejected"] for each in outcomes)
    if not lag_only or rejected or probe.verdict.sustained < _LEAST_HALVED:
        return
    if tells_nothing(outcomes):
        return
    raise InputError(
        f"the window of {window_s:g} s is too short: at {probe.requests_per_s:.3g} requests/s, "
        f"{probe.verdict.sustained:.1%} of the requests end in it, and at "
        f"{half.requests_per_s:.3g} only {half.verdict.sustained:.1%}, so that most of the "
        "others only end after it; set run.duration to several times as much",
        file=file,
        where="run.duration",
    )


def check_answer(
    probe: Probe, outcomes: Sequence[Outcome], window_s: float, warmup_s: float, *, file: Path
) -> None:
    """Refuse what a window cannot say.

    A window shorter than a request's life sees requests arrive and none of them end, at any rate;
    and with hardly any arrivals, chance decides. A latency that is measured and too long stands.

    Parameters
    ----------
    probe
        The rate, as it was judged.
    outcomes
        Its runs.
    window_s, warmup_s
        Length of the window, and time before it, in seconds.
    file
        The scenario, for the message.

    Raises
    ------
    InputError
        With the length that would be right.
    """
    life_s = max(
        (figures_of(each.summary or {}).get("e2e_s.mean", 0.0) for each in outcomes), default=0.0
    )
    arrived = sum(outcome.num_arrived for outcome in outcomes)
    finished = sum(outcome.num_finished for outcome in outcomes)
    is_too_short = probe.meets and life_s > window_s
    measured = any(" is " in miss for miss in probe.verdict.misses)
    if not is_too_short and (not tells_nothing(outcomes) or measured):
        return
    life = f"a request takes {life_s:.3g} s on average" if life_s else "none of them ended"
    warm_s = max(2 * life_s, warmup_s)
    long_s = warm_s + max(_LIVES * life_s, 2 * window_s)
    raise InputError(
        f"the window of {window_s:g} s after a warm-up of {warmup_s:g} s says nothing: at "
        f"{probe.requests_per_s:.3g} requests/s, {arrived} arrive and {finished} end in the "
        f"windows of all runs, and {life}; set run.warmup to {warm_s:.3g} s or more, and "
        f"run.duration to {long_s:.3g} s or more",
        file=file,
        where="run.duration",
    )

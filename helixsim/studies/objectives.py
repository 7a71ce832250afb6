"""Objectives of a load, judged on the mean over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean

from helixsim.errors import InputError
from helixsim.metrics.summary import figures_of
from helixsim.planner.figures import figure_names
from helixsim.planner.objective import Limit, parse_limit
from helixsim.scenario.resolved import Slo
from helixsim.studies.runs import Outcome
from helixsim.units import format_seconds

OWN_CLASS = "objectives"
"""Name of the SLO that holds each single request to the objectives."""

_PER_REQUEST = {"ttft_s": "ttft", "tpot_s": "tpot", "e2e_s": "e2e"}


def parse_objectives(
    texts: Sequence[str], slos: Sequence[Slo], classes: Sequence[str] = ()
) -> tuple[Limit, ...]:
    """Read objectives, such as ``ttft_s.p95<=5, tpot_s.p95<=1``.

    Parameters
    ----------
    texts
        Limits, each text one or several with commas between.
    slos
        The scenario's SLOs, for limits such as ``slo.NAME.attainment>=0.9``; without texts,
        their shares are the objectives.
    classes
        The classes of users, for limits such as ``classes.NAME.ttft_s.p95<=2``.

    Raises
    ------
    InputError
        If there is no objective, or one cannot be read.
    """
    known = figure_names(slos, classes)
    parts = [part for text in texts for part in text.split(",")]
    if parts:
        return tuple(parse_limit(part, "--slo", known) for part in parts)
    shares = tuple(
        Limit(f"slo.{slo.name}.attainment", at_most=False, value=slo.share)
        for slo in slos
        if slo.share is not None
    )
    if not shares:
        raise InputError(
            "needs objectives, such as 'ttft_s.p95<=5, tpot_s.p95<=1'; it may be left out "
            "where the scenario has an slo with a share",
            where="--slo",
        )
    return shares


def request_limits(objectives: Sequence[Limit]) -> dict[str, str]:
    """The limits on latencies as an entry of a scenario's ``slo``; the strictest of each."""
    found: dict[str, float] = {}
    for limit in objectives:
        key = _PER_REQUEST.get(limit.figure.partition(".")[0])
        if key is not None and limit.at_most:
            found[key] = min(limit.value, found.get(key, limit.value))
    return {key: format_seconds(value) for key, value in found.items()}


@dataclass(frozen=True)
class Verdict:
    """Whether a cluster sustains a load.

    Attributes
    ----------
    figures
        Means over the seeds, of the figures that all runs have.
    sustained
        Requests that finished in the windows of all runs, over the requests that arrived in them.
    misses
        Objectives that are missed, as sentences; empty if the load is sustained.
    lags_only
        Whether all that is missed is that too few requests finished.
    """

    figures: Mapping[str, float]
    sustained: float
    misses: tuple[str, ...]
    lags_only: bool = False


def judge(outcomes: Sequence[Outcome], objectives: Sequence[Limit], keep_up: float) -> Verdict:
    """Judge the runs of one load by objectives.

    Parameters
    ----------
    outcomes
        Outcomes of the runs, each with a summary.
    objectives
        Each is met if the mean of the figure over all runs is within the limit. A figure that a
        run does not have, because no request got so far, is missed.
    keep_up
        Share of the arrivals that must finish; below it, requests pile up or are rejected.
    """
    each = [figures_of(outcome.summary or {}) for outcome in outcomes]
    means = {
        name: fmean(own[name] for own in each)
        for name in each[0]
        if all(name in own for own in each)
    }
    arrived = sum(outcome.num_arrived for outcome in outcomes)
    finished = sum(outcome.num_finished for outcome in outcomes)
    sustained = finished / arrived if arrived else nan
    misses = []
    for limit in objectives:
        value = means.get(limit.figure, nan)
        if value != value:  # noqa: PLR0124
            misses.append(f"{limit.figure} was not measured in every run")
        elif (value > limit.value) if limit.at_most else (value < limit.value):
            misses.append(f"{limit.figure} is {value:.4g}")
    lags_only = not misses and sustained < keep_up
    if not sustained >= keep_up:
        misses.append(
            f"{finished} requests finished while {arrived} arrived"
            if arrived
            else "no request arrived"
        )
    return Verdict(means, sustained, tuple(misses), lags_only)

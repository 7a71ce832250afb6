"""Streams of arrival times, at the rate of a workload."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from random import Random

from helixsim.control.load import slot_arrivals
from helixsim.errors import ScenarioError
from helixsim.scenario.offered_load import mean_request_tokens
from helixsim.scenario.workload_values import (
    Arrivals,
    EvenArrivals,
    GammaArrivals,
    PatternArrivals,
    PoissonArrivals,
    SlotArrivals,
    Workload,
)
from helixsim.traces.arrivals import gamma, poisson
from helixsim.traces.rates import ConstantRate, Rate, at_rate


def rate_of(workload: Workload, duration_s: float) -> Rate:
    """The rate of all requests of an online workload without rates of its classes.

    Raises
    ------
    ScenarioError
        If it has none.
    """
    if workload.requests_per_s is not None:
        return workload.requests_per_s
    if workload.mean_tokens_per_s is None:
        raise ScenarioError(
            "online needs arrivals and a rate, requests_per_s or mean_tokens_per_s, or a trace",
            where="workload",
        )
    return ConstantRate(workload.mean_tokens_per_s / mean_request_tokens(workload, duration_s))


def constant_rate(rate: Rate) -> float:
    """The rate per second where only a constant one will do.

    Raises
    ------
    ScenarioError
        If it varies.
    """
    if not isinstance(rate, ConstantRate):
        raise ScenarioError(
            "a rate that varies goes with arrivals poisson, constant or gamma; built-in patterns "
            "and counts vary by themselves: give a number",
            where="workload.requests_per_s",
        )
    return rate.per_s


def arrival_times(
    arrivals: Arrivals,
    rate: Rate,
    rng: Random,
    duration_s: float,
    *,
    requests_per_start: float = 1.0,
    scale: float = 1.0,
) -> Iterator[float]:
    """Times of arrival, in seconds from the start of load generation to its end.

    Parameters
    ----------
    arrivals
        The process.
    rate
        Requests per second.
    rng
        Source of all randomness.
    duration_s
        When load generation ends.
    requests_per_start
        Requests that follow from each arrival, on average: turns of a conversation.
    scale
        Factor on the rate.
    """
    return takewhile(
        lambda at_s: at_s <= duration_s,
        _endless(arrivals, rate, rng, duration_s, requests_per_start, scale),
    )


def _endless(
    arrivals: Arrivals,
    rate: Rate,
    rng: Random,
    duration_s: float,
    requests_per_start: float,
    scale: float,
) -> Iterator[float]:
    if isinstance(rate, ConstantRate) or isinstance(arrivals, PatternArrivals | SlotArrivals):
        per_s = constant_rate(rate) * scale / requests_per_start
        return _at_constant_rate(arrivals, per_s, rng, duration_s)
    cv = 1.0
    if isinstance(arrivals, EvenArrivals | GammaArrivals):
        cv = 0.0 if isinstance(arrivals, EvenArrivals) else arrivals.cv
    return at_rate(rate, cv, rng, scale=scale / requests_per_start)


def _at_constant_rate(
    arrivals: Arrivals, per_s: float, rng: Random, duration_s: float
) -> Iterator[float]:
    match arrivals:
        case PoissonArrivals():
            return poisson(per_s, rng)
        case GammaArrivals(cv):
            return gamma(per_s, cv, rng)
        case EvenArrivals():
            return at_rate(ConstantRate(per_s), 0.0, rng)
        case PatternArrivals(pattern):
            return pattern.arrivals(rng, per_s, duration_s)
        case SlotArrivals(counts, slot_s):
            found = slot_arrivals(
                counts, slot_s, per_s, lambda: (1, 1), rng, start_s=0.0, duration_s=duration_s
            )
            return (arrival.at_s for arrival in found)

"""Arrival times of requests: streams of times, drawn from the caller's `random.Random`.

A stream yields seconds from the start, in order. The streams of :func:`poisson` and :func:`gamma`
are endless: :func:`~helixsim.traces.arrivals.generate_trace` takes the arrivals of a duration.
Streams that follow the published traces are in :mod:`helixsim.traces.patterns`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat, takewhile

from helixsim.errors import InputError
from helixsim.requests import TraceRequest
from helixsim.traces.values import LengthSource, Trace

SLOT_S = 3.0
"""Length of the slots in which the published arrivals are counted."""

_MAX_RATE_PER_S = 1e6
_CV_RANGE = (0.01, 20.0)


def poisson(rate_per_s: float, rng: random.Random) -> Iterator[float]:
    """Arrivals of many independent users: exponential gaps.

    Parameters
    ----------
    rate_per_s
        Mean arrivals per second.
    rng
        Source of all randomness.

    Raises
    ------
    InputError
        If the rate is not above 0 and at most a million.
    """
    check_rate(rate_per_s)
    return _add_up(rng.expovariate(rate_per_s) for _ in repeat(None))


def gamma(rate_per_s: float, cv: float, rng: random.Random) -> Iterator[float]:
    """Arrivals with gamma-distributed gaps: more bursty or more even than Poisson.

    Parameters
    ----------
    rate_per_s
        Mean arrivals per second.
    cv
        Standard deviation of the gaps over their mean, 0.01 to 20: 1 is Poisson, above 1 is
        bursty, towards 0 is even.
    rng
        Source of all randomness.

    Raises
    ------
    InputError
        If the rate is not above 0 and at most a million, or `cv` is out of its range.
    """
    check_rate(rate_per_s)
    if not _CV_RANGE[0] <= cv <= _CV_RANGE[1]:
        raise InputError(f"cv of the gaps must be {_CV_RANGE[0]} to {_CV_RANGE[1]}, not {cv!r}")
    shape = 1 / cv**2
    return _add_up(rng.gammavariate(shape, 1 / (shape * rate_per_s)) for _ in repeat(None))


def in_slots(
    counts: Sequence[int], rng: random.Random, *, slot_s: float = SLOT_S
) -> Iterator[float]:
    """Arrivals by counts: the given number in each slot, at random times within it; finite.

    Parameters
    ----------
    counts
        Arrivals in each slot, in order.
    rng
        Source of all randomness.
    slot_s
        Length of a slot in seconds.

    Raises
    ------
    InputError
        If the length of a slot is not a finite number above 0.
    """
    if not 0 < slot_s < math.inf:
        raise InputError(f"a slot must last a finite time above 0 s, not {slot_s!r}")
    return (
        (slot + moment) * slot_s
        for slot, count in enumerate(counts)
        for moment in sorted(rng.random() for _ in range(count))
    )


def check_rate(rate_per_s: float) -> None:
    """Refuse a rate that is not above 0 and at most a million per second."""
    if not 0 < rate_per_s <= _MAX_RATE_PER_S:
        raise InputError(
            f"a rate must be above 0 and at most {_MAX_RATE_PER_S:g} per second, not {rate_per_s!r}"
        )


def _add_up(gaps: Iterator[float]) -> Iterator[float]:
    now = 0.0
    for gap in gaps:
        now += gap
        yield now


def generate_trace(
    arrivals: Iterable[float],
    lengths: LengthSource,
    duration_s: float,
    rng: random.Random,
    *,
    source: str = "generated",
) -> Trace:
    """Give every arrival within a duration the length of a request.

    Parameters
    ----------
    arrivals
        Seconds from the start, in order: any iterable, for example a stream of
        :mod:`helixsim.traces.arrivals`. It may be endless.
    lengths
        A built-in distribution, or lengths from a file.
    duration_s
        Arrivals before this time are taken.
    rng
        Random stream of the lengths. Lengths are drawn after all arrivals, so that other lengths
        do not change the arrival times, even if both use the same `rng`.
    source
        Name of the trace, for messages.

    Returns
    -------
    Trace
        At least one request.

    Raises
    ------
    InputError
        If the duration is not a finite number above 0, or nothing arrives in it.
    """
    if not 0 < duration_s < math.inf:
        raise InputError(f"a trace must last a finite time above 0 s, not {duration_s!r}")
    times = list(takewhile(lambda time: time < duration_s, arrivals))
    if not times:
        raise InputError(f"nothing arrives within {duration_s:g} s: take a longer time or a rate")
    requests = (TraceRequest(time, *lengths.sample(rng)) for time in times)
    return Trace(tuple(requests), source=source)

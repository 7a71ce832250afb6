"""Generate a trace from a stream of arrivals and a source of lengths."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from itertools import takewhile

from helixsim.errors import InputError
from helixsim.requests import TraceRequest
from helixsim.traces.values import LengthSource, Trace


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

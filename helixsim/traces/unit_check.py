"""Doubts about a unit of time that a file does not state."""

from __future__ import annotations

from helixsim.traces.values import Trace

MAX_RATE_PER_S = 500.0
"""Mean rate above which a trace is more likely in a longer unit; published ones are below 100."""

MAX_GAP_S = 600.0
"""Mean time between requests above which a trace is more likely in a shorter unit."""

_MIN_REQUESTS = 3
_NAMES = {1: "s", 10**3: "ms", 10**6: "us", 10**9: "ns"}


def doubt_of_unit(trace: Trace, ticks_per_s: int) -> str | None:
    """Say that the rate of a trace contradicts its unit of time; None if it does not.

    Parameters
    ----------
    trace
        The trace, with times in that unit.
    ticks_per_s
        The unit.
    """
    if len(trace) < _MIN_REQUESTS or not trace.span_s:
        return None
    unit = _NAMES.get(ticks_per_s, f"1/{ticks_per_s} s")
    rate = (len(trace) - 1) / trace.span_s
    taken = f"its times are taken as {unit}, which makes"
    if rate > MAX_RATE_PER_S and ticks_per_s > 1:
        return f"{taken} {rate:,.0f} requests a second; if they are longer, set time_unit"
    if rate * MAX_GAP_S < 1:
        return f"{taken} {1 / rate:,.0f} s between two requests; if they are shorter, set time_unit"
    return None

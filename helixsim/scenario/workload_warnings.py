"""What the user should know of a workload before a run is believed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from helixsim.traces.values import Lengths, Trace

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario

_MIN_COVERED = 0.5


def workload_warnings(scenario: Scenario) -> list[str]:
    """Notes on the files of the workload, and a trace that misses most of the run, as sentences."""
    workload = scenario.workload
    if workload.trace is not None:
        trace = workload.trace.scaled(workload.rate_scale)
        return [*trace.notes, *_coverage(trace, scenario.run.duration_s)]
    lengths = workload.lengths
    return list(lengths.notes) if isinstance(lengths, Lengths) else []


def _coverage(trace: Trace, duration_s: float) -> Iterator[str]:
    first_s = trace.requests[0].arrival_s
    if first_s > duration_s:
        yield (
            f"no request of the trace arrives in the run of {duration_s:g} s: the first is at "
            f"{first_s:g} s"
        )
        return
    last_s = max(
        request.arrival_s + sum(turn.delay_s for turn in request.later_turns)
        for request in trace.requests
    )
    if min(last_s, duration_s) - first_s < _MIN_COVERED * duration_s:
        yield (
            f"the requests of the trace arrive from {first_s:g} to {last_s:g} s, the run lasts "
            f"{duration_s:g} s: rates over the run are too low; set run.duration, or of "
            "workload.trace repeat (to fill) or time_unit"
        )

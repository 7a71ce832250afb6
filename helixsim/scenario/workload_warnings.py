"""What the user should know of a workload before a run is believed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from helixsim.traces.values import Lengths, Trace

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario

_MAX_SILENT = 0.5
"""Share of a run without requests before the first and after the last."""

_SHORT_S = 2.0
"""So much silence is what the last answer needs."""


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
    last_s = trace.last_s
    silent_s = duration_s - (min(last_s, duration_s) - first_s)
    if silent_s > max(_SHORT_S, _MAX_SILENT * duration_s):
        yield (
            f"the requests of the trace arrive from {first_s:g} to {last_s:g} s, the run lasts "
            f"{duration_s:g} s: rates over the run are too low; set run.duration, or of "
            "workload.trace repeat (to fill) or time_unit"
        )

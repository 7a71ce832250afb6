"""The trace of a workload: read, cut and repeated as its keys say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helixsim.errors import InputError, ScenarioError
from helixsim.registry import UnknownNameError
from helixsim.scenario.trace_spec import FILL, TraceSpec
from helixsim.traces.files import read_trace
from helixsim.traces.formats import TRACE_FORMATS, Format
from helixsim.traces.values import Trace


@dataclass(frozen=True, slots=True)
class TraceReader:
    """Reads the trace of one scenario.

    Attributes
    ----------
    spec
        The keys of the trace.
    file
        The scenario file; the trace is relative to its folder.
    duration_s
        Time during which the run sends requests.
    """

    spec: TraceSpec
    file: Path
    duration_s: float

    def read(self, limit: Callable[[Trace], Trace]) -> Trace:
        """The requests of the run, before their rate is scaled.

        Parameters
        ----------
        limit
            Leaves out requests that are too long.

        Raises
        ------
        InputError
            If the file cannot be used, or none of its requests arrives in the run.
        """
        spec = self.spec
        path = self.file.parent / spec.file
        if not path.is_file():
            raise self._error(f"there is no file {path}")
        whole = read_trace(path, self._format(), time_unit=spec.time_unit).from_first()
        part = self._part(whole)
        trace = limit(part)
        if spec.repeat != 1:
            period_s = self._period_s(part)
            trace = self._repeated(trace, period_s)
        self._check_first(trace)
        return trace

    def _format(self) -> Format | None:
        if self.spec.format is None:
            return None
        try:
            return TRACE_FORMATS.get(self.spec.format)
        except UnknownNameError as error:
            raise self._error(error.message, "_format") from error

    def _part(self, whole: Trace) -> Trace:
        start_s, cut_s = self.spec.start, self.spec.cut
        if not start_s and cut_s is None:
            return whole
        end_s = math.inf if cut_s is None else start_s + cut_s
        try:
            return whole.between(start_s, end_s)
        except InputError as error:
            until = "on" if cut_s is None else f"to {end_s:g} s"
            raise self._error(
                f"has no request from {start_s:g} s {until}; its last is at {whole.span_s:g} s"
            ) from error

    def _period_s(self, part: Trace) -> float:
        """Time after which the part comes again: as long as it is, and one more gap."""
        cut_s = math.inf if self.spec.cut is None else self.spec.cut
        last_s = part.requests[-1].arrival_s
        num_gaps = len(part) - 1
        gap_s = part.span_s / num_gaps if num_gaps else 0.0
        period_s = min(cut_s, last_s + gap_s) if gap_s else cut_s
        if math.isinf(period_s):
            raise self._error(
                "all its requests arrive at once: set cut to the time after which they come again",
                ".repeat",
            )
        return period_s

    def _repeated(self, trace: Trace, period_s: float) -> Trace:
        times = self.spec.repeat
        if times == FILL:
            times = int(self.duration_s * (self.spec.scale or 1.0) / period_s) + 1
        assert isinstance(times, int)
        try:
            return trace.repeated(times, period_s)
        except InputError as error:
            raise self._error(error.message, ".repeat") from error

    def _check_first(self, trace: Trace) -> None:
        first_s = trace.requests[0].arrival_s / (self.spec.scale or 1.0)
        if first_s > self.duration_s:
            raise self._error(
                f"no request arrives in the run of {self.duration_s:g} s: the first is at "
                f"{first_s:g} s; set trace.start, or run.duration"
            )

    def _error(self, message: str, key: str = "") -> ScenarioError:
        return ScenarioError(message, file=self.file, where=f"workload.trace{key}")

"""Figures of recorded and replayed runs in the same form, and the errors between them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from helixsim.metrics.sample import Sample
from helixsim.recorded.recording import RecordedRun

COMPARED = ("decode_tokens_per_s", "prompt_latency_s", "decode_latency_s")
"""Keys of a run's summary that a recording has as well."""

ReplayFigures = dict[str, Any]
"""Key of :data:`COMPARED` -> a number, or for latencies mean and percentiles by name."""


def recorded_figures(run: RecordedRun, start_s: float, end_s: float) -> ReplayFigures:
    """Figures of the passes that came back within a window, both ends included.

    Percentile p of n sorted values is the value at index ``int(n * p / 100)``.

    Parameters
    ----------
    run
        The recording.
    start_s, end_s
        The window, seconds since the start of sending.
    """
    passes = run.passes
    within = (passes.end_s >= start_s) & (passes.end_s <= end_s)
    prompts = passes.latency_s[within & passes.is_prompt]
    decodes = passes.latency_s[within & ~passes.is_prompt]
    return {
        "decode_tokens_per_s": len(decodes) / (end_s - start_s),
        "prompt_latency_s": _statistics(prompts),
        "decode_latency_s": _statistics(decodes),
    }


def mean_figures(several: Sequence[ReplayFigures]) -> ReplayFigures:
    """Means over seeds; None where a seed has no value."""
    return _combined(_mean, several)


def errors(simulated: ReplayFigures, recorded: ReplayFigures) -> ReplayFigures:
    """``(simulated - recorded) / recorded`` for each figure; None where one is missing."""
    return _combined(_error, [simulated, recorded])


def _statistics(values: np.ndarray) -> dict[str, float | None]:
    sample = Sample()
    sample.extend(array("d", values.tolist()))
    return sample.statistics()


def _combined(combine: Any, several: Sequence[ReplayFigures]) -> ReplayFigures:  # noqa: ANN401
    first = several[0]
    return {
        key: _combined(combine, [figures[key] for figures in several])
        if isinstance(first[key], dict)
        else combine([figures[key] for figures in several])
        for key in first
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _error(values: Sequence[float | None]) -> float | None:
    simulated, recorded = values
    if simulated is None or not recorded:
        return None
    return (simulated - recorded) / recorded

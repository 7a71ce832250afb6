"""Figures of recorded and replayed runs in the same form, and the errors between them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from helixsim.metrics.sample import PERCENTILES, Sample
from helixsim.recorded.recording import RecordedRun

ReplayFigures = dict[str, Any]
"""Name of a figure -> a number, or for latencies mean and percentiles by name."""


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
    return figures_of_passes(
        passes.end_s, passes.latency_s, passes.is_prompt, window_s=(start_s, end_s)
    )


def figures_of_passes(
    end_s: np.ndarray,
    latency_s: np.ndarray,
    is_prompt: np.ndarray,
    *,
    window_s: tuple[float, float],
    tolerance_s: float = 0.0,
) -> ReplayFigures:
    """Figures of passes, recorded or simulated; see :func:`recorded_figures`.

    Parameters
    ----------
    end_s
        When each pass came back, in seconds since the start of sending.
    latency_s, is_prompt
        Its latency, and whether it is a prefill.
    window_s
        Start and end of the window.
    tolerance_s
        How much later than the end a pass may come back and still count.
    """
    start, end = window_s
    within = (end_s >= start) & (end_s <= end + tolerance_s)
    prompts, decodes = latency_s[within & is_prompt], latency_s[within & ~is_prompt]
    return {
        "decode_tokens_per_s": len(decodes) / (end - start) if end > start else 0.0,
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


_TITLES = {"prompt_latency_s": "prompt latency", "decode_latency_s": "decode latency"}
_COLUMNS = ("mean", *(f"p{p}" for p in PERCENTILES))


def comparison_text(found: Mapping[str, Any]) -> str:
    """A recorded run beside its replay, with errors."""
    start, end = found["window_s"]
    seeds = len(found["seeds"])
    lines = [
        f"{found['run']} in {found['scenario']} ({found['physics']} physics, "
        f"{'mean of ' if seeds > 1 else ''}{seeds} seed{'s' * (seeds > 1)}), "
        f"measured from {start:g} s to {end:g} s",
        "",
        f"{'':<26}{'recorded':>10}{'simulated':>11}{'error':>9}",
        _row("decode throughput tokens/s", *_sides(found, "decode_tokens_per_s")),
    ]
    for key, title in _TITLES.items():
        lines += [
            _row(f"{title + ' s':<18} {column}", *_sides(found, key, column)) for column in _COLUMNS
        ]
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])


def inspection_text(found: Mapping[str, Any]) -> str:
    """Figures and routes of a recorded run."""
    start, end = found["window_s"]
    loop = "closed loop" if found["closed_loop"] else "open loop"
    lines = [
        f"{found['run']}: {found['length_s']:.1f} s, {loop}, {found['nodes']} nodes",
        f"requests: {found['requests']} sent, {found['completed']} completed; on average "
        f"{found['mean_prompt_tokens']:.0f} prompt and {found['mean_output_tokens']:.0f} output "
        "tokens",
        "",
        f"measured from {start:g} s to {end:g} s",
        f"decode throughput  {found['decode_tokens_per_s']:10.1f} tokens/s",
        " " * 18 + "".join(f"{name:>9}" for name in _COLUMNS),
    ]
    for key, title in _TITLES.items():
        figures = "".join(f"{_figure(found[key][column]):>9}" for column in _COLUMNS)
        lines.append(f"{title + ' s':<18}{figures}")
    lines += ["", f"{found['routes']} routes; the most frequent ones:"]
    lines += [f"{each['requests']:>5}  {each['route']}" for each in found["busiest_routes"]]
    if found["without_route"]:
        lines.append(f"{found['without_route']:>5}  requests without a recorded route")
    return "\n".join(lines)


def _sides(
    found: Mapping[str, Any], key: str, column: str | None = None
) -> tuple[float | None, float | None, float | None]:
    recorded, simulated, error = (
        found[side][key] if column is None else found[side][key][column]
        for side in ("recorded", "simulated", "error")
    )
    return recorded, simulated, error


def _row(title: str, recorded: float | None, simulated: float | None, error: float | None) -> str:
    shown = "-" if error is None else f"{error:+.1%}"
    return f"{title:<26}{_figure(recorded):>10}{_figure(simulated):>11}{shown:>9}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

"""Pictures of recorded runs and their replays."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from helixsim.recorded.recording import RecordedRun

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from helixsim.recorded.replay import ReplayResult

_RECORDED, _SIMULATED = "#444444", "#d55e00"
_DPI = 130


def inspection_picture(
    run: RecordedRun, over_time: pd.DataFrame, work: Mapping[str, float]
) -> bytes:
    """Overview of a recorded run, as PNG: throughput, latencies, requests, work by node."""
    figure, axes = _panels()
    passes = run.passes
    _line(axes[0], over_time["time_s"], over_time["decode_tokens_per_s"], _RECORDED)
    axes[0].set(title="Decode throughput", ylabel="tokens/s")
    for ax, name, wanted in (
        (axes[1], "Prompt", passes.is_prompt),
        (axes[2], "Decode", ~passes.is_prompt),
    ):
        _distribution(ax, f"{name} latency", [(None, passes.latency_s[wanted], _RECORDED)])
    names = list(work)
    axes[3].bar(range(len(names)), [work[name] / 1e6 for name in names], color=_RECORDED)
    axes[3].set(title="Work by node", ylabel="million tokens x layers")
    axes[3].set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    figure.suptitle(run.name)
    return _png(figure)


def replay_picture(result: ReplayResult) -> bytes:
    """A recorded run beside its replay, as PNG."""
    return _png(replay_figure(result))


def replay_figure(result: ReplayResult) -> Figure:
    """A recorded run beside its replay."""
    figure, axes = _panels()
    over_time, iterations = result.series, result.results[0].iterations
    passes = result.run.passes
    start, end = result.window_s
    zero = result.results[0].summary["window_start_s"] - start
    came_s = iterations["end_s"] - zero
    window = (came_s >= start) & (came_s <= end)
    took_s = iterations["end_s"] - iterations["start_s"]
    for side, colour in (("recorded", _RECORDED), ("simulated", _SIMULATED)):
        _line(axes[0], over_time["time_s"], over_time[f"{side}_decode_tokens_per_s"], colour, side)
        _line(axes[3], over_time["time_s"], over_time[f"{side}_decode_latency_s"], colour, side)
    axes[0].set(title="Decode throughput", ylabel="tokens/s")
    axes[0].legend(frameon=False)
    axes[3].set(title="Mean decode latency over time", ylabel="s")
    recorded = (passes.end_s >= start) & (passes.end_s <= end)
    for ax, phase, is_prompt in ((axes[1], "prompt", True), (axes[2], "decode", False)):
        chosen = (iterations["phase"] == phase) & window
        of_phase = passes.is_prompt == is_prompt
        _distribution(
            ax,
            f"{phase.capitalize()} latency",
            [
                ("recorded", passes.latency_s[recorded & of_phase], _RECORDED),
                ("simulated", took_s[chosen].to_numpy(), _SIMULATED),
            ],
        )
    figure.suptitle(f"{result.run.name}, {result.scenario.physics} physics")
    return figure


def _panels() -> tuple[Figure, list[Axes]]:
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(11, 7), layout="constrained")
        axes = figure.subplots(2, 2)
    return figure, list(axes.flat)


def _line(
    ax: Axes, time_s: pd.Series, values: pd.Series, colour: str, label: str | None = None
) -> None:
    ax.plot(time_s, values, color=colour, label=label)
    ax.set(xlabel="time, s", xlim=(0, None), ylim=(0, None))


def _distribution(ax: Axes, title: str, samples: list[tuple[str | None, np.ndarray, str]]) -> None:
    """Cumulative distributions of pass latencies, with the medians marked."""
    longest = 0.0
    for label, values, colour in samples:
        ordered = np.sort(values[np.isfinite(values)])
        if not len(ordered):
            continue
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        ax.plot(ordered, share, color=colour, label=label)
        ax.plot(ordered[len(ordered) // 2], 0.5, "o", color=colour, markersize=4)
        longest = max(longest, float(ordered[int(0.995 * len(ordered))]))
    ax.set(title=title, xlabel="s", ylabel="share of passes", xlim=(0, longest or 1), ylim=(0, 1))
    if samples[0][0] is not None:
        ax.legend(frameon=False, loc="lower right")


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()

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
    from numpy.typing import ArrayLike

    from helixsim.recorded.replay import ReplayResult

RECORDED, SIMULATED = "#444444", "#d55e00"
_DPI = 130


def inspection_picture(
    run: RecordedRun, over_time: pd.DataFrame, work: Mapping[str, float]
) -> bytes:
    """Overview of a recorded run, as PNG: throughput, latencies, requests, work by node."""
    figure, axes = panels()
    passes = run.passes
    line(axes[0], over_time["time_s"], over_time["decode_tokens_per_s"], RECORDED)
    axes[0].set(title="Decode throughput", ylabel="tokens/s")
    for ax, name, wanted in (
        (axes[1], "Prompt", passes.is_prompt),
        (axes[2], "Decode", ~passes.is_prompt),
    ):
        distribution(ax, f"{name} latency", [(None, passes.latency_s[wanted], RECORDED)])
    names = list(work)
    axes[3].bar(range(len(names)), [work[name] / 1e6 for name in names], color=RECORDED)
    axes[3].set(title="Work by node", ylabel="million tokens x layers")
    axes[3].set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    figure.suptitle(run.name)
    return png(figure)


def replay_picture(result: ReplayResult) -> bytes:
    """A recorded run beside its replay, as PNG."""
    return png(replay_figure(result))


def replay_figure(result: ReplayResult) -> Figure:
    """A recorded run beside its replay."""
    figure, axes = panels()
    over_time, iterations = result.series, result.results[0].iterations
    passes = result.run.passes
    start, end = result.window_s
    zero = result.results[0].summary["window_start_s"] - start
    came_s = iterations["end_s"] - zero
    window = (came_s >= start) & (came_s <= end)
    took_s = iterations["end_s"] - iterations["start_s"]
    for side, colour in (("recorded", RECORDED), ("simulated", SIMULATED)):
        line(axes[0], over_time["time_s"], over_time[f"{side}_decode_tokens_per_s"], colour, side)
        line(axes[3], over_time["time_s"], over_time[f"{side}_decode_latency_s"], colour, side)
    axes[0].set(title="Decode throughput", ylabel="tokens/s")
    axes[0].legend(frameon=False)
    axes[3].set(title="Mean decode latency over time", ylabel="s")
    recorded = (passes.end_s >= start) & (passes.end_s <= end)
    for ax, phase, is_prompt in ((axes[1], "prompt", True), (axes[2], "decode", False)):
        chosen = (iterations["phase"] == phase) & window
        of_phase = passes.is_prompt == is_prompt
        distribution(
            ax,
            f"{phase.capitalize()} latency",
            [
                ("recorded", passes.latency_s[recorded & of_phase], RECORDED),
                ("simulated", took_s[chosen].to_numpy(), SIMULATED),
            ],
        )
    figure.suptitle(f"{result.run.name}, {result.scenario.physics} physics")
    return figure


def panels() -> tuple[Figure, list[Axes]]:
    """A figure of two by two axes."""
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(11, 7), layout="constrained")
        axes = figure.subplots(2, 2)
    return figure, list(axes.flat)


def line(
    ax: Axes, time_s: ArrayLike, values: ArrayLike, colour: str, label: str | None = None
) -> None:
    """Draw values over time."""
    ax.plot(time_s, values, color=colour, label=label)
    ax.set(xlabel="time, s")
    # Limits stay automatic for further lines in the same axes.
    ax.set_xlim(left=0, auto=True)
    ax.set_ylim(bottom=0, auto=True)


def distribution(
    ax: Axes,
    title: str,
    samples: list[tuple[str | None, np.ndarray, str]],
    of: str = "passes",
) -> None:
    """Cumulative distributions of latencies, with the medians marked.

    Parameters
    ----------
    ax, title
        Where, and the title.
    samples
        Label, values and colour of each.
    of
        What the values are of.
    """
    longest = 0.0
    for label, values, colour in samples:
        ordered = np.sort(values[np.isfinite(values)])
        if not len(ordered):
            continue
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        ax.plot(ordered, share, color=colour, label=label)
        ax.plot(ordered[len(ordered) // 2], 0.5, "o", color=colour, markersize=4)
        longest = max(longest, float(ordered[int(0.995 * len(ordered))]))
    ax.set(title=title, xlabel="s", ylabel=f"share of {of}", xlim=(0, longest or 1), ylim=(0, 1))
    if samples[0][0] is not None:
        ax.legend(frameon=False, loc="lower right")


def png(figure: Figure) -> bytes:
    """The bytes of the figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()

"""Distributions of the latencies of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helixsim.plots.canvas import Results, colours, named, since_warmup, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

_COLUMNS = (
    ("ttft_s", "Time to first token"),
    ("tpot_s", "Time per output token"),
    ("e2e_s", "End to end"),
)


def latencies(results: Results) -> Figure:
    """Cumulative distributions: time to first token, time per output token, end to end.

    Of requests that ended in the window. Dots mark the median and the 95th percentile.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        draw_latencies(figure, results)
    return figure


def draw_latencies(figure: FigureBase, results: Results) -> None:
    """Draw :func:`latencies` into a figure or a part of one."""
    runs = named(results)
    colour = colours(runs)
    axes = figure.subplots(1, len(_COLUMNS), sharey=True)
    for ax, (column, title) in zip(axes, _COLUMNS, strict=True):
        longest = 0.0
        for name, run in runs.items():
            start, end = run.summary["window_start_s"], run.summary["window_end_s"]
            ended = run.requests["end_s"].between(start, end)
            values = np.sort(run.requests.loc[ended, column].dropna().to_numpy())
            if not len(values):
                continue
            share = np.arange(1, len(values) + 1) / len(values)
            ax.plot(values, share, color=colour[name], label=name, linewidth=1.6)
            for mark in (0.5, 0.95):
                at = values[min(int(len(values) * mark), len(values) - 1)]
                ax.plot(at, mark, "o", color=colour[name], markersize=4)
            longest = max(longest, float(values[int(len(values) * 0.99)]))
        if not longest:
            ax.text(0.5, 0.5, "no request ended", ha="center", transform=ax.transAxes)
        ax.set(title=title, xlabel="s", xlim=(0, longest * 1.05 or 1), ylim=(0, 1.01))
    axes[0].set_ylabel("share of requests")
    if len(runs) > 1 and axes[0].has_data():
        axes[0].legend(frameon=False, loc="lower right", fontsize=8)


def throughput(results: Results) -> Figure:
    """Decode throughput, prompt throughput and requests being served, over time.

    Time zero is the end of the warm-up.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        draw_throughput(figure, results)
    return figure


def draw_throughput(figure: FigureBase, results: Results) -> None:
    """Draw :func:`throughput` into a figure or a part of one."""
    runs = named(results)
    colour = colours(runs)
    panels = (
        ("decode_tokens_per_s", "Decode throughput", "tokens/s"),
        ("prompt_tokens_per_s", "Prompt throughput", "tokens/s"),
        ("active_requests", "Requests being served", "requests"),
    )
    for ax, (column, title, unit) in zip(figure.subplots(1, 3), panels, strict=True):
        for name, run in runs.items():
            frame = run.timeline
            ax.plot(
                since_warmup(frame, run),
                frame[column],
                color=colour[name],
                label=name,
                linewidth=1.4,
            )
        ax.axvline(0, color="#8a8f98", linewidth=0.8, linestyle=":")
        ax.set(title=title, xlabel="time since warm-up, s", ylabel=unit)
        ax.set_ylim(bottom=0)
        if len(runs) > 1 and column == "decode_tokens_per_s":
            ax.legend(frameon=False, loc="lower right", fontsize=8)

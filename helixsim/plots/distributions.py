"""Distributions of the latencies of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helixsim.plots.canvas import Results, colours, named, style

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

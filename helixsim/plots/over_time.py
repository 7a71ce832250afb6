"""The cluster as a whole, over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helixsim.plots.canvas import Results, colours, named, since_warmup, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase


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

"""Results runs side by side, in the form of the published figures 5 to 10."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helixsim.plots.canvas import Results, colours, named, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = (("prompt_latency_s", "Prompt latency"), ("decode_latency_s", "Decode latency"))


def comparison(results: Results) -> Figure:
    """Decode throughput as bars; prompt and decode latency as boxes.

    A box spans the 25th to the 75th percentile with the median in it, whiskers the 5th to the
    95th; a diamond is the mean. Latencies are per pass, as in the paper.
    """
    from matplotlib.figure import Figure

    runs = named(results)
    colour = colours(runs)
    names = list(runs)
    with style():
        figure = Figure(figsize=(11, 1.6 + 0.42 * max(len(names), 4)), layout="constrained")
        axes = figure.subplots(1, 3, sharey=True)
        values = [runs[name].summary["decode_tokens_per_s"] for name in names]
        places = range(len(names))
        axes[0].barh(places, values, color=[colour[name] for name in names], height=0.6)
        for place, value in enumerate(values):
            axes[0].text(value, place, f" {value:,.1f}", va="center", fontsize=8)
        axes[0].set(
            title="Decode throughput", xlabel="tokens/s", xlim=(0, max([*values, 1e-9]) * 1.18)
        )
        axes[0].set_yticks(list(places), names)
        axes[0].grid(visible=False, axis="y")
        for ax, (key, title) in zip(axes[1:], _PANELS, strict=True):
            for place, name in enumerate(names):
                _box(ax, place, runs[name].summary[key], colour[name])
            ax.set(title=title, xlabel="s")
            ax.set_xlim(left=0)
            ax.grid(visible=False, axis="y")
        axes[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _box(ax: Axes, place: int, statistics: dict[str, Any], colour: str) -> None:
    if statistics["p50"] is None:
        ax.text(0, place, " none", va="center", fontsize=8)
        return
    stats = {
        "med": statistics["p50"],
        "q1": statistics["p25"],
        "q3": statistics["p75"],
        "whislo": statistics["p5"],
        "whishi": statistics["p95"],
        "mean": statistics["mean"],
        "fliers": [],
    }
    ax.bxp(
        [stats],
        positions=[place],
        widths=0.55,
        orientation="horizontal",
        showmeans=True,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": colour, "alpha": 0.35, "edgecolor": colour},
        medianprops={"color": colour, "linewidth": 2},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        meanprops={
            "marker": "D",
            "markerfacecolor": colour,
            "markeredgecolor": colour,
            "markersize": 4,
        },
    )

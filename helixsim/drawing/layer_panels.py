"""Panels under the lanes: totals for each layer, with the tightest layer marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from helixsim.drawing.canvas import Canvas
from helixsim.drawing.captions import rate_text
from helixsim.drawing.picture import Picture
from helixsim.drawing.style import BOUND, FAINT, GRID, INK, tint, type_colours
from helixsim.drawing.table import TableLayout

_HEIGHT, _GAP = 0.95, 0.5
PANELS_HEIGHT = {True: 2 * (_HEIGHT + _GAP), False: _HEIGHT + _GAP}
"""In inches, with and without a cluster."""


def draw_panels(canvas: Canvas, picture: Picture, layout: TableLayout, top: float) -> None:
    """Draw throughput and KV cache per layer; without a cluster, only the number of holders."""
    x, width = layout.x(0), layout.x(picture.num_layers) - layout.x(0)
    top += 0.2

    def panel(number: int) -> Axes:
        axes = canvas.plot(x, top + number * (_HEIGHT + _GAP), width, _HEIGHT)
        axes.set_xlim(0, picture.num_layers)
        axes.set_xticks(layout.layer_ticks(picture.num_layers))
        axes.tick_params(labelsize=7.5, length=2, color=FAINT)
        return axes

    if not layout.known:
        axes = panel(0)
        _draw_stack(axes, picture, picture.layers.holders, "nodes that hold each layer")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        return
    axes = panel(0)
    what = "tokens/s that the holders of each layer compute"
    _draw_stack(axes, picture, picture.layers.tokens_per_s, what)
    flow = picture.flow_tokens_per_s or 0.0
    axes.axhline(flow, color=BOUND, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(
        f"max flow {rate_text(flow)}",
        (1, flow),
        xycoords=("axes fraction", "data"),
        xytext=(5, 0),
        textcoords="offset points",
        color=BOUND,
        fontsize=7.5,
        va="center",
        annotation_clip=False,
    )
    what = "tokens whose keys and values fit the caches of each layer's holders"
    _draw_stack(panel(1), picture, picture.layers.kv_tokens, what)


def _draw_stack(
    axes: Axes, picture: Picture, amounts: Mapping[str, Sequence[float]], what: str
) -> None:
    """Stack the amounts of the machine types, and mark the layer with the least."""
    edges = list(range(picture.num_layers + 1))
    colours = type_colours(picture.machine_types)
    base = [0.0] * picture.num_layers
    for name in (name for name in picture.machine_types if name in amounts):
        upper = [a + b for a, b in zip(base, amounts[name], strict=True)]
        axes.stairs(upper, edges, baseline=base, fill=True, facecolor=tint(colours[name], 0.75))
        base = upper
    axes.stairs(base, edges, color=INK, linewidth=0.8)
    axes.set_ylim(0, max(base) * 1.08)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    least = min(base)
    tightest = base.index(least)
    axes.plot(tightest + 0.5, least, marker="v", color=INK, markersize=4, clip_on=False)
    text = f"{what}; least at layer {tightest}: {rate_text(least)}"
    axes.set_title(text, loc="left", fontsize=8, color=INK, pad=4)


def _tick(value: float) -> str:
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"

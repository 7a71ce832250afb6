"""Draw the flow edges of a placement's picture, and the front ends at both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helixsim.drawing.canvas import Canvas, Point
from helixsim.drawing.lanes import COORDINATOR_LANE, FlowEdge
from helixsim.drawing.picture import Picture
from helixsim.drawing.style import BOUND, FAINT, OTHER_REGION, SAME_REGION, STRIP
from helixsim.drawing.table import TableLayout, edge_id

_STRIP_WIDTH, _STRIP_GAP = 0.17, 0.17
_CHARACTER = 0.065
"""Width of a character of the names of front ends, in inches."""
_MAX_IDLE = 150
"""With more edges than this, edges without flow are left out."""
_WIDEST = 4.0


def draw_coordinator(canvas: Canvas, picture: Picture, layout: TableLayout) -> None:
    """Draw the coordinator or front ends, source and sink of the flow, at both sides."""
    height = layout.bottom - layout.top
    style: dict[str, Any] = {"facecolor": STRIP, "edgecolor": FAINT, "linewidth": 0.5}
    if picture.coordinator_bounds:
        style |= {"edgecolor": BOUND, "linewidth": 1.8}
    for x in _strips(picture, layout):
        canvas.box(x, layout.top, _STRIP_WIDTH, height, **style)
        if height > 0.9:
            middle = x + _STRIP_WIDTH / 2, layout.top + height / 2
            label = _front_end_text(picture.front_ends, height)
            canvas.text(*middle, label, fontsize=7.5, rotation=90, ha="center", va="center")


def _front_end_text(names: Sequence[str], height: float) -> str:
    """The names of the front ends, or their number where the strip is too short for them."""
    text = ", ".join(names)
    return (
        text if len(names) == 1 or len(text) * _CHARACTER < height else f"{len(names)} front ends"
    )


def _strips(picture: Picture, layout: TableLayout) -> tuple[float, float]:
    return (
        layout.x(0) - _STRIP_GAP - _STRIP_WIDTH,
        layout.x(picture.num_layers) + _STRIP_GAP,
    )


def draw_edges(canvas: Canvas, picture: Picture, layout: TableLayout) -> None:
    """Draw the flow between lanes; edges with the most flow come last, on top."""
    most = max(edge.flow_tokens_per_s for edge in picture.edges) or 1.0
    for edge in picture.edges:
        idle = edge.flow_tokens_per_s == 0
        if idle and not edge.bounds and len(picture.edges) > _MAX_IDLE:
            continue
        style = _style(edge, edge.flow_tokens_per_s / most, layout.pen, idle=idle)
        canvas.curve(_points(picture, layout, edge), gid=edge_id(edge), **style)


def _style(edge: FlowEdge, share: float, pen: float, *, idle: bool) -> dict[str, Any]:
    colour = OTHER_REGION if edge.crosses_regions else SAME_REGION
    if edge.bounds:
        colour = BOUND
    if idle:
        return {"edgecolor": colour, "linewidth": 0.6, "alpha": 0.6, "linestyle": (0, (1, 2))}
    style: dict[str, Any] = {
        "edgecolor": colour,
        "linewidth": (0.7 + _WIDEST * share) * pen,
        "alpha": 0.9 if edge.bounds else 0.45 + 0.2 * share,
        "capstyle": "butt",
        "zorder": 3,
    }
    if edge.crosses_regions:
        style["linestyle"] = (0, (2.2, 0.8))
    return style


def _points(picture: Picture, layout: TableLayout, edge: FlowEdge) -> list[Point]:
    """Out of one bar to the right, into the other from the left; straight at the front ends."""
    first, last = _strips(picture, layout)
    if edge.source == COORDINATOR_LANE:
        y = layout.y(edge.target)
        return _straight(first + _STRIP_WIDTH, layout.x(0), y)
    if edge.target == COORDINATOR_LANE:
        y = layout.y(edge.source)
        return _straight(layout.x(picture.num_layers), last, y)
    x, start, end = layout.x(edge.layer), layout.y(edge.source), layout.y(edge.target)
    swing = min(0.05 + 0.08 * abs(end - start), 0.35)
    return [(x, start), (x + swing, start), (x - swing, end), (x, end)]


def _straight(a: float, b: float, y: float) -> list[Point]:
    return [(a, y), (a, y), (b, y), (b, y)]

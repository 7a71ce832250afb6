"""Ribbons of flow between the rows of a placement's picture, and the coordinator at its sides."""

from __future__ import annotations

from typing import Any

from helixsim.drawing.canvas import Canvas, Point
from helixsim.drawing.lanes import COORDINATOR_ROW, Ribbon
from helixsim.drawing.picture import Picture
from helixsim.drawing.style import BOUND, FAINT, OTHER_REGION, SAME_REGION, STRIP
from helixsim.drawing.table import Plan
from helixsim.drawing.tooltips import ribbon_id

_STRIP_WIDTH, _STRIP_GAP = 0.17, 0.17
_MAX_IDLE = 150
"""With more ribbons than this, those that carry nothing are left out."""
_WIDEST = 4.0


def draw_coordinator(canvas: Canvas, picture: Picture, plan: Plan) -> None:
    """Draw the coordinator, where requests come from and go to, at both sides."""
    height = plan.bottom - plan.top
    style: dict[str, Any] = {"facecolor": STRIP, "edgecolor": FAINT, "linewidth": 0.5}
    if picture.coordinator_bounds:
        style |= {"edgecolor": BOUND, "linewidth": 1.8}
    for x in _strips(picture, plan):
        canvas.box(x, plan.top, _STRIP_WIDTH, height, **style)
        if height > 0.9:
            middle = x + _STRIP_WIDTH / 2, plan.top + height / 2
            canvas.text(*middle, "coordinator", fontsize=7.5, rotation=90, ha="center", va="center")


def _strips(picture: Picture, plan: Plan) -> tuple[float, float]:
    return (
        plan.x(0) - _STRIP_GAP - _STRIP_WIDTH,
        plan.x(picture.num_layers) + _STRIP_GAP,
    )


def draw_ribbons(canvas: Canvas, picture: Picture, plan: Plan) -> None:
    """Draw the flow between rows; ribbons that carry most come last."""
    most = max(ribbon.flow_tokens_per_s for ribbon in picture.ribbons) or 1.0
    for ribbon in picture.ribbons:
        idle = ribbon.flow_tokens_per_s == 0
        if idle and not ribbon.bounds and len(picture.ribbons) > _MAX_IDLE:
            continue
        style = _style(ribbon, ribbon.flow_tokens_per_s / most, plan.pen, idle=idle)
        canvas.curve(_points(picture, plan, ribbon), gid=ribbon_id(ribbon), **style)


def _style(ribbon: Ribbon, share: float, pen: float, *, idle: bool) -> dict[str, Any]:
    colour = OTHER_REGION if ribbon.crosses_regions else SAME_REGION
    if ribbon.bounds:
        colour = BOUND
    if idle:
        return {"edgecolor": colour, "linewidth": 0.6, "alpha": 0.6, "linestyle": (0, (1, 2))}
    style: dict[str, Any] = {
        "edgecolor": colour,
        "linewidth": (0.7 + _WIDEST * share) * pen,
        "alpha": 0.9 if ribbon.bounds else 0.45 + 0.2 * share,
        "capstyle": "butt",
        "zorder": 3,
    }
    if ribbon.crosses_regions:
        style["linestyle"] = (0, (2.2, 0.8))
    return style


def _points(picture: Picture, plan: Plan, ribbon: Ribbon) -> list[Point]:
    """Out of one bar to the right, into the other from the left; straight at the coordinator."""
    first, last = _strips(picture, plan)
    if ribbon.source == COORDINATOR_ROW:
        y = plan.y(ribbon.target)
        return _straight(first + _STRIP_WIDTH, plan.x(0), y)
    if ribbon.target == COORDINATOR_ROW:
        y = plan.y(ribbon.source)
        return _straight(plan.x(picture.num_layers), last, y)
    x, start, end = plan.x(ribbon.layer), plan.y(ribbon.source), plan.y(ribbon.target)
    swing = min(0.05 + 0.08 * abs(end - start), 0.35)
    return [(x, start), (x + swing, start), (x - swing, end), (x, end)]


def _straight(a: float, b: float, y: float) -> list[Point]:
    return [(a, y), (a, y), (b, y), (b, y)]

"""The rows of a placement's picture: names to the left, bars, figures to the right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helixsim.drawing.canvas import Canvas, column_head, text_width
from helixsim.drawing.captions import common_prefix, rate_text, short_name
from helixsim.drawing.lanes import Row
from helixsim.drawing.picture import Picture
from helixsim.drawing.style import BOUND, GRID, tint, type_colours

_BARS_WIDTH = 7.6
_GAP = 0.16
_MIN_RIGHT = 0.9
_COORDINATOR_SPACE = 0.42


@dataclass(slots=True)
class Plan:
    """Where things go, in inches.

    Attributes
    ----------
    known
        Whether types and flow are known.
    prefix
        What all names start with and labels leave out.
    pitch
        From one row to the next.
    size
        Of the texts in rows, in points; 0 where rows are too close for texts.
    columns
        Left: column -> x of its left end. Right: column -> x of its right end.
    left
        Where layer 0 is.
    top
        Where the first row starts.
    """

    known: bool
    prefix: str
    num_rows: int
    num_layers: int
    pitch: float
    size: float
    columns: dict[str, float]
    left: float
    width: float
    margin: float
    top: float = 0.0

    @property
    def bottom(self) -> float:
        """Where the last row ends."""
        return self.top + self.num_rows * self.pitch

    @property
    def pen(self) -> float:
        """How thick lines are: thinner where rows are close."""
        return min(1.0, self.pitch / 0.1)

    def x(self, layer: float) -> float:
        """Where a layer starts."""
        return self.left + layer * _BARS_WIDTH / self.num_layers

    def y(self, row: int) -> float:
        """The middle of a row."""
        return self.top + (row + 0.5) * self.pitch

    def layer_ticks(self, num_layers: int) -> list[int]:
        """Layers to name: round ones, and the last."""
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if num_layers / s <= 12)
        ticks = [n for n in range(0, num_layers, step) if num_layers - n >= step / 2]
        return [*ticks, num_layers]


def _pitch(num_rows: int) -> tuple[float, float]:
    """Height of a row in inches, and size of its texts in points."""
    if num_rows <= 50:
        return 0.205, 8.5
    if num_rows <= 80:
        return 0.175, 8.0
    if num_rows <= 160:
        return 0.125, 6.5
    return max(0.035, 14 / num_rows), 0.0


def plan_table(picture: Picture, margin: float) -> Plan:
    """Decide how wide the columns are; only `top` is left open."""
    names = [machine.name for row in picture.rows for machine in row.machines]
    prefix = common_prefix(names)
    pitch, size = _pitch(len(picture.rows))
    columns: dict[str, float] = {}
    x = margin
    for column, texts in _left_columns(picture, prefix).items():
        columns[column] = x
        if size:
            x += max(text_width(text, size) for text in (column, *texts)) + _GAP
    known = picture.flow_tokens_per_s is not None
    left = x + (_COORDINATOR_SPACE if known else 0.0)
    x = left + _BARS_WIDTH + (_COORDINATOR_SPACE if known else 0.0)
    for column, texts in _right_columns(picture).items():
        if size:
            bold = any(row.bounds for row in picture.rows)
            x += max(text_width(text, size, bold=bold) for text in (column, *texts)) + _GAP
        columns[column] = x
    return Plan(
        known=known,
        prefix=prefix,
        num_rows=len(picture.rows),
        num_layers=picture.num_layers,
        pitch=pitch,
        size=size,
        columns=columns,
        left=left,
        width=max(x, left + _BARS_WIDTH + _MIN_RIGHT) + margin,
        margin=margin,
    )


def _left_columns(picture: Picture, prefix: str) -> dict[str, list[str]]:
    rows = picture.rows
    columns = {f"{prefix}…" if prefix else "node": [_label(row, prefix) for row in rows]}
    if picture.machine_types != ("",):
        columns["type"] = [row.first.machine_type for row in rows]
    if len(picture.regions) > 1:
        columns["region"] = [short_name(row.first.region) for row in rows]
    return columns


def _right_columns(picture: Picture) -> dict[str, list[str]]:
    rows = picture.rows
    columns = {"layers": [str(row.num_layers) for row in rows]}
    if picture.flow_tokens_per_s is not None:
        columns["tokens/s"] = [rates_text(row) for row in rows]
        columns["used"] = [f"{row.used:.0%}" for row in rows]
    return columns


def _label(row: Row, prefix: str) -> str:
    if len(row.machines) > 1:
        return f"{len(row.machines)} x {row.first.machine_type or 'node'}"
    return short_name(row.first.name, prefix)


def rates_text(row: Row) -> str:
    """What of its capacity a row uses."""
    return f"{rate_text(row.flow_tokens_per_s)} of {rate_text(row.capacity_tokens_per_s)}"


def draw_rows(canvas: Canvas, picture: Picture, plan: Plan) -> None:
    """Draw all rows with their texts."""
    left, right = _left_columns(picture, plan.prefix), _right_columns(picture)
    if plan.size:
        for column in (*left, *right):
            ha = "left" if column in left else "right"
            y = plan.top - 0.11
            column_head(canvas, plan.columns[column], y, column, min(plan.size, 8.0), ha)
    colours = type_colours(picture.machine_types)
    for number, row in enumerate(picture.rows):
        y = plan.y(number)
        edge = y + plan.pitch / 2
        ends = [(plan.columns[next(iter(left))], edge), (plan.width - plan.margin, edge)]
        canvas.line(ends, color=GRID, linewidth=0.4, zorder=0)
        _draw_bar(canvas, row, plan, number, colours[row.first.machine_type])
        if not plan.size:
            continue
        for column, texts in left.items():
            canvas.text(plan.columns[column], y, texts[number], fontsize=plan.size)
        style: dict[str, Any] = {"color": BOUND, "fontweight": "bold"} if row.bounds else {}
        style |= {"fontsize": plan.size, "ha": "right"}
        for column, texts in right.items():
            canvas.text(plan.columns[column], y, texts[number], **style)


def _draw_bar(canvas: Canvas, row: Row, plan: Plan, number: int, colour: str) -> None:
    node = row.first
    height = 0.74 * plan.pitch
    x, end = plan.x(node.start_layer) + 0.012, plan.x(node.end_layer) - 0.012
    top = plan.y(number) - height / 2
    canvas.box(x, top, end - x, height, facecolor=tint(colour) if plan.known else colour)
    filled = height * row.used if plan.known else 0.0
    canvas.box(x, top + height - filled, end - x, filled, facecolor=colour)
    if "compute" in row.bounds:
        style = {"edgecolor": BOUND, "linewidth": 1.8 * plan.pen, "zorder": 4}
        canvas.box(x, top, end - x, height, facecolor="none", **style)
    elif row.bounds_too:
        dashed = {"linewidth": plan.pen, "linestyle": (0, (2, 1.2))}
        style = {"edgecolor": BOUND, "zorder": 4, **dashed}
        canvas.box(x, top, end - x, height, facecolor="none", **style)
    # What is pointed at lies over all of it, and cannot be seen.
    wide = max(end - x, 0.08)
    canvas.box(x, top, wide, height, facecolor="white", alpha=0.001, gid=f"row-{number}")
    for role, place in (("inbound", x - 0.03), ("outbound", end - 0.03)):
        if role in row.bounds:
            canvas.box(place, top - 0.02, 0.06, height + 0.04, facecolor=BOUND, zorder=5)

"""The lanes of a placement's picture: names to the left, bars, figures to the right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helixsim.drawing.canvas import Canvas, column_head, text_width
from helixsim.drawing.captions import common_prefix, rate_text, short_name
from helixsim.drawing.lanes import COORDINATOR_LANE, FlowEdge, Lane
from helixsim.drawing.picture import Picture
from helixsim.drawing.style import BOUND, GRID, tint, type_colours
from helixsim.placement.cut_text import names_text

_BARS_WIDTH = 7.6
_GAP = 0.16
_MIN_RIGHT = 0.9
_COORDINATOR_SPACE = 0.42


@dataclass(slots=True)
class TableLayout:
    """Positions of columns and lanes, in inches.

    Attributes
    ----------
    known
        Whether machine types and flow are known.
    prefix
        Common start of all names, which labels leave out.
    pitch
        Distance from one lane to the next.
    size
        Size of texts in points; 0 where lanes are too close for texts.
    columns
        Left: column -> x of its left end. Right: column -> x of its right end.
    left
        x of layer 0.
    top
        y of the first lane's upper edge.
    """

    known: bool
    prefix: str
    num_lanes: int
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
        """Y of the last lane's lower edge."""
        return self.top + self.num_lanes * self.pitch

    @property
    def pen(self) -> float:
        """Scale of line widths: thinner where lanes are close."""
        return min(1.0, self.pitch / 0.1)

    def x(self, layer: float) -> float:
        """X of the start of a layer."""
        return self.left + layer * _BARS_WIDTH / self.num_layers

    def y(self, lane: int) -> float:
        """Y of the middle of a lane."""
        return self.top + (lane + 0.5) * self.pitch

    def layer_ticks(self, num_layers: int) -> list[int]:
        """Layers with a label: round numbers, and the last."""
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if num_layers / s <= 12)
        ticks = [n for n in range(0, num_layers, step) if num_layers - n >= step / 2]
        return [*ticks, num_layers]


def _pitch(num_lanes: int) -> tuple[float, float]:
    """Height of a lane in inches, and size of its texts in points."""
    if num_lanes <= 50:
        return 0.205, 8.5
    if num_lanes <= 80:
        return 0.175, 8.0
    if num_lanes <= 160:
        return 0.125, 6.5
    return max(0.035, 14 / num_lanes), 0.0


def table_layout(picture: Picture, margin: float) -> TableLayout:
    """Lay out the columns; only `top` is still to be set."""
    names = [node.name for lane in picture.lanes for node in lane.nodes]
    prefix = common_prefix(names)
    pitch, size = _pitch(len(picture.lanes))
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
            bold = any(lane.bounds for lane in picture.lanes)
            x += max(text_width(text, size, bold=bold) for text in (column, *texts)) + _GAP
        columns[column] = x
    return TableLayout(
        known=known,
        prefix=prefix,
        num_lanes=len(picture.lanes),
        num_layers=picture.num_layers,
        pitch=pitch,
        size=size,
        columns=columns,
        left=left,
        width=max(x, left + _BARS_WIDTH + _MIN_RIGHT) + margin,
        margin=margin,
    )


def _left_columns(picture: Picture, prefix: str) -> dict[str, list[str]]:
    lanes = picture.lanes
    columns = {f"{prefix}…" if prefix else "node": [_label(lane, prefix) for lane in lanes]}
    if picture.machine_types != ("",):
        columns["type"] = [lane.first.machine_type for lane in lanes]
    if len(picture.regions) > 1:
        columns["region"] = [short_name(lane.first.region) for lane in lanes]
    return columns


def _right_columns(picture: Picture) -> dict[str, list[str]]:
    lanes = picture.lanes
    columns = {"layers": [str(lane.num_layers) for lane in lanes]}
    if picture.flow_tokens_per_s is not None:
        columns["tokens/s"] = [rates_text(lane) for lane in lanes]
        columns["used"] = [f"{lane.used:.0%}" for lane in lanes]
    return columns


def _label(lane: Lane, prefix: str) -> str:
    if len(lane.nodes) > 1:
        return f"{len(lane.nodes)} x {lane.first.machine_type or 'node'}"
    return short_name(lane.first.name, prefix)


def rates_text(lane: Lane) -> str:
    """Flow and capacity of a lane."""
    return f"{rate_text(lane.flow_tokens_per_s)} of {rate_text(lane.capacity_tokens_per_s)}"


def draw_lanes(canvas: Canvas, picture: Picture, layout: TableLayout) -> None:
    """Draw all lanes with their texts."""
    left, right = _left_columns(picture, layout.prefix), _right_columns(picture)
    if layout.size:
        for column in (*left, *right):
            ha = "left" if column in left else "right"
            y = layout.top - 0.11
            column_head(canvas, layout.columns[column], y, column, min(layout.size, 8.0), ha)
    colours = type_colours(picture.machine_types)
    for number, lane in enumerate(picture.lanes):
        y = layout.y(number)
        edge = y + layout.pitch / 2
        ends = [(layout.columns[next(iter(left))], edge), (layout.width - layout.margin, edge)]
        canvas.line(ends, color=GRID, linewidth=0.4, zorder=0)
        _draw_bar(canvas, lane, layout, number, colours[lane.first.machine_type])
        if not layout.size:
            continue
        for column, texts in left.items():
            canvas.text(layout.columns[column], y, texts[number], fontsize=layout.size)
        style: dict[str, Any] = {"color": BOUND, "fontweight": "bold"} if lane.bounds else {}
        style |= {"fontsize": layout.size, "ha": "right"}
        for column, texts in right.items():
            canvas.text(layout.columns[column], y, texts[number], **style)


def _draw_bar(canvas: Canvas, lane: Lane, layout: TableLayout, number: int, colour: str) -> None:
    node = lane.first
    height = 0.74 * layout.pitch
    x, end = layout.x(node.start_layer) + 0.012, layout.x(node.end_layer) - 0.012
    top = layout.y(number) - height / 2
    canvas.box(x, top, end - x, height, facecolor=tint(colour) if layout.known else colour)
    filled = height * lane.used if layout.known else 0.0
    canvas.box(x, top + height - filled, end - x, filled, facecolor=colour)
    if "compute" in lane.bounds:
        style = {"edgecolor": BOUND, "linewidth": 1.8 * layout.pen, "zorder": 4}
        canvas.box(x, top, end - x, height, facecolor="none", **style)
    elif lane.bounds_too:
        dashed = {"linewidth": layout.pen, "linestyle": (0, (2, 1.2))}
        style = {"edgecolor": BOUND, "zorder": 4, **dashed}
        canvas.box(x, top, end - x, height, facecolor="none", **style)
    # The target of the tooltip lies over the whole bar and is invisible.
    wide = max(end - x, 0.08)
    canvas.box(x, top, wide, height, facecolor="white", alpha=0.001, gid=f"lane-{number}")
    for role, place in (("inbound", x - 0.03), ("outbound", end - 0.03)):
        if role in lane.bounds:
            canvas.box(place, top - 0.02, 0.06, height + 0.04, facecolor=BOUND, zorder=5)


# -- tooltips ----------------------------------------------------------------------------------


def tooltips(picture: Picture) -> dict[str, str]:
    """Id of a lane or an edge -> text of its tooltip."""
    found = {
        f"lane-{number}": _lane_tip(picture, lane) for number, lane in enumerate(picture.lanes)
    }
    for edge in picture.edges:
        found[edge_id(edge)] = _edge_tip(edge)
    return found


def edge_id(edge: FlowEdge) -> str:
    """The id of an edge: the lanes that it joins."""
    ends = ("c" if end == COORDINATOR_LANE else str(end) for end in (edge.source, edge.target))
    return "flow-" + "-".join(ends)


def _lane_tip(picture: Picture, lane: Lane) -> str:
    node = lane.first
    names = names_text([node.name for node in lane.nodes])
    many = len(lane.nodes) > 1
    lines = [f"{len(lane.nodes)} nodes: {names}" if many else names]
    where = f", region {node.region}" if len(picture.regions) > 1 else ""
    if node.machine_type:
        lines.append(f"{node.machine_type}{where}")
    lines.append(f"layers {node.start_layer} to {node.end_layer - 1} ({lane.num_layers})")
    if picture.flow_tokens_per_s is not None:
        together = " together" if many else ""
        lines.append(f"{rates_text(lane)} tokens/s{together}, {lane.used:.0%} used")
        lines.append(f"KV cache: {node.kv_tokens:,.0f} tokens{' each' if many else ''}")
    roles = {"compute": "compute", "inbound": "inbound interface", "outbound": "outbound interface"}
    if lane.bounds:
        lines.append("bottleneck: " + ", ".join(roles[r] for r in roles if r in lane.bounds))
    elif lane.bounds_too:
        lines.append("as tight as the bottleneck")
    return "\n".join(lines)


def _edge_tip(edge: FlowEdge) -> str:
    links = edge.links
    if len(links) == 1:
        lines = [f"{links[0].names[0]} → {links[0].names[1]}"]
    else:
        lines = [f"{len(links)} links, such as {links[0].names[0]} → {links[0].names[1]}"]
    capacity = sum(link.capacity_tokens_per_s for link in links)
    lines.append(f"{rate_text(edge.flow_tokens_per_s)} of {rate_text(capacity)} tokens/s")
    low, high = (pick(link.latency_s for link in links) * 1e3 for pick in (min, max))
    lines.append(f"latency {low:.3g} ms" if low == high else f"latency {low:.3g} to {high:.3g} ms")
    if edge.crosses_regions:
        lines.append("between regions")
    if edge.bounds:
        lines.append("bottleneck")
    return "\n".join(lines)

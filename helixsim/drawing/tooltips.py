"""What a placement's picture says of a row or a ribbon that is pointed at."""

from __future__ import annotations

from helixsim.drawing.captions import names_text, rate_text
from helixsim.drawing.lanes import COORDINATOR_ROW, Ribbon, Row
from helixsim.drawing.picture import Picture
from helixsim.drawing.table import rates_text


def tooltips(picture: Picture) -> dict[str, str]:
    """Id of what is drawn -> what it says when pointed at."""
    found = {f"row-{number}": _row_tip(picture, row) for number, row in enumerate(picture.rows)}
    for ribbon in picture.ribbons:
        found[ribbon_id(ribbon)] = _ribbon_tip(ribbon)
    return found


def ribbon_id(ribbon: Ribbon) -> str:
    """The id of a ribbon: the rows it joins."""
    ends = ("c" if end == COORDINATOR_ROW else str(end) for end in (ribbon.source, ribbon.target))
    return "flow-" + "-".join(ends)


def _row_tip(picture: Picture, row: Row) -> str:
    node = row.first
    names = names_text([machine.name for machine in row.machines])
    many = len(row.machines) > 1
    lines = [f"{len(row.machines)} nodes: {names}" if many else names]
    where = f", region {node.region}" if len(picture.regions) > 1 else ""
    if node.machine_type:
        lines.append(f"{node.machine_type}{where}")
    lines.append(f"layers {node.start_layer} to {node.end_layer - 1} ({row.num_layers})")
    if picture.flow_tokens_per_s is not None:
        together = " together" if many else ""
        lines.append(f"{rates_text(row)} tokens/s{together}, {row.used:.0%} used")
        lines.append(f"KV cache: {node.kv_tokens:,.0f} tokens{' each' if many else ''}")
    roles = {"compute": "compute", "inbound": "inbound interface", "outbound": "outbound interface"}
    if row.bounds:
        lines.append("bottleneck: " + ", ".join(roles[r] for r in roles if r in row.bounds))
    elif row.bounds_too:
        lines.append("as tight as the bottleneck")
    return "\n".join(lines)


def _ribbon_tip(ribbon: Ribbon) -> str:
    wires = ribbon.wires
    if len(wires) == 1:
        lines = [f"{wires[0].names[0]} → {wires[0].names[1]}"]
    else:
        lines = [f"{len(wires)} links, such as {wires[0].names[0]} → {wires[0].names[1]}"]
    capacity = sum(wire.capacity_tokens_per_s for wire in wires)
    lines.append(f"{rate_text(ribbon.flow_tokens_per_s)} of {rate_text(capacity)} tokens/s")
    low, high = (pick(wire.latency_s for wire in wires) * 1e3 for pick in (min, max))
    lines.append(f"latency {low:.3g} ms" if low == high else f"latency {low:.3g} to {high:.3g} ms")
    if ribbon.crosses_regions:
        lines.append("between regions")
    if ribbon.bounds:
        lines.append("bottleneck")
    return "\n".join(lines)

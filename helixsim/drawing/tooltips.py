"""Tooltips of the lanes and flow edges of a placement's picture."""

from __future__ import annotations

from helixsim.drawing.captions import names_text, rate_text
from helixsim.drawing.lanes import COORDINATOR_LANE, FlowEdge, Lane
from helixsim.drawing.picture import Picture
from helixsim.drawing.table import rates_text


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

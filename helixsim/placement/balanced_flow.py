"""The balanced maximum flow: of all maximum flows, one with little queueing.

Most placements have spare machines at most layers, so the maximum flow can be split in many ways.
One split may fill a machine completely and leave an identical one idle, or cross between regions
without need; the value of the flow is the same, the throughput of the cluster is not. The
balanced flow minimises

    sum over nodes and links  t f^2 / (2 c)  +  sum over links  d f,

with flow f and capacity c of a node or link; t is the time of a mean prompt, for which other
requests wait, on this link or on the mean of all nodes; d is the time of a token on the
link: its latency, and the transmission time of a request divided among its passes. The sum is
convex. Successive shortest paths, which send the flow in small portions along the cheapest paths
and may undo earlier portions, reach the minimum up to the size of a portion.
"""

from __future__ import annotations

from math import inf
from statistics import fmean

from helixsim.placement.flow import Flow, max_flow
from helixsim.placement.front_end_shares import shares_by_machine, with_own_returns
from helixsim.placement.topology import Topology
from helixsim.profiles.throughput import ThroughputTable

_PORTIONS = 100
"""Number of portions in which the flow is sent; shares are exact to about a percent."""
_PORTIONS_PER_PART = 20
"""Least number of portions for each part of a placement that shares no nodes with others, so that
the share of each of many replicas is exact to some percent, too."""


class _Edge:
    """An edge of the flow graph, with the cost of the next unit through it."""

    __slots__ = ("capacity", "flow", "slope", "source", "target", "time_s")

    def __init__(
        self, source: int, target: int, capacity: float, time_s: float, slope: float
    ) -> None:
        self.source = source
        self.target = target
        self.capacity = capacity
        self.time_s = time_s
        self.slope = slope
        self.flow = 0.0


def balanced_flow(
    topology: Topology,
    throughput: ThroughputTable,
    mean_prompt_tokens: int,
    mean_output_tokens: int,
) -> Flow:
    """Find a maximum flow that is balanced between nodes and avoids slow links.

    Parameters
    ----------
    topology, throughput
        As for :func:`~helixsim.placement.flow.max_flow`, which gives the value.
    mean_prompt_tokens, mean_output_tokens
        Lengths of the mean request.

    Returns
    -------
    Flow
        Its value is the maximum. The flows over the links add up to this value within a
        portion; their ratios are the shares of requests.
    """
    most = max_flow(topology, throughput)
    if most.tokens_per_s <= 0:
        return most
    links = _link_edges(topology, mean_prompt_tokens, mean_output_tokens)
    shares, source, sink = _share_edges(topology, most.tokens_per_s)
    prompt_s = fmean(
        node.num_layers * node.profile.prefill(mean_prompt_tokens) for node in topology.nodes
    )
    nodes = []
    for node, compute_tokens_per_s in zip(topology.nodes, most.compute_tokens_per_s, strict=True):
        carried = _carried(topology, node.index, compute_tokens_per_s)
        if carried > 0:
            slope = prompt_s / carried
            nodes.append(_Edge(2 * node.index, 2 * node.index + 1, carried, 0.0, slope))
    # In order of layers: then one pass over the edges finds most of the cheapest paths.
    layer = [node.start_layer for node in topology.nodes]
    edges = sorted(
        [*links, *nodes],
        key=lambda edge: (
            -1
            if topology.is_front_end(edge.source // 2)
            else 2 * layer[edge.source // 2] + edge.source % 2
        ),
    )
    _send([*shares, *edges], source, sink, most.tokens_per_s)
    by_link = tuple(edge.flow for edge in links)
    if shares:
        by_link = with_own_returns(topology, by_link, most.tokens_per_s)
    return Flow(most.tokens_per_s, by_link, most.compute_tokens_per_s)


def _share_edges(topology: Topology, total: float) -> tuple[list[_Edge], int, int]:
    """Where the flow begins and ends; with several front ends, also the edges of their shares."""
    source, sink = 2 * topology.coordinator + 1, 2 * topology.coordinator
    if len(topology.front_ends) == 1:
        return [], source, sink
    source, sink = 2 * topology.num_machines + 1, 2 * topology.num_machines
    edges = []
    for home, share in shares_by_machine(topology).items():
        edges.append(_Edge(source, 2 * home + 1, share * total, 0.0, 0.0))
        edges.append(_Edge(2 * home, sink, share * total, 0.0, 0.0))
    return edges, source, sink


def _link_edges(topology: Topology, prompt_tokens: int, output_tokens: int) -> list[_Edge]:
    """One edge for each link, in order; a machine is two vertices, in and out."""
    per_pass = (prompt_tokens + output_tokens) / (1 + output_tokens)
    edges = []
    for link in topology.links:
        token_s = link.bytes_per_token / link.bandwidth_bytes_per_s
        edges.append(
            _Edge(
                2 * link.source + 1,
                2 * link.target,
                1 / token_s,
                link.latency_s + per_pass * token_s,
                prompt_tokens * token_s * token_s,
            )
        )
    return edges


def _carried(topology: Topology, node: int, compute_tokens_per_s: float) -> float:
    """Capacity of a node, including its network interfaces."""
    llm, nic = topology.llm, topology.nic(node)
    between = llm.token_bytes + llm.activation_bytes_per_token
    from_home = all(topology.is_front_end(link.source) for link in topology.incoming[node])
    to_home = all(topology.is_front_end(link.target) for link in topology.outgoing[node])
    return min(
        compute_tokens_per_s,
        nic.inbound_bytes_per_s / (llm.token_bytes if from_home else between),
        nic.outbound_bytes_per_s / (llm.token_bytes if to_home else between),
    )


def _send(edges: list[_Edge], source: int, sink: int, amount: float) -> None:
    """Send an amount in portions, each along the cheapest path of all parts of the graph.

    Only the part that took the last portion has a new cheapest path.
    """
    parts = _parts(edges, {source, sink})
    portion = amount / max(_PORTIONS, _PORTIONS_PER_PART * len(parts))
    ways = [_cheapest_way(part, source, sink, portion) for part in parts]
    left = amount
    while left > portion * 1e-6:
        cheapest, number = inf, -1
        for place, (cost, _) in enumerate(ways):
            if _is_less(cost, cheapest):
                cheapest, number = cost, place
        if number < 0:
            return
        way = ways[number][1]
        room = min(edge.capacity - edge.flow if forward else edge.flow for edge, forward in way)
        step = min(portion, left, room)
        for edge, forward in way:
            edge.flow += step if forward else -step
        left -= step
        ways[number] = _cheapest_way(parts[number], source, sink, portion)


def _parts(edges: list[_Edge], ends: set[int]) -> list[list[_Edge]]:
    """The edges of each part of the graph that joins others only at its source and its sink."""
    part_of: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for edge in edges:
        numbers = []
        for vertex in (edge.source, edge.target):
            if vertex not in ends and vertex not in part_of:
                part_of[vertex], members[vertex] = vertex, [vertex]
            numbers.append(part_of.get(vertex))
        one, other = numbers
        if one is None or other is None or one == other:
            continue
        if len(members[one]) < len(members[other]):
            one, other = other, one
        for vertex in members[other]:
            part_of[vertex] = one
        members[one] += members.pop(other)
    found: dict[int | None, list[_Edge]] = {}
    for edge in edges:
        found.setdefault(part_of.get(edge.source, part_of.get(edge.target)), []).append(edge)
    return list(found.values())


def _cheapest_way(
    edges: list[_Edge], source: int, sink: int, portion: float
) -> tuple[float, list[tuple[_Edge, bool]]]:
    """The cheapest path for one more portion, as edges used forward or undone, and its cost.

    The cost is infinite if there is no path.
    """
    cost: dict[int, float] = {source: 0.0}
    came: dict[int, tuple[_Edge, bool]] = {}
    least = portion * 1e-6
    half = portion / 2
    changed = True
    while changed:
        changed = False
        for edge in edges:
            a, b = edge.source, edge.target
            flow = edge.flow
            if a in cost and edge.capacity - flow > least:
                there = cost[a] + edge.time_s + edge.slope * (flow + half)
                if _is_less(there, cost.get(b, inf)):
                    cost[b], came[b], changed = there, (edge, True), True
            if flow > least and b in cost:
                there = cost[b] - edge.time_s - edge.slope * max(0.0, flow - half)
                if _is_less(there, cost.get(a, inf)):
                    cost[a], came[a], changed = there, (edge, False), True
    if sink not in came:
        return inf, []
    way: list[tuple[_Edge, bool]] = []
    vertex = sink
    while vertex != source:
        edge, forward = came[vertex]
        way.append((edge, forward))
        vertex = edge.source if forward else edge.target
    return cost[sink], way


def _is_less(seconds: float, than: float) -> bool:
    """Whether a cost is less by more than rounding, which could go round in circles for ever."""
    return seconds < than - max(1e-12, 1e-14 * abs(seconds))

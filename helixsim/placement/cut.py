"""The bottleneck of a maximum flow: the machines and links of a minimum cut.

A resource that is fully used is not necessarily a bottleneck. A minimum cut is, because its
capacities add up to the maximum flow and every route crosses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx

from helixsim.placement.flow import Flow, flow_graph, solve
from helixsim.placement.topology import Topology
from helixsim.profiles.throughput import ThroughputTable

_ROUNDING, _SOURCE_ROUNDING = 1e-9, 2**-48
"""Smaller shares of the maximum flow, and of the capacity of the source, are rounding errors: the
algorithm first sends the full capacity of the source, and then takes the excess back."""

_LINK = (1, 0)
_KINDS = {
    (0, 2): "inbound",
    (2, 3): "compute",
    (3, 1): "outbound",
    _LINK: "links",
    (2, 1): "outbound",
    (0, 3): "inbound",
}
"""Ends of an edge of the flow graph, modulo 4 -> kind of edge; a front end's last."""
_MORE = 1 + 1e-5
"""With several front ends, the shares of this multiple of the maximum flow are not what binds."""

_Edge = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Machines and links, numbered as in the topology.

    Attributes
    ----------
    compute
        Nodes with compute in the cut.
    inbound, outbound
        Machines with this direction of the network interface in the cut.
    links
        Links in the cut.
    """

    compute: tuple[int, ...] = ()
    inbound: tuple[int, ...] = ()
    outbound: tuple[int, ...] = ()
    links: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Number of resources."""
        return sum(map(len, (self.compute, self.inbound, self.outbound, self.links)))


@dataclass(frozen=True, slots=True)
class Cut:
    """A minimum cut of the flow graph.

    Attributes
    ----------
    tokens_per_s
        The maximum flow: with one front end, the sum of its capacities.
    bounds
        Its machines and links.
    others
        Machines and links of other minimum cuts: more capacity of `bounds` alone would not
        increase the flow.
    """

    tokens_per_s: float
    bounds: Bounds
    others: Bounds


def min_cut(topology: Topology, throughput: ThroughputTable, flow: Flow) -> Cut:
    """Find the minimum cut that is closest to the end of the pipeline.

    Minimum cuts do not depend on the split of the maximum flow.

    Parameters
    ----------
    topology, throughput
        As for :func:`~helixsim.placement.flow.max_flow`.
    flow
        The result of that function.
    """
    is_shared = len(topology.front_ends) > 1
    total = flow.tokens_per_s * _MORE if is_shared else None
    graph, source, sink, _ = flow_graph(topology, throughput, total)
    sent = sum(graph.edges[edge]["capacity"] for edge in graph.out_edges(source))
    least = _ROUNDING * flow.tokens_per_s + _SOURCE_ROUNDING * float(sent)
    if is_shared:
        _, by_edge = solve(nx.maximum_flow, graph, source, sink)
        flows = {(tail, head): by_edge[tail][head] for tail, head in graph.edges}
    else:
        flows = _edge_flows(topology, flow)
    residual = _residual(graph, flows, least)
    after = nx.ancestors(residual, sink) | {sink}
    crossed = [(a, b) for a, b in graph.edges if a not in after and b in after]
    others = set(_crossable(graph, residual)) - set(crossed)
    return Cut(
        flow.tokens_per_s
        if is_shared
        else float(sum(graph.edges[edge]["capacity"] for edge in crossed)),
        _bounds(topology, crossed),
        _bounds(topology, others),
    )


def _edge_flows(topology: Topology, flow: Flow) -> dict[_Edge, float]:
    """The flow over every edge of the flow graph; all edges of a machine have its inflow."""
    flows: dict[_Edge, float] = {}
    through = [0.0] * (topology.coordinator + 1)
    for link, rate in zip(topology.links, flow.link_tokens_per_s, strict=True):
        flows[4 * link.source + 1, 4 * link.target] = rate
        through[link.target] += rate
    for machine, rate in enumerate(through):
        for tail, head in _KINDS:
            if (tail, head) != _LINK:
                flows[4 * machine + tail, 4 * machine + head] = rate
    return flows


def _residual(
    graph: nx.DiGraph[int], flows: Mapping[_Edge, float], least: float
) -> nx.DiGraph[int]:
    """The residual graph: forward along edges that are not full, back along edges in use."""
    residual: nx.DiGraph[int] = nx.DiGraph()
    residual.add_nodes_from(graph)
    for (tail, head), capacity in nx.get_edge_attributes(graph, "capacity").items():
        if flows[tail, head] < capacity - least:
            residual.add_edge(tail, head)
        if flows[tail, head] > least:
            residual.add_edge(head, tail)
    return residual


def _crossable(graph: nx.DiGraph[int], residual: nx.DiGraph[int]) -> Iterable[_Edge]:
    """Edges of any minimum cut: in use, and without a residual path from tail to head.

    Edges in use have a residual path back, so this tests whether both ends are strongly connected.
    """
    component = {
        node: number
        for number, nodes in enumerate(nx.strongly_connected_components(residual))
        for node in nodes
    }
    for tail, head in graph.edges:
        if residual.has_edge(head, tail) and component[tail] != component[head]:
            yield tail, head


def _bounds(topology: Topology, edges: Iterable[_Edge]) -> Bounds:
    number = {(link.source, link.target): link.index for link in topology.links}
    found: dict[str, list[int]] = {kind: [] for kind in _KINDS.values()}
    for tail, head in edges:
        kind = _KINDS.get((tail % 4, head % 4))
        if kind is None:
            continue  # the share of a front end
        pair = tail // 4, head // 4
        found[kind].append(number[pair] if kind == _KINDS[_LINK] else pair[0])
    return Bounds(**{kind: tuple(sorted(indices)) for kind, indices in found.items()})

"""What bounds a maximum flow: the machines and links of a minimum cut.

What is merely used to the full need not bound anything; a minimum cut does, because its
capacities add up to the maximum flow and every route crosses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx

from helixsim.placement.flow import Flow, flow_graph
from helixsim.placement.topology import Topology
from helixsim.profiles.throughput import ThroughputTable

_ROUNDING, _SOURCE_ROUNDING = 1e-9, 2**-48
"""Less than these shares of the maximum flow and of what the source could send are taken for
rounding errors: the flow is found by sending all of the latter first, and taking back the rest."""

_LINK = (1, 0)
_KINDS = {
    (0, 2): "inbound",
    (2, 3): "compute",
    (3, 1): "outbound",
    _LINK: "links",
    (2, 1): "outbound",
    (0, 3): "inbound",
}
"""Ends of an edge of the flow graph, modulo 4 -> what it stands for; the coordinator's last."""

_Edge = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Machines and links, numbered as in the topology.

    Attributes
    ----------
    compute
        Nodes whose compute bounds.
    inbound, outbound
        Machines whose network interface bounds in that direction; the number of nodes stands for
        the coordinator.
    links
        Links that bound.
    """

    compute: tuple[int, ...] = ()
    inbound: tuple[int, ...] = ()
    outbound: tuple[int, ...] = ()
    links: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Count them."""
        return sum(map(len, (self.compute, self.inbound, self.outbound, self.links)))


@dataclass(frozen=True, slots=True)
class Cut:
    """A minimum cut of the flow graph.

    Attributes
    ----------
    tokens_per_s
        Sum of the capacities in it, which is the maximum flow.
    bounds
        What is in it.
    others
        What is not in it but in another minimum cut: with more of `bounds` alone, the flow would
        stay as it is.
    """

    tokens_per_s: float
    bounds: Bounds
    others: Bounds


def min_cut(topology: Topology, throughput: ThroughputTable, flow: Flow) -> Cut:
    """Find the minimum cut that is closest to the end of the pipeline.

    Neither this cut nor the others depend on how a maximum flow is split.

    Parameters
    ----------
    topology, throughput
        As for :func:`~helixsim.placement.flow.max_flow`.
    flow
        What that function has found.
    """
    graph, source, sink, _ = flow_graph(topology, throughput)
    sent = sum(graph.edges[edge]["capacity"] for edge in graph.out_edges(source))
    least = _ROUNDING * flow.tokens_per_s + _SOURCE_ROUNDING * float(sent)
    residual = _residual(graph, _edge_flows(topology, flow), least)
    after = nx.ancestors(residual, sink) | {sink}
    crossed = [(a, b) for a, b in graph.edges if a not in after and b in after]
    others = set(_crossable(graph, residual)) - set(crossed)
    return Cut(
        float(sum(graph.edges[edge]["capacity"] for edge in crossed)),
        _bounds(topology, crossed),
        _bounds(topology, others),
    )


def _edge_flows(topology: Topology, flow: Flow) -> dict[_Edge, float]:
    """The flow over every edge of the flow graph: what enters a machine passes all of it."""
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
    """Where more could flow: along edges that are not full, and back along those in use."""
    residual: nx.DiGraph[int] = nx.DiGraph()
    residual.add_nodes_from(graph)
    for (tail, head), capacity in nx.get_edge_attributes(graph, "capacity").items():
        if flows[tail, head] < capacity - least:
            residual.add_edge(tail, head)
        if flows[tail, head] > least:
            residual.add_edge(head, tail)
    return residual


def _crossable(graph: nx.DiGraph[int], residual: nx.DiGraph[int]) -> Iterable[_Edge]:
    """Edges of any minimum cut: in use, and no more can flow from tail to head on any way.

    Those in use have a way back, so this asks whether both ends are strongly connected.
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
        kind = _KINDS[tail % 4, head % 4]
        pair = tail // 4, head // 4
        found[kind].append(number[pair] if kind == _KINDS[_LINK] else pair[0])
    return Bounds(**{kind: tuple(sorted(indices)) for kind, indices in found.items()})

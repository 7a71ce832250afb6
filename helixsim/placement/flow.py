"""The flow graph of a placement, and the maximum flow of tokens through it.

Every machine is three edges: network interface in, compute, network interface out. The
capacity of each is in tokens per second: compute from the throughput estimate, network from bytes
per second over the bytes of a token. The value of the maximum flow estimates the capacity
of the placement; the flow over each link determines how the ``maxflow`` policy distributes
requests. Source: the Helix paper (arXiv 2406.01566), section 4. With several front ends, each is a
source and a sink of its share (:mod:`helixsim.placement.front_end_shares`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import networkx as nx
from networkx.algorithms.flow import preflow_push, shortest_augmenting_path

from helixsim.placement.front_end_shares import greatest_total, shares_by_machine, with_own_returns
from helixsim.placement.topology import PlacedLink, Topology
from helixsim.profiles.throughput import ThroughputTable

_AMPLE = 1e9
"""Network capacities above this multiple of all compute capacities together count as this multiple:
larger ones cannot limit a flow, and floats lose the compute capacities beside them."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A maximum flow.

    Attributes
    ----------
    tokens_per_s
        Its value.
    link_tokens_per_s
        For every link of the topology, in order, the flow over it.
    compute_tokens_per_s
        For every node, its compute capacity.
    """

    tokens_per_s: float
    link_tokens_per_s: tuple[float, ...]
    compute_tokens_per_s: tuple[float, ...]


def max_flow(topology: Topology, throughput: ThroughputTable) -> Flow:
    """Find a maximum flow of tokens.

    A maximum flow may be split in several ways. The one returned depends only on the order of
    nodes and links (machines are integers in the graph, so that it does not depend on the
    hash seed).

    Parameters
    ----------
    topology
        Nodes and links; only links that fit the layers may be in it.
    throughput
        Tokens per second of each machine type by number of layers.
    """
    total = None if len(topology.front_ends) == 1 else greatest_shared_total(topology, throughput)
    graph, source, sink, compute = flow_graph(topology, throughput, total)
    value, by_edge = solve(nx.maximum_flow, graph, source, sink)
    flows = tuple(float(by_edge[_out(link.source)][_in(link.target)]) for link in topology.links)
    if total is None:
        return Flow(float(value), flows, compute)
    return Flow(total, with_own_returns(topology, flows, total), compute)


def solve(
    method: Callable[..., tuple[Any, Any]], graph: nx.DiGraph[int], source: int, sink: int
) -> tuple[Any, Any]:
    """Solve a flow graph by networkx' ``maximum_flow`` or ``minimum_cut``; what that returns."""
    try:
        return method(graph, source, sink, flow_func=preflow_push)
    except (IndexError, KeyError):
        # networkx raises them on some graphs with fractional capacities, if rounding leaves an
        # excess without a path back.
        return method(graph, source, sink, flow_func=shortest_augmenting_path)


def greatest_shared_total(topology: Topology, throughput: ThroughputTable) -> float:
    """The maximum flow of several front ends, each of which has its share of it."""

    def cut_at(total: float) -> tuple[float, float]:
        graph, source, sink, _ = flow_graph(topology, throughput, total)
        value, (before, after) = solve(nx.minimum_cut, graph, source, sink)
        shares = sum(
            share
            for home, share in shares_by_machine(topology).items()
            for cut in (_begin(home) in after, _end(home) in before)
            if cut
        )
        return float(value), shares

    graph, source, sink, _ = flow_graph(topology, throughput, inf)
    return greatest_total(float(solve(nx.minimum_cut, graph, source, sink)[0]), cut_at)


_OF_EQUAL_SHARE = 0.5
"""Part of an equal share that is enough for a successor: with the default least share of 5 %, more
than ten successors are needed for it to matter."""


def used_links(
    links: Sequence[PlacedLink],
    link_tokens_per_s: Sequence[float],
    min_share: float,
    *,
    half_of_equal_is_enough: bool,
    replicas: Collection[int] = (),
) -> tuple[PlacedLink, ...]:
    """The outgoing links of one machine that requests follow.

    Parameters
    ----------
    links
        The outgoing links of the machine.
    link_tokens_per_s
        For every link of the topology, the flow over it.
    min_share
        Least share of the machine's outgoing flow, 0 to 1, that a used link carries.
    half_of_equal_is_enough
        Whether half of an equal share is enough in any case, so that among many successors alike
        none is passed over.
    replicas
        Nodes to which links with any flow are used: a machine that holds the whole LLM serves its
        requests by itself, however many faster ones there are.

    Returns
    -------
    tuple
        The used links, in the order of `links`. A link without flow is never among them.
    """
    total = sum(link_tokens_per_s[link.index] for link in links)
    carrying = tuple(link for link in links if link_tokens_per_s[link.index] > 0)
    if half_of_equal_is_enough and carrying:
        min_share = least_share(min_share, len(carrying))
    least = min_share * total
    return tuple(
        link
        for link in carrying
        if link_tokens_per_s[link.index] >= least or link.target in replicas
    )


def least_share(min_share: float, successors: int) -> float:
    """The share of a machine's flow that is enough for one of several successors."""
    return min(min_share, _OF_EQUAL_SHARE / successors)


def _in(machine: int) -> int:
    return 4 * machine


def _out(machine: int) -> int:
    return 4 * machine + 1


def _begin(machine: int) -> int:
    return 4 * machine + 2


def _end(machine: int) -> int:
    return 4 * machine + 3


def flow_graph(
    topology: Topology, throughput: ThroughputTable, total: float | None = None
) -> tuple[nx.DiGraph[int], int, int, tuple[float, ...]]:
    """Build the flow graph.

    Machine m is the nodes 4 m (in), 4 m + 2 and 4 m + 3 (before and after computing) and
    4 m + 1 (out); for a front end, 4 m + 2 is the source and 4 m + 3 the sink. Several of these
    are joined to one more source and one more sink, each by an edge with its share of `total`,
    tokens per second.

    Returns
    -------
    tuple
        The graph with a ``capacity`` in tokens per second on each edge, its source, its sink,
        and the compute capacity of every node of the topology.
    """
    llm = topology.llm
    between = llm.token_bytes + llm.activation_bytes_per_token
    graph: nx.DiGraph[int] = nx.DiGraph()
    compute = tuple(
        throughput.tokens_per_s(node.machine_type, node.num_layers, node.own_kv_token_layers)
        for node in topology.nodes
    )
    ample = _AMPLE * sum(compute)

    def add_network(start: int, end: int, bytes_per_s: float, bytes_per_token: float) -> None:
        graph.add_edge(start, end, capacity=min(bytes_per_s / bytes_per_token, ample))

    def add_links(machine: int) -> None:
        for link in topology.outgoing[machine]:
            bandwidth = link.bandwidth_bytes_per_s
            add_network(_out(machine), _in(link.target), bandwidth, link.bytes_per_token)

    for home in topology.front_end_machines:
        outbound = topology.nic(home).outbound_bytes_per_s
        add_network(_begin(home), _out(home), outbound, llm.token_bytes)

    # Machine by machine: the order selects one of several maximum flows, and this order selects
    # the published runs' splits.
    for home in topology.front_end_machines:
        add_links(home)
    for node in topology.nodes:
        i = node.index
        to_home = all(topology.is_front_end(link.target) for link in topology.outgoing[i])
        from_home = all(topology.is_front_end(link.source) for link in topology.incoming[i])
        inbound, outbound = node.nic.inbound_bytes_per_s, node.nic.outbound_bytes_per_s
        add_network(_in(i), 4 * i + 2, inbound, llm.token_bytes if from_home else between)
        graph.add_edge(4 * i + 2, 4 * i + 3, capacity=compute[i])
        add_network(4 * i + 3, _out(i), outbound, llm.token_bytes if to_home else between)
        add_links(i)
    for home in topology.front_end_machines:
        add_network(_in(home), _end(home), topology.nic(home).inbound_bytes_per_s, llm.token_bytes)
    if total is None:
        return graph, _begin(topology.coordinator), _end(topology.coordinator), compute
    source, sink = _begin(topology.num_machines), _end(topology.num_machines)
    for home, share in shares_by_machine(topology).items():
        add_network(source, _begin(home), share * total, 1.0)
        add_network(_end(home), sink, share * total, 1.0)
    return graph, source, sink, compute

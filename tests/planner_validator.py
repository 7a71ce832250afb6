"""An independent check of the results of planning methods.

It builds the flow graph from the cluster and the formulas of the paper, with names for nodes, and
shares only the throughput estimate with the planner.
"""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from networkx.algorithms.flow import edmonds_karp
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from helixsim.cluster import COORDINATOR
from helixsim.planner.problem import PlanningProblem, Ranges

TOLERANCE = 1e-9
"""Relative error: flows are sums of a few dozen numbers in double precision."""


def validate(
    problem: PlanningProblem, ranges: Ranges, value: float, *, max_stages: int | None = None
) -> None:
    """Fail unless `ranges` is a placement of the problem whose maximum flow is `value`.

    With `max_stages`, no route may have more stages.
    """
    layers = {problem.names[node]: span for node, span in ranges.items()}
    check_ranges(problem, layers)
    links = allowed_links(problem, layers)
    check_links(problem, ranges, links)
    graph = flow_graph(problem, layers, links)
    check_flow(problem, ranges, graph, value)
    assert value > 0
    assert nx.maximum_flow_value(graph, "source", "sink", flow_func=edmonds_karp) == pytest.approx(
        value, rel=TOLERANCE
    )
    check_scaled_flow(graph, value)
    if max_stages is not None:
        assert longest_route(links) <= max_stages


def check_ranges(problem, layers):
    types = {node.name: problem.machine_types[node.machine_type] for node in problem.cluster}
    for name, (start, end) in layers.items():
        profile = types[name].profiles[problem.llm.name]
        assert all(type(layer) is int for layer in (start, end)), name
        assert 0 <= start < end <= problem.llm.num_layers, name
        assert end - start <= profile.max_layers, name
    held = {layer for start, end in layers.values() for layer in range(start, end)}
    assert held == set(range(problem.llm.num_layers))


def allowed_links(problem, layers):
    """(source, target) -> tokens per second, for every link of the cluster that fits."""
    llm, network = problem.llm, problem.cluster.network
    found = {}
    for a, (start_a, end_a) in layers.items():
        pairs = []
        if start_a == 0:
            pairs.append((COORDINATOR, a))
        if end_a == llm.num_layers:
            pairs.append((a, COORDINATOR))
        for b, (start_b, end_b) in layers.items():
            aligned = end_a == start_b
            midway = start_b <= end_a < end_b
            if aligned or (problem.partial_inference and midway):
                pairs.append((a, b))
        for pair in pairs:
            if (link := network.link(*pair)) is not None:
                weight = llm.token_bytes
                if COORDINATOR not in pair:
                    weight += llm.activation_bytes_per_token
                found[pair] = link.bandwidth_bytes_per_s / weight
    if problem.keep_links is not None:
        found = {pair: rate for pair, rate in found.items() if is_kept(problem, *pair)}
    return found


def is_kept(problem, source, target):
    """Whether pruning keeps a link: it is among the fastest from its source to other nodes."""
    if COORDINATOR in (source, target):
        return True
    names, network = problem.names, problem.cluster.network
    here, num_nodes = names.index(source), len(names)

    def order(name):
        link = network.link(source, name)
        speed = 0 if link is None else link.bandwidth_bytes_per_s
        return -speed, (names.index(name) - here) % num_nodes

    others = sorted((name for name in names if name != source), key=order)
    return target in others[: problem.keep_links]


def check_links(problem, ranges, links):
    """Check that the planner's placement has exactly the allowed links."""
    topology = problem.topology(problem.placement(ranges))
    assert {
        (topology.name(link.source), topology.name(link.target)) for link in topology.links
    } == set(links)


def flow_graph(problem, layers, links):
    llm, cluster = problem.llm, problem.cluster
    heavy, light = llm.token_bytes + llm.activation_bytes_per_token, llm.token_bytes
    graph = nx.DiGraph()
    nic = cluster.coordinator_nic
    graph.add_edge("source", f"{COORDINATOR} out", capacity=nic.outbound_bytes_per_s / light)
    graph.add_edge(f"{COORDINATOR} in", "sink", capacity=nic.inbound_bytes_per_s / light)
    for node in cluster:
        if node.name not in layers:
            continue
        start, end = layers[node.name]
        sources = {a for a, b in links if b == node.name}
        targets = {b for a, b in links if a == node.name}
        rate = problem.throughput.tokens_per_s(node.machine_type, end - start, node.kv_token_layers)
        into = node.nic.inbound_bytes_per_s / (light if sources <= {COORDINATOR} else heavy)
        out_of = node.nic.outbound_bytes_per_s / (light if targets <= {COORDINATOR} else heavy)
        steps = (f"{node.name} in", f"{node.name} enter", f"{node.name} leave", f"{node.name} out")
        for step, capacity in zip(pairwise(steps), (into, rate, out_of), strict=True):
            graph.add_edge(*step, capacity=capacity)
    for (a, b), capacity in links.items():
        graph.add_edge(f"{a} out", f"{b} in", capacity=capacity)
    return graph


def check_flow(problem, ranges, graph, value):
    """Check that the planner's flow obeys every capacity, is conserved, and has the value."""
    placement = problem.placement(ranges)
    topology, flow = problem.topology(placement), problem.flow(placement)
    assert flow.tokens_per_s == pytest.approx(value, rel=TOLERANCE)
    # Preflows start with the full capacity of the source's edges and return the excess.
    widest = max(capacity for *_, capacity in graph.edges(data="capacity"))
    slack = TOLERANCE * max(1.0, value) + len(graph) * np.finfo(float).eps * widest
    into = dict.fromkeys([*problem.names, COORDINATOR], 0.0)
    out_of = dict(into)
    for link, tokens in zip(topology.links, flow.link_tokens_per_s, strict=True):
        a, b = topology.name(link.source), topology.name(link.target)
        assert -slack <= tokens <= graph[f"{a} out"][f"{b} in"]["capacity"] + slack
        out_of[a] += tokens
        into[b] += tokens
    for name, tokens in into.items():
        assert tokens == pytest.approx(out_of[name], abs=slack), name
        if name != COORDINATOR and f"{name} in" in graph:
            for edge in pairwise([f"{name} {step}" for step in ("in", "enter", "leave", "out")]):
                assert tokens <= graph.edges[edge]["capacity"] + slack, name
    assert out_of[COORDINATOR] == pytest.approx(value, rel=TOLERANCE)


def check_scaled_flow(graph, value):
    """Compare with SciPy's integer maximum flow: equal up to one unit per edge."""
    number = {name: index for index, name in enumerate(graph)}
    enough = sum(c for a, b, c in graph.edges(data="capacity") if b.endswith("leave"))
    scale = 1e9 / enough
    capacities = [min(c, enough) * scale for *_, c in graph.edges(data="capacity")]
    rows, columns = zip(*((number[a], number[b]) for a, b in graph.edges), strict=True)
    matrix = csr_array(
        (np.array(capacities).astype(np.int32), (rows, columns)), shape=(len(number), len(number))
    )
    found = maximum_flow(matrix, number["source"], number["sink"]).flow_value / scale
    assert value - graph.number_of_edges() / scale <= found <= value * (1 + TOLERANCE)


def longest_route(links):
    """Number of nodes of the longest chain of links, from the coordinator or not."""
    graph = nx.DiGraph(pair for pair in links if COORDINATOR not in pair)
    if not graph:
        return 1
    return nx.dag_longest_path_length(graph) + 1

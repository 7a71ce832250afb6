"""The value by Dinic's algorithm against the maximum flow of the flow graph."""

from __future__ import annotations

import random

import networkx as nx
import pytest
from networkx.algorithms.flow import shortest_augmenting_path
from planner_problems import published, toy_problem

from helixsim.errors import NoRouteError
from helixsim.placement.flow import flow_graph
from helixsim.planner.max_flow.dinic import FlowNetwork, flow_value, longest_route


def exact(problem, ranges) -> float:
    """The value by another algorithm, on the full flow graph."""
    try:
        topology = problem.topology(problem.placement(ranges))
    except NoRouteError:
        return 0.0
    graph, source, sink, _ = flow_graph(topology, problem.throughput)
    return nx.maximum_flow_value(graph, source, sink, flow_func=shortest_augmenting_path)


@pytest.mark.parametrize("cluster", ["single24", "geo24", "het42"])
@pytest.mark.parametrize("options", [{}, {"keep_links": 12}, {"partial_inference": True}])
def test_the_value_is_that_of_the_flow_graph(cluster, options):
    problem = published(cluster, **options)
    rng = random.Random(0)
    for _ in range(4):
        ranges, start = {}, 0
        nodes = list(range(len(problem)))
        rng.shuffle(nodes)
        for node in nodes:
            size = rng.randint(1, problem.max_layers(node))
            start = 0 if start >= 80 else max(0, start - rng.choice((0, 0, size)))
            ranges[node] = (start, min(start + size, 80))
            start = ranges[node][1]
        assert flow_value(problem, ranges) == pytest.approx(exact(problem, ranges), rel=1e-9)


def test_nothing_flows_where_there_is_no_route():
    problem = toy_problem({"a": 2, "b": 2}, 4)
    assert flow_value(problem, {}) == 0
    assert flow_value(problem, {0: (0, 2)}) == 0
    assert flow_value(problem, {0: (0, 2), 1: (2, 4)}) > 0


def test_a_network_by_hand():
    network = FlowNetwork(4)
    for tail, head, room in [(0, 1, 3.0), (0, 2, 2.0), (1, 2, 5.0), (1, 3, 2.0), (2, 3, 2.5)]:
        network.add(tail, head, room)
    assert network.max_flow(0, 3) == 4.5


def test_the_longest_route():
    problem = toy_problem({"a": 2, "b": 2, "c": 4, "d": 1}, 4)
    assert longest_route(problem, {0: (0, 2), 1: (2, 4)}) == 2
    assert longest_route(problem, {0: (0, 2), 2: (0, 4)}) == 1
    assert longest_route(problem, {0: (0, 2)}) == 0
    partial = toy_problem({"a": 2, "b": 3, "c": 4, "d": 1}, 4, partial_inference=True)
    assert longest_route(partial, {0: (0, 2), 1: (1, 4)}) == 2

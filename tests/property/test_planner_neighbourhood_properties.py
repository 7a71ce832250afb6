"""Neighbours of placements: properties for any cluster, placement and seed."""

from __future__ import annotations

from random import Random

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_problems import node_shares, toy_problem

from helixsim.planner.max_flow.dinic import longest_route
from helixsim.planner.simulated.allowed import on_a_route
from helixsim.planner.simulated.neighbourhood import Neighbours

MOST_LAYERS = 8


@st.composite
def placed(draw):
    """A problem, and a placement of it that has a route through all layers."""
    num_layers = draw(st.integers(1, MOST_LAYERS))
    rooms = draw(st.lists(st.integers(1, num_layers), min_size=1, max_size=6))
    ranges = {}
    at = 0
    while at < num_layers:
        if len(ranges) == len(rooms):
            rooms.append(num_layers)
        end = draw(st.integers(at + 1, min(num_layers, at + rooms[len(ranges)])))
        ranges[len(ranges)] = (at, end)
        at = end
    points = sorted({point for span in ranges.values() for point in span})
    for node in range(len(ranges), len(rooms)):
        start = draw(st.sampled_from(points[:-1]))
        ends = [point for point in points if start < point <= start + rooms[node]]
        if ends and draw(st.booleans()):
            ranges[node] = (start, draw(st.sampled_from(ends)))
    sizes = {f"n{index}": room for index, room in enumerate(rooms)}
    return toy_problem(sizes, num_layers), ranges


def longest_route_of(ranges, num_layers):
    graph = nx.DiGraph(list(ranges.values()))
    length = {num_layers: 0}
    for point in reversed(list(nx.topological_sort(graph))):
        after = [length[end] + 1 for end in graph.successors(point) if end in length]
        if point != num_layers and after:
            length[point] = max(after)
    return length.get(0, 0)


@settings(max_examples=60, deadline=None)
@given(placed(), st.integers(0, 2**32), st.booleans())
def test_neighbours_are_placements(case, seed, capped):
    problem, ranges = case
    cap = longest_route(problem, ranges) if capped else None
    draws = Neighbours(problem, cap)
    changed = draws.draw(ranges, Random(seed))
    assert changed == draws.draw(ranges, Random(seed))
    for node, (start, end) in changed.items():
        assert 0 <= start < end <= problem.num_layers
        assert end - start <= problem.max_layers(node)
    if changed != ranges:
        assert on_a_route(changed, problem.num_layers) == changed
    length = longest_route_of(changed, problem.num_layers)
    assert length == longest_route(problem, changed) > 0
    if cap is not None:
        assert length <= cap


@settings(max_examples=60, deadline=None)
@given(placed())
def test_the_spread_is_a_maximum_flow(case):
    problem, ranges = case
    graph = nx.DiGraph()
    for node, (start, end) in ranges.items():
        before = graph.get_edge_data(start, end, {"capacity": 0.0})["capacity"]
        rate = problem.tokens_per_s(node, end - start)
        graph.add_edge(start, end, capacity=before + rate)
    value = nx.maximum_flow_value(graph, 0, problem.num_layers)
    share = node_shares(problem, ranges)
    for node, part in share.items():
        start, end = ranges[node]
        assert part * value <= problem.tokens_per_s(node, end - start) * (1 + 1e-6)
    into = sum(part for node, part in share.items() if ranges[node][0] == 0)
    out_of = sum(part for node, part in share.items() if ranges[node][1] == problem.num_layers)
    assert (into, out_of) == (pytest.approx(1.0), pytest.approx(1.0))

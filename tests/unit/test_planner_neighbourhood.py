"""Small changes of placements, the routes through them, and how requests spread over them."""

from __future__ import annotations

from random import Random

import networkx as nx
import pytest
from planner_problems import node_shares, published, toy_problem

from helixsim.planner.heuristics import swarm_ranges
from helixsim.planner.max_flow.dinic import flow_value, longest_route
from helixsim.planner.simulated import neighbourhood as module
from helixsim.planner.simulated.allowed import on_a_route
from helixsim.planner.simulated.neighbourhood import Neighbours

ROOM = {"a": 3, "b": 3, "c": 2, "d": 2, "e": 1}
START = {0: (0, 3), 1: (0, 3), 2: (3, 5), 3: (3, 5), 4: (5, 6)}


def problem():
    return toy_problem(ROOM, 6)


def all_routes(ranges, num_layers):
    """Every route through all layers, as tuples of nodes."""

    def beyond(layer):
        if layer == num_layers:
            yield ()
        for node, (start, end) in ranges.items():
            if start == layer:
                yield from ((node, *rest) for rest in beyond(end))

    return list(beyond(0))


def drawn(rng, num_layers=6):
    """Random ranges, most of which are on no route."""
    found = {}
    for node in range(rng.randint(1, 7)):
        start = rng.randrange(num_layers)
        found[node] = (start, rng.randint(start + 1, num_layers))
    return found


def check_valid(problem, ranges, max_stages=None):
    assert ranges
    for node, (start, end) in ranges.items():
        assert 0 <= node < len(problem)
        assert 0 <= start < end <= problem.num_layers
        assert end - start <= problem.max_layers(node)
    routes = all_routes(ranges, problem.num_layers)
    assert {node for route in routes for node in route} == set(ranges)
    assert flow_value(problem, ranges) > 0
    if max_stages is not None:
        assert max(map(len, routes)) <= max_stages


# -- routes


@pytest.mark.parametrize("seed", range(60))
def test_routes_by_brute_force(seed):
    ranges = drawn(Random(seed))
    routes = all_routes(ranges, 6)
    used = {node for route in routes for node in route}
    assert on_a_route(ranges, 6) == {node: span for node, span in ranges.items() if node in used}
    assert longest_route(problem(), ranges) == max(map(len, routes), default=0)


def test_no_route():
    assert on_a_route({}, 6) == {}
    assert on_a_route({0: (0, 3), 1: (4, 6)}, 6) == {}
    assert longest_route(problem(), {0: (0, 3), 1: (4, 6)}) == 0
    assert longest_route(problem(), {}) == 0


# -- neighbours


@pytest.mark.parametrize("max_stages", [None, 3, 4])
def test_walks_stay_valid(max_stages):
    toy = problem()
    draws = Neighbours(toy, max_stages)
    rng = Random(1)
    ranges, seen = dict(START), set()
    for _ in range(1500):
        before = dict(ranges)
        ranges = draws.draw(before, rng)
        check_valid(toy, ranges, max_stages)
        seen.add(tuple(sorted(ranges.items())))
    assert len(seen) > 200


def test_the_placement_itself_is_left_alone():
    before = dict(START)
    Neighbours(problem()).draw(before, Random(0))
    assert before == START


def test_walks_on_a_published_cluster():
    cluster = published("single24")
    ranges = swarm_ranges(cluster)
    draws, rng = Neighbours(cluster), Random(0)
    for _ in range(200):
        changed = draws.draw(ranges, rng)
        assert changed != ranges
        check_valid(cluster, changed)
        ranges = changed


def test_a_seed_gives_the_same_walk():
    def walk(seed):
        draws, rng, ranges = Neighbours(problem()), Random(seed), dict(START)
        found = []
        for _ in range(100):
            ranges = draws.draw(ranges, rng)
            found.append(sorted(ranges.items()))
        return found

    assert walk(3) == walk(3)
    assert walk(3) != walk(4)


def test_the_order_of_nodes_does_not_matter():
    draws = Neighbours(problem())
    one = draws.draw(START, Random(5))
    other = draws.draw(dict(reversed(START.items())), Random(5))
    assert one == other


def test_all_placements_of_a_toy_are_reached():
    """The changes connect all placements with each other."""
    toy = toy_problem({"a": 2, "b": 2, "c": 1}, 3)
    spans = [None, *((s, e) for s in range(3) for e in range(s + 1, 4))]
    every = set()
    for a in spans:
        for b in spans:
            for c in spans:
                chosen = {0: a, 1: b, 2: c}
                ranges = {n: span for n, span in chosen.items() if span is not None}
                sizes = {n: end - start for n, (start, end) in ranges.items()}
                if all(size <= toy.max_layers(n) for n, size in sizes.items()):
                    cleaned = on_a_route(ranges, 3)
                    if cleaned == ranges and ranges:
                        every.add(tuple(sorted(ranges.items())))
    draws, rng = Neighbours(toy), Random(0)
    ranges = dict(next(iter(sorted(every))))
    seen = set()
    for _ in range(6000):
        ranges = draws.draw(ranges, rng)
        seen.add(tuple(sorted(ranges.items())))
    assert seen == every
    assert len(every) > 10


def test_where_nothing_can_change_the_placement_stays():
    toy = toy_problem({"only": 4}, 4)
    assert Neighbours(toy).draw({0: (0, 4)}, Random(0)) == {0: (0, 4)}
    capped = toy_problem({"a": 2, "b": 2}, 4)
    for seed in range(20):
        changed = Neighbours(capped, 2).draw({0: (0, 2), 1: (2, 4)}, Random(seed))
        assert changed == {0: (2, 4), 1: (0, 2)}


@pytest.mark.parametrize("change", sorted(set(module._CHANGES), key=lambda change: change.__name__))
def test_every_kind_of_change_changes_something(change):
    toy = problem()
    draws, rng = Neighbours(toy), Random(0)
    outcomes = set()
    for _ in range(300):
        ranges = dict(START)
        change(draws, ranges, rng)
        outcomes.add(tuple(sorted(ranges.items())))
    outcomes.discard(tuple(sorted(START.items())))
    assert outcomes


def test_a_reordering_exchanges_two_parts():
    """It keeps the lengths of ranges, and the nodes that hold the same layers."""
    draws = Neighbours(problem())
    ranges = {0: (0, 3), 1: (0, 3), 4: (3, 4), 2: (4, 6)}
    for seed in range(10):
        changed = dict(ranges)
        draws._reorder(changed, Random(seed))
        assert changed != ranges
        assert changed[0] == changed[1]
        assert all(
            end - start == ranges[node][1] - ranges[node][0]
            for node, (start, end) in changed.items()
        )
        assert all_routes(changed, 6)


# -- how requests spread


def point_graph(toy, ranges):
    graph = nx.DiGraph()
    graph.add_nodes_from((0, toy.num_layers))
    for node, (start, end) in ranges.items():
        rate = toy.tokens_per_s(node, end - start)
        before = graph.get_edge_data(start, end, {"capacity": 0.0})["capacity"]
        graph.add_edge(start, end, capacity=before + rate)
    return graph


@pytest.mark.parametrize("seed", range(60))
def test_requests_spread_as_a_maximum_flow(seed):
    toy = toy_problem(dict.fromkeys("abcdefg", 6), 6)
    ranges = drawn(Random(seed))
    check_spread(toy, ranges)


def check_spread(toy, ranges):
    value = nx.maximum_flow_value(point_graph(toy, ranges), 0, toy.num_layers)
    share = node_shares(toy, ranges)
    if value == 0:
        assert share == {}
        return
    assert set(share) <= set(on_a_route(ranges, toy.num_layers))
    for node, part in share.items():
        start, end = ranges[node]
        assert 0 < part <= 1 + 1e-9
        assert part * value <= toy.tokens_per_s(node, end - start) * (1 + 1e-9)
    for point in range(toy.num_layers + 1):
        leaving = sum(part for node, part in share.items() if ranges[node][0] == point)
        coming = sum(part for node, part in share.items() if ranges[node][1] == point)
        if point == 0:
            assert leaving == pytest.approx(1.0)
        elif point == toy.num_layers:
            assert coming == pytest.approx(1.0)
        else:
            assert coming == pytest.approx(leaving, abs=1e-6)


def test_the_spread_carries_the_whole_maximum():
    """With all shares scaled to the maximum flow, the busiest node is exactly full."""
    toy = problem()
    value = nx.maximum_flow_value(point_graph(toy, START), 0, 6)
    share = node_shares(toy, START)
    use = {n: share[n] * value / toy.tokens_per_s(n, e - s) for n, (s, e) in START.items()}
    assert max(use.values()) == pytest.approx(1.0)


def test_nodes_with_the_same_layers_share_by_their_throughput():
    toy = toy_problem({"a": 4, "b": 4, "c": 4}, 4)
    share = node_shares(toy, {0: (0, 2), 1: (0, 2), 2: (2, 4)})
    assert share == {0: pytest.approx(0.5), 1: pytest.approx(0.5), 2: pytest.approx(1.0)}

"""Upper bounds: validity, tightness, and the resource that limits the flow."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
from builders import HOST
from planner_problems import published, toy_problem

from helixsim.planner.max_flow.cover_program import CoverKnapsack, CoverProgram, NodeClass
from helixsim.planner.max_flow.upper_bound import (
    coordinator_bound,
    node_caps,
    node_classes,
    trivial_bound,
    upper_bound,
)


@pytest.fixture(scope="module")
def single24():
    return published("single24")


def test_the_work_of_all_machines_is_shared_by_all_layers():
    problem = toy_problem({"a": 2, "b": 2, "c": 1}, 4)
    work = [
        max(k * problem.tokens_per_s(n, k) for k in range(1, problem.max_layers(n) + 1))
        for n in range(3)
    ]
    bound = trivial_bound(problem)
    assert bound.tokens_per_s == pytest.approx(sum(work) / 4)
    assert bound.limit == "machines"
    assert set(bound.prices) == {"holds2", "holds1"}


def test_covers_are_closer_than_work(single24):
    assert trivial_bound(single24).tokens_per_s == pytest.approx(2803.86, abs=0.01)
    bound = upper_bound(single24)
    assert 2045.64 < bound.tokens_per_s <= 2047.3
    # Four A100 hold 7 layers at this flow, eight L4 hold 3 and twelve T4 hold 2: 76 of 80.
    assert bound.prices == pytest.approx({"A100": 7, "L4": 3, "T4": 2}, rel=1e-3)


def test_no_flow_above_the_best_placement_is_possible(single24):
    program = CoverProgram(node_classes(single24), 80, None, "CBC")
    best = 2045.6410473362616  # an A100 with 8 layers
    assert program.is_possible(best * (1 - 1e-9))
    assert not program.is_possible(best * (1 + 1e-9))


@pytest.mark.parametrize(("max_stages", "flow"), [(9, 952.11), (14, 1515.71)])
def test_a_limit_on_stages_lowers_the_bound(single24, max_stages, flow):
    bound = upper_bound(single24, max_stages=max_stages)
    assert flow <= bound.tokens_per_s <= flow * 1.001
    assert bound.stage_price > 0


def test_a_limit_that_no_placement_keeps_ends_the_search(single24):
    assert upper_bound(single24, max_stages=2).tokens_per_s < 1e-2


def test_the_interface_of_the_coordinator_may_bind():
    problem = toy_problem({"a": 1, "b": 1}, 2, nics={HOST: 1.0})
    bound = upper_bound(problem)
    assert bound.limit == "network interface of the coordinator"
    assert bound.tokens_per_s == 0.5  # 2 bytes per token


def test_links_with_the_coordinator_may_bind():
    slow = {(HOST, "a"): (0.4, 0.0), (HOST, "b"): (0.0, 0.0)}
    problem = toy_problem({"a": 1, "b": 1}, 2, links=slow)
    bound = coordinator_bound(problem)
    assert (bound.tokens_per_s, bound.limit) == (0.2, "links with the coordinator")
    assert upper_bound(problem).tokens_per_s <= 0.2


def test_machines_without_links_count_for_nothing():
    cut_off = dict.fromkeys([(HOST, "c"), ("a", "c"), ("b", "c")], (0.0, 0.0))
    problem = toy_problem({"a": 1, "b": 1, "c": 1}, 2, links=cut_off)
    assert node_caps(problem)[2] == 0
    assert sum(each.count for each in node_classes(problem)) == 2


def test_many_classes_are_merged_as_the_fastest():
    names = [f"n{i}" for i in range(30)]
    into = {(a, b): (0.01 * (i + 1), 0.0) for i, b in enumerate(names) for a in [*names, HOST]}
    problem = toy_problem(
        dict.fromkeys(names, 1), 3, links={p: v for p, v in into.items() if p[0] != p[1]}
    )
    classes = node_classes(problem)
    assert [each.count for each in classes] == [30]
    assert classes[0].tokens_per_s[1] <= problem.tokens_per_s(0, 1)


def test_it_stops_on_request(single24):
    found = upper_bound(single24, stop=lambda: True)
    assert found.tokens_per_s == trivial_bound(single24).tokens_per_s


def test_no_cover_is_cheaper_than_the_cheapest():
    rng = np.random.default_rng(0)
    classes = [
        NodeClass(f"kind{i}", (0.0, *sorted(rng.uniform(1, 20, 4), reverse=True)), 3)
        for i in range(3)
    ]
    target = 17.0
    slots = [(i, k, c.tokens_per_s[k]) for i, c in enumerate(classes) for k in range(1, 5)]
    for _ in range(5):
        prices = [*rng.uniform(0.1, 1, 3), 0.0]
        dearest = min(
            sum(prices[i] / k for i, k, _ in chosen)
            for size in range(1, 5)
            for chosen in combinations_with_replacement(slots, size)
            if sum(rate for _, _, rate in chosen) >= target
        )
        cost, use = CoverKnapsack(classes, target).cheapest(prices)
        assert cost <= dearest * (1 + 1e-12)
        assert cost == pytest.approx(dearest, rel=1e-3)
        assert cost == pytest.approx(sum(u * p for u, p in zip(use, prices, strict=True)))

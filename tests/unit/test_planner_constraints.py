"""What plans must keep to: read from texts, broken by candidates, priced."""

from __future__ import annotations

from pathlib import Path

import pytest
from planner_problems import published, toy_problem

from helixsim.errors import HelixError, InputError
from helixsim.planner.constraints import (
    Constraints,
    layers_moved,
    move_cost,
    parse_constraints,
    violations,
)
from helixsim.planner.max_flow.dinic import flow_value
from helixsim.planner.problem import PlanningProblem, planning_problem
from helixsim.scenario.load import resolve_scenario

NAMES = ("a", "b", "c")
NODES = {"a": 4, "b": 4, "c": 2}


def read(**options: object) -> Constraints:
    return parse_constraints(NAMES, 4, **options)  # type: ignore[arg-type]


def test_ranges_are_read_as_first_and_last_layer_or_as_plans_are_printed():
    found = read(fix=["a=0-1", "b=[2, 4)"], ban=["c=0", "c=2-3"], leave_out=["c"])
    assert found.fixed == {0: (0, 2), 1: (2, 4)}
    assert found.banned == {2: ((0, 1), (2, 4))}
    assert found.left_out == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fix": ["a=0-4"]}, "layers 0 to 3"),
        ({"fix": ["a=3-1"]}, "no range"),
        ({"fix": ["a"]}, "NODE=FIRST-LAST"),
        ({"ban": ["d=0-1"]}, "no node 'd'"),
        ({"leave_out": ["d"]}, "no node 'd'"),
        ({"fix": ["a=0-1", "a=0-2"]}, "fixed twice"),
        ({"fix": ["a=0-1"], "ban": ["a=1"]}, "must not"),
        ({"fix": ["a=0-1"], "leave_out": ["a"]}, "must not"),
        ({"move_price": 1.0}, "--start-from"),
        ({"move_price": -1.0}, "0 or more"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        read(**options)


def test_each_broken_constraint_is_a_sentence():
    constraints = read(fix=["a=0-1"], ban=["b=0-1"], leave_out=["c"])
    problem = toy_problem(NODES, 4, constraints=constraints)
    assert violations(problem, {0: (0, 2), 1: (2, 4)}) == []
    assert violations(problem, {0: (0, 3), 1: (1, 4), 2: (2, 4)}) == [
        "a holds [0, 3), but is to hold [0, 2)",
        "b holds [1, 4), but is to hold none of [0, 2)",
        "c holds [2, 4), but is to be left out",
    ]
    assert violations(problem, {1: (2, 4)}) == ["a holds no layers, but is to hold [0, 2)"]
    assert violations(problem, {0: (0, 2), 1: (2, 4)}, 1) == ["a route has 2 stages, more than 1"]


def test_nodes_must_be_able_to_hold_the_llm_and_their_fixed_layers():
    with pytest.raises(HelixError, match="1 left out"):
        toy_problem({"a": 2, "b": 2, "c": 2}, 6, constraints=read(leave_out=["c"]))
    with pytest.raises(HelixError, match="c is to hold 3 layers; it holds at most 2"):
        toy_problem(NODES, 4, constraints=read(fix=["c=0-2"]))


def two_regions(tmp_path: Path, **options: object) -> PlanningProblem:
    """Four A100 in one region, eight L4 in another."""
    document = {
        "schema": 1,
        "name": "two-regions",
        "llm": "llama1-30b",
        "cluster": {
            "coordinator": {"nic": "10 GB/s"},
            "nodes": [
                {"type": "A100", "count": 4},
                {"type": "L4", "count": 8, "region": "annex"},
            ],
            "network": {
                "within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"},
                "across": {"bandwidth": "1 Gbit/s", "latency": "5 ms"},
            },
        },
        "workload": {"mode": "offline", "lengths": "azure-conversation"},
        "run": {"duration": "60 s"},
    }
    return planning_problem(resolve_scenario(document, tmp_path / "s.yaml"), **options)  # type: ignore[arg-type]


def test_same_region_uses_no_links_between_regions(tmp_path):
    problem = two_regions(tmp_path, constraints=Constraints(same_region=True))
    first, far = 0, 4
    assert two_regions(tmp_path).link_tokens_per_s[first, far] > 0
    assert problem.link_tokens_per_s[first, far] == 0
    ranges, end = {}, 0
    for node in (far, first, 1, 2, 3):  # a chain from the annex into the other region
        layers = min(problem.max_layers(node), problem.num_layers - end)
        ranges[node] = (end, end + layers)
        end += layers
        if end == problem.num_layers:
            break
    assert flow_value(two_regions(tmp_path), ranges) > 0
    assert flow_value(problem, ranges) == 0
    assert violations(problem, ranges) == ["no region holds all layers by itself"]


def test_same_region_needs_regions():
    with pytest.raises(HelixError, match="names only one region"):
        published("geo24", constraints=Constraints(same_region=True))


def test_only_layers_that_a_node_lacks_are_moved():
    start = {0: (0, 4), 1: (4, 8)}
    assert layers_moved(start, start) == 0
    assert layers_moved(start, {0: (2, 6), 2: (0, 3)}) == 2 + 3
    problem = toy_problem(NODES, 4, constraints=Constraints(start={0: (0, 4)}, move_price=2.5))
    assert move_cost(problem, {0: (0, 4), 1: (1, 4)}) == 2.5 * 3
    assert move_cost(toy_problem(NODES, 4), {0: (0, 4)}) == 0


def test_constraints_follow_their_nodes_into_a_part_of_the_problem():
    constraints = read(fix=["c=0-1"], ban=["b=0"], leave_out=["a"])
    part = toy_problem(NODES, 4, constraints=constraints).restricted([2, 1])
    assert part.constraints.fixed == {0: (0, 2)}
    assert part.constraints.banned == {1: ((0, 1),)}
    assert part.constraints.left_out == frozenset()

"""What plans must keep to: read from texts, broken by candidates, priced."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from builders import HOST
from planner_problems import published, toy_problem
from planner_validator import validate

from helixsim import load_scenario, plan
from helixsim.errors import HelixError, InputError, PlacementError
from helixsim.planner.constraints import (
    Constraints,
    layers_moved,
    move_cost,
    parse_constraints,
    violations,
)
from helixsim.planner.heuristics import swarm
from helixsim.planner.max_flow.dinic import flow_value
from helixsim.planner.max_flow.optimise import optimise
from helixsim.planner.problem import PlanningProblem, planning_problem
from helixsim.planner.search import FlowSearch
from helixsim.planner.search_budget import SearchBudget
from helixsim.planner.simulated.search import Effort
from helixsim.scenario.load import resolve_scenario

QUICK = SearchBudget(
    start_stage_factors=(1.5,),
    anneal_rounds=1,
    anneal_iterations=2000,
    templates=40,
    proposal_work=2400,
)
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


# -- the greatest flow under constraints


def ticking():
    ticks = count()
    return lambda: float(next(ticks))


def flow_search(problem: PlanningProblem) -> FlowSearch:
    search = FlowSearch(problem, elapsed_s=ticking(), time_limit_s=5000, budget=QUICK)
    optimise(search)
    assert violations(problem, search.ranges, search.max_stages) == []
    validate(problem, search.ranges, search.value)
    assert search.value <= search.bound * (1 + 1e-9)
    return search


@pytest.fixture(scope="module")
def quickstart():
    return load_scenario("quickstart")


def problem_of(scenario, **constraints):
    names = [node.name for node in scenario.cluster]
    found = parse_constraints(names, scenario.llm.num_layers, **constraints)
    return planning_problem(scenario, constraints=found)


@pytest.fixture(scope="module")
def free(quickstart):
    """The search without constraints."""
    return flow_search(problem_of(quickstart))


def test_fixed_banned_and_left_out_nodes_in_the_greatest_flow(quickstart, free):
    names = [node.name for node in quickstart.cluster]
    first, second, last = names[0], names[1], names[-1]
    search = flow_search(
        problem_of(quickstart, fix=[f"{first}=20-29"], ban=[f"{second}=0-29"], leave_out=[last])
    )
    assert search.ranges[0] == (20, 30)
    assert search.ranges.get(1, (30, 60))[0] >= 30
    assert len(names) - 1 not in search.ranges
    assert 0.5 * free.value < search.value <= free.value


def test_a_placement_in_service_changes_as_far_as_it_pays(quickstart, free):
    names = [node.name for node in quickstart.cluster]
    layers = {names[node]: span for node, span in free.ranges.items()}
    dear = flow_search(problem_of(quickstart, start=layers, move_price=1e6))
    assert dear.ranges == free.ranges
    idle = dict(layers)
    del idle[names[max(free.ranges)]]
    problem = problem_of(quickstart, start=idle, move_price=0.01)
    begun = {problem.numbers[name]: span for name, span in idle.items()}
    moved = flow_search(problem)
    assert moved.value - move_cost(problem, moved.ranges) >= flow_value(problem, begun)
    assert moved.value > 0.9 * free.value


def test_regions_by_themselves_without_links_between_them(tmp_path):
    problem = two_regions(tmp_path, constraints=Constraints(same_region=True))
    search = flow_search(problem)
    placement = problem.placement(search.ranges)
    regions = {node.name: node.region for node in problem.cluster}
    between = [pair for pair in placement.links or () if HOST not in pair]
    assert between
    assert all(regions[source] == regions[target] for source, target in between)


def test_methods_that_know_no_constraints_say_so(quickstart):
    problem = problem_of(quickstart, leave_out=[quickstart.cluster.nodes[0].name])
    with pytest.raises(PlacementError, match=r"swarm does not know constraints: .* left out"):
        swarm(FlowSearch(problem))


def test_plan_takes_constraints_and_simulates_what_keeps_to_them(quickstart):
    name = quickstart.cluster.nodes[0].name
    short = replace(quickstart, run=replace(quickstart.run, warmup_s=2.0, duration_s=6.0))
    found = plan(
        short,
        fix=[f"{name}=20-29"],
        effort=Effort(num_seeds=1, rounds=1, annealings=2),
        budget=QUICK,
        time_limit_s=600,
    )
    assert found.placement.layers[name] == (20, 30)
    assert found.candidates
    assert all(each.placement.layers[name] == (20, 30) for each in found.candidates)

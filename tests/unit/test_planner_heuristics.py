"""The published heuristics."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from planner_problems import published, toy_problem
from planner_validator import validate

from helixsim import simulate
from helixsim.errors import PlacementError
from helixsim.planner.heuristics import (
    petals,
    petals_ranges,
    replica_ranges,
    replicas,
    separate,
    separate_mixed,
    separate_ranges,
    swarm,
    swarm_ranges,
    types_left_out,
)
from helixsim.planner.heuristics.petals import check_coverage
from helixsim.planner.heuristics.swarm import equal_stages
from helixsim.planner.max_flow.dinic import flow_value
from helixsim.planner.place import place
from helixsim.planner.problem import planning_problem
from helixsim.planner.search import FlowSearch
from helixsim.scenario.files import shipped_folder
from helixsim.scenario.resolved import Scenario
from helixsim.yaml_files import read_yaml


def shipped_ranges(problem, name):
    document = read_yaml(shipped_folder() / "placements" / f"{name}.yaml")
    return {problem.numbers[node]: tuple(span) for node, span in document["layers"].items()}


def spans_of(problem, ranges, machine_type):
    return [
        span for node, span in ranges.items() if problem.kind(node).machine_type == machine_type
    ]


def found_by(method, problem, seed=0):
    search = FlowSearch(problem, seed=seed)
    method(search)
    validate(problem, search.ranges, search.value)
    return search


# -- what was published ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "name", "value"),
    [
        ("single24", "single24-llama2-70b-helix", 1289.5558),
        ("geo24", "geo24-llama2-70b-helix", 1212.1768),
        ("het42", "het42-llama2-70b-helix", 4137.5476),
    ],
)
def test_the_value_of_the_published_optimised_placements(cluster, name, value):
    problem = published(cluster)
    ranges = shipped_ranges(problem, name)
    assert flow_value(problem, ranges) == pytest.approx(value, abs=5e-5)
    validate(problem, ranges, flow_value(problem, ranges))


def test_petals_places_as_published():
    problem = published("single24")
    expected = shipped_ranges(problem, "single24-llama2-70b-petals")
    assert petals_ranges(problem, Random(0)) == expected


@pytest.mark.parametrize(
    ("cluster", "name"),
    [
        ("single24", "single24-llama2-70b-swarm"),
        ("het42", "het42-llama2-70b-swarm"),
        ("single24-30b", "single24-llama1-30b-swarm"),
    ],
)
def test_swarm_places_as_published(cluster, name):
    problem = published(cluster)
    assert swarm_ranges(problem) == shipped_ranges(problem, name)


@pytest.mark.parametrize(
    ("cluster", "method", "value"),
    [
        ("single24", petals, 531.7),
        ("single24", swarm, 757.9),
        ("het42", petals, 655.7),
        ("het42", swarm, 4892.2),
        ("geo24", swarm, 616.4),
    ],
)
def test_flow_of_the_published_heuristics(cluster, method, value):
    assert found_by(method, published(cluster)).value == pytest.approx(value, abs=0.05)


def test_petals_was_meant_for_partial_inference():
    problem = published("single24", partial_inference=True)
    assert found_by(petals, problem).value == pytest.approx(952.1, abs=0.05)


@pytest.mark.parametrize("part", ["a100", "l4", "t4"])
def test_separate_places_as_published_where_it_may_overcommit(part):
    """The published parts number the nodes of one type anew, in the cluster's order."""
    problem = published("single24")
    ranges = separate_ranges(problem, allow_overcommitted_layers=True)
    document = read_yaml(
        shipped_folder() / "placements" / f"single24-llama2-70b-separate-{part}.yaml"
    )
    mine = [
        span for node, span in ranges.items() if problem.kind(node).machine_type.lower() == part
    ]
    assert mine == [tuple(span) for span in document["layers"].values()]


# -- petals ------------------------------------------------------------------------------------


def test_petals_fills_the_weakest_layers_first():
    problem = toy_problem({"a": 2, "b": 2, "c": 2}, 4)
    ranges = petals_ranges(problem, Random(1))
    assert sorted(ranges.values()) == [(0, 2), (0, 2), (2, 4)]


def test_layers_without_a_node_are_counted():
    problem = toy_problem({"a": 3, "b": 1, "c": 3}, 7)
    check_coverage(problem, {0: (0, 3), 1: (3, 4), 2: (4, 7)})
    with pytest.raises(PlacementError, match="petals leaves 2 of 7 layers of toy without a node"):
        check_coverage(problem, {0: (0, 3), 1: (2, 3), 2: (4, 6)})


@pytest.mark.parametrize("seed", range(10))
def test_petals_covers_all_layers_in_any_joining_order(seed):
    problem = toy_problem({"a": 3, "b": 1, "c": 3, "d": 2}, 8)
    check_coverage(problem, petals_ranges(problem, Random(seed)))


def test_petals_says_that_its_ranges_do_not_join():
    with pytest.raises(PlacementError, match=r"no request can pass .* --partial-inference"):
        petals(FlowSearch(published("geo24")))


# -- swarm -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_layers", "most", "sizes"),
    [
        (80, 4, [4] * 20),
        (60, 7, [6] * 10),
        (61, 7, [6, 7, 7, 7, 6, 7, 7, 7, 7]),
        (5, 9, [5]),
        (3, 1, [1] * 3),
    ],
)
def test_stages_are_equal_where_that_is_possible(num_layers, most, sizes):
    stages = equal_stages(num_layers, most)
    assert sorted(end - start for start, end in stages) == sorted(sizes)
    assert stages[0][0] == 0
    assert stages[-1][1] == num_layers
    assert all(a[1] == b[0] for a, b in pairwise(stages))


def test_swarm_says_how_many_layers_are_missing():
    problem = toy_problem({"a": 9, "b": 2}, 10)
    with pytest.raises(PlacementError, match=r"5 stages.* 2 nodes: 6 layers are missing"):
        swarm(FlowSearch(problem))


def test_a_limit_on_stages_is_kept_or_refused():
    problem = published("single24")
    search = FlowSearch(problem, max_stages=20)
    swarm(search)
    validate(problem, search.ranges, search.value, max_stages=20)
    with pytest.raises(PlacementError, match="routes of 20 stages, but --max-stages is 19"):
        swarm(FlowSearch(problem, max_stages=19))


# -- separate pipelines ------------------------------------------------------------------------


def test_separate_uses_what_can_hold_the_llm():
    problem = toy_problem({"a": 2, "b": 4, "c": 2, "d": 1}, 4)
    assert separate_ranges(problem) == {0: (0, 2), 1: (0, 4), 2: (2, 4)}
    assert types_left_out(problem) == ("holds1",)
    found_by(separate, problem)


def test_separate_forms_as_many_pipelines_as_pay():
    problem = published("single24-30b")
    search = found_by(separate, problem)
    spans = [
        span for node, span in search.ranges.items() if problem.kind(node).machine_type == "L4"
    ]
    assert len(spans) == 8
    assert search.value == pytest.approx(1137.1768, abs=5e-5)


def test_separate_says_how_many_layers_are_missing():
    with pytest.raises(PlacementError, match=r"at least 24 are missing \(L4 56, T4 48, A100 48\)"):
        separate(FlowSearch(published("single24")))


@pytest.mark.parametrize(("cluster", "value"), [("single24", 2045.6410), ("het42", 5441.1438)])
def test_leftover_machines_form_one_more_pipeline(cluster, value):
    search = found_by(separate_mixed, published(cluster))
    assert search.value == pytest.approx(value, abs=5e-5)


def test_too_few_leftover_machines_stay_idle():
    problem = toy_problem({"a": 4, "b": 1, "c": 2}, 4)
    search = found_by(separate_mixed, problem)
    assert search.ranges == {0: (0, 4)}
    problem = toy_problem({"a": 4, "b": 1, "c": 3}, 4)
    assert separate_ranges(problem, mixed=True) == {0: (0, 4), 1: (0, 1), 2: (1, 4)}


# -- replicas ----------------------------------------------------------------------------------


def region_scenario(regions):
    """LLaMA-2 70B on machines by region and type."""
    nodes = [
        {"type": kind, "count": count, "region": region, "name": f"{region}-{kind}-{{i}}"}
        for region, kinds in regions.items()
        for kind, count in kinds.items()
    ]
    rule = {"bandwidth": "10 Gbit/s", "latency": "1 ms"}
    return Scenario.from_dict(
        {
            "name": "regions",
            "llm": "llama2-70b",
            "cluster": {
                "coordinator": {"nic": "10 Gbit/s", "region": "a"},
                "nodes": nodes,
                "network": {"within": rule, "across": rule},
            },
            "workload": {"mode": "offline"},
            "run": {"duration": "1 min"},
        }
    )


def region_problem(regions):
    return planning_problem(region_scenario(regions))


def test_replicas_stay_within_their_region():
    # Each region holds the LLM: A100s twice in one (12 layers each at most), T4s once in the other.
    problem = region_problem({"a": {"A100": 14}, "b": {"T4": 24}})
    search = found_by(replicas, problem)
    for region in ("a", "b"):
        held = sorted(
            span
            for node, span in search.ranges.items()
            if problem.cluster.nodes[node].region == region
        )
        assert held[0][0] == 0
        assert held[-1][1] == problem.num_layers


def test_what_holds_no_replica_in_its_region_joins_the_others():
    problem = region_problem({"a": {"A100": 5}, "b": {"A100": 3}})
    ranges = replica_ranges(problem)
    assert sorted(ranges) == list(range(8))
    assert sorted(ranges.values())[0][0] == 0
    assert max(end for _, end in ranges.values()) == problem.num_layers


def test_of_more_nodes_than_layers_some_stay_idle():
    # Four nodes hold one layer each at most, of three layers: one pipeline of three nodes.
    problem = toy_problem({"a": 1, "b": 1, "c": 1, "d": 1, "e": 3}, 3)
    ranges = replica_ranges(problem)
    assert sorted(ranges.values()) == [(0, 1), (0, 3), (1, 2), (2, 3)]


def test_a_scenario_without_a_placement_gets_one_by_the_rule():
    scenario = region_scenario({"a": {"A100": 7}})
    placed = place(scenario)
    assert placed.placement.layers["a-A100-0"] == (0, 11)
    assert place(placed) is placed
    assert simulate(placed).summary["requests"]["completed"] > 0


def test_of_more_nodes_than_layers_some_hold_nothing():
    problem = toy_problem(dict.fromkeys("abcde", 1), 3)
    assert separate_ranges(problem) == {2: (0, 1), 3: (1, 2), 4: (2, 3)}

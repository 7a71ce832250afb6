"""The optimiser, on any small cluster."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from planner_problems import toy_problem

from helixsim.placement.placement import placement_mistakes
from helixsim.planner.max_flow.optimise import optimise
from helixsim.planner.max_flow.upper_bound import upper_bound
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import FlowSearch

TOLERANCE = 0.02
"""Relative loss that one more node may cause: neither search is sure to find the optimum."""

NODES = st.lists(st.integers(1, 4), min_size=3, max_size=6)
LAYERS = st.integers(2, 6)
SLOW = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from([1.0, 4.0])))


def problem_of(sizes, num_layers, slow=(), prefix="n") -> PlanningProblem:
    names = [f"{prefix}{i}" for i in range(len(sizes))]
    links = {
        (names[a], names[b]): (bandwidth, 0.0)
        for a, b, bandwidth in slow
        if a != b and max(a, b) < len(names)
    }
    most = {name: min(size, num_layers) for name, size in zip(names, sizes, strict=True)}
    return toy_problem(most, num_layers, links=links)


def found(problem: PlanningProblem, seed: int = 0) -> FlowSearch:
    steps = iter(range(10**9))
    search = FlowSearch(
        problem, seed=seed, elapsed_s=lambda: float(next(steps)), time_limit_s=400.0
    )
    optimise(search)
    return search


def is_possible(sizes, num_layers) -> bool:
    return sum(min(size, num_layers) for size in sizes) >= num_layers


@settings(max_examples=25, deadline=None)
@given(NODES, LAYERS, SLOW)
def test_placements_are_valid_and_below_the_bound(sizes, num_layers, slow):
    if not is_possible(sizes, num_layers):
        return
    problem = problem_of(sizes, num_layers, slow)
    search = found(problem)
    assert 0 < search.value <= search.bound * (1 + 1e-9)
    assert search.value <= upper_bound(problem).tokens_per_s * (1 + 1e-9)
    placement = problem.placement(search.ranges)
    profiles = {name: kind.profiles["toy"] for name, kind in problem.machine_types.items()}
    assert not placement_mistakes(placement, problem.cluster, problem.llm, profiles)
    assert abs(problem.flow(placement).tokens_per_s - search.value) <= 1e-9 * search.value


@settings(max_examples=10, deadline=None)
@given(NODES, LAYERS, SLOW)
def test_names_and_repetition_change_nothing(sizes, num_layers, slow):
    if not is_possible(sizes, num_layers):
        return
    one = found(problem_of(sizes, num_layers, slow))
    again = found(problem_of(sizes, num_layers, slow))
    renamed = found(problem_of(sizes, num_layers, slow, prefix="zebra"))
    assert one.ranges == again.ranges == renamed.ranges
    assert one.value == again.value == renamed.value


@settings(max_examples=10, deadline=None)
@given(NODES, LAYERS)
def test_one_node_more_is_not_worse(sizes, num_layers):
    if not is_possible(sizes, num_layers):
        return
    # The throughput of a type depends on the mix of the cluster; so the nodes are taken from one.
    large = problem_of([*sizes, sizes[0]], num_layers)
    small = large.restricted(range(len(sizes)))
    assert found(large).value >= found(small).value * (1 - TOLERANCE)

"""The search by simulation keeps to constraints, and pays for moves."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from planner_problems import four_nodes, toy_problem

from helixsim import plan
from helixsim.placement.placement import Placement
from helixsim.planner.constraints import Constraints, layers_moved, violations
from helixsim.planner.objective import Limit, Objective
from helixsim.planner.problem import planning_problem
from helixsim.planner.search_budget import SearchBudget
from helixsim.planner.simulated.alike import alike_nodes
from helixsim.planner.simulated.allowed import allowed
from helixsim.planner.simulated.neighbourhood import Neighbours
from helixsim.planner.simulated.proposals import Proposer
from helixsim.planner.simulated.search import Effort
from helixsim.planner.simulated.templates import Templates, best_templates
from helixsim.scenario.resolved import Scenario

BUDGET = SearchBudget(
    start_stage_factors=(), templates=40, proposal_steps=60, proposal_work=10_000, anneal_rounds=1
)
SIX = dict.fromkeys("abcdef", 4)
KEPT = Constraints(fixed={0: (1, 4)}, banned={1: ((0, 2),)}, left_out=frozenset({2}))


@pytest.mark.parametrize("seed", range(10))
def test_neighbours_keep_to_constraints(seed):
    problem = toy_problem(SIX, 6, constraints=KEPT)
    draws, rng = Neighbours(problem, 3), Random(seed)
    ranges = {0: (1, 4), 1: (3, 6), 3: (0, 3), 4: (3, 6)}
    seen = set()
    for _ in range(40):
        ranges = draws.draw(ranges, rng)
        assert violations(problem, ranges, 3) == []
        seen.add(tuple(sorted(ranges.items())))
    assert len(seen) > 10


def test_a_placement_is_repaired():
    problem = toy_problem(SIX, 6, constraints=KEPT)
    chain = {0: (0, 3), 1: (0, 3), 2: (0, 3), 3: (0, 3), 4: (3, 6)}
    # The first node gets its layers, though it is then on no route; the next two hold nothing.
    assert allowed(problem, chain) == {0: (1, 4), 3: (0, 3), 4: (3, 6)}
    del chain[3]
    assert allowed(problem, chain) == {}
    assert allowed(toy_problem(SIX, 6), chain) == chain


def test_constraints_tell_nodes_apart():
    assert alike_nodes(toy_problem(SIX, 6)).members == ((0, 1, 2, 3, 4, 5),)
    constraints = replace(KEPT, start={3: (0, 3)}, move_price=1.0)
    for found, groups in (
        (KEPT, ((0,), (1,), (2,), (3, 4, 5))),
        (constraints, ((0,), (1,), (2,), (3,), (4, 5))),
    ):
        assert alike_nodes(toy_problem(SIX, 6, constraints=found)).members == groups


def two_regions(count: int = 4) -> Scenario:
    """A100 in two regions; four of them can hold the LLM."""
    return Scenario.from_dict(
        {
            "name": "two",
            "llm": "llama1-30b",
            "cluster": {
                "coordinator": {"nic": "10 Gbit/s", "region": "east"},
                "nodes": [
                    {"type": "A100", "name": f"{region}-{{i}}", "count": count, "region": region}
                    for region in ("east", "west")
                ],
                "network": {
                    "within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"},
                    "across": {"bandwidth": "10 Gbit/s", "latency": "2 ms"},
                },
            },
            "workload": {"mode": "offline", "lengths": "azure-conversation"},
            "run": {"duration": "4 s", "warmup": "0 s"},
        }
    )


def test_templates_keep_to_regions_and_leave_nodes_out():
    scenario = two_regions(5)
    constraints = Constraints(same_region=True, left_out=frozenset({9}))
    problem = planning_problem(scenario, constraints=constraints)
    proposer = Proposer(scenario, problem, Objective(), budget=BUDGET)
    found = [dict(each.ranges) for each in best_templates(proposer, Random(0))]
    assert found
    for ranges in found:
        assert violations(problem, ranges) == []
        assert problem.flow(problem.placement(ranges)).tokens_per_s > 0
    templates = Templates(problem, proposer.alike, proposer.surrogate.site_of)
    used = {node for seed in range(40) for node in templates.draw(Random(seed)).ranges()}
    assert used == set(range(9))


@pytest.mark.parametrize("seed", range(10))
def test_neighbours_stay_in_their_region(seed):
    problem = planning_problem(two_regions(), constraints=Constraints(same_region=True))
    chain = {node: (15 * (node % 4), 15 * (node % 4) + 15) for node in range(8)}
    draws, rng, ranges = Neighbours(problem), Random(seed), chain
    for _ in range(20):
        ranges = draws.draw(ranges, rng)
        for region in (range(4), range(4, 8)):
            own = {node: span for node, span in ranges.items() if node in region}
            assert not own or allowed(problem, own) == own


def test_a_price_makes_a_figure_worse():
    rate, latency = Objective(), Objective("ttft_s.mean", (Limit("decode_tokens_per_s", False, 8),))
    figures = {"decode_tokens_per_s": 10.0, "ttft_s.mean": 0.5}
    assert rate.score(figures, 4.0) == 6.0
    assert rate.score(figures, 40.0) == 0.0
    assert latency.rank(figures, 0.3) == (True, pytest.approx(1 / 0.8))


def test_the_score_of_a_proposal_counts_what_is_moved():
    scenario = four_nodes()
    begun = {0: (0, 2), 1: (2, 4), 2: (0, 2), 3: (2, 4)}
    scores = []
    for price in (0.0, 0.5):
        constraints = Constraints(start=begun, move_price=price)
        problem = planning_problem(scenario, constraints=constraints)
        proposer = Proposer(scenario, problem, Objective())
        scores.append([proposer.score(each) for each in (begun, {**begun, 0: (1, 2), 3: (3, 4)})])
        scores[-1].append(proposer.score({**begun, 2: (2, 4)}))
    assert scores[1][0] == scores[0][0] > 0
    assert scores[1][2] == pytest.approx(scores[0][2] - 2 * 0.5)


def searched(**options):
    effort = Effort(num_seeds=1, rounds=2, annealings=2)
    return plan(four_nodes(), effort=effort, budget=BUDGET, seed=1, **options)


def test_proposals_are_simulated_and_keep_to_constraints():
    found = searched(fix=["a=0-1"], ban=["b=0-1"], leave_out=["d"])
    proposed = [each for each in found.candidates if each.label.startswith("proposal")]
    assert proposed
    for each in found.candidates:
        layers = each.placement.layers
        assert layers["a"] == (0, 2)
        assert layers.get("b", (2, 4))[0] >= 2
        assert "d" not in layers


def test_a_dear_move_is_not_made():
    """The machine that idles would serve more requests, but not at any price."""
    begun = Placement({"a": (0, 2), "b": (2, 4), "c": (0, 2)})
    free = searched(start_from=begun)
    dear = searched(start_from=begun, move_price=1e3)
    assert set(free.placement.layers) == set("abcd")
    assert layers_moved(begun.layers, dear.placement.layers) == 0

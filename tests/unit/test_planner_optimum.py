"""Plans of tiny clusters beside all of their placements."""

from __future__ import annotations

import pytest
from small_clusters import RATE, all_placements, random_cluster, served

from helixsim.planner.plan import plan
from helixsim.planner.problem import planning_problem
from helixsim.planner.search_budget import SearchBudget
from helixsim.planner.simulated.alike import alike_nodes
from helixsim.planner.simulated.search import Effort


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_plan_is_the_optimum_of_a_tiny_cluster(seed):
    """Two pairs of machines and three layers; `tests/bench/exhaustive.py` has larger ones."""
    scenario = random_cluster(seed, num_types=2, duration_s=10.0)
    problem = planning_problem(scenario)
    result = plan(
        scenario, effort=Effort(1, 16, 4), budget=SearchBudget(proposal_steps=200, templates=200)
    )
    placements = list(all_placements(problem))
    best = max(served(scenario, problem.placement(each)) for each in placements)
    assert result.simulated[RATE] >= 0.99 * best


def test_all_placements_are_there_once():
    """Two machines for two layers, and one for one: counted by hand."""
    scenario = random_cluster(0, num_layers=2, num_types=1, each=2)
    problem = planning_problem(scenario)
    assert problem.max_layers(0) == 1 or problem.max_layers(0) == 2
    found = list(all_placements(problem))
    keys = {alike_nodes(problem).key(each) for each in found}
    assert len(keys) == len(found)
    # One after the other; and where a machine holds both layers: one alone, or both in parallel.
    assert len(found) == (1 if problem.max_layers(0) == 1 else 3)

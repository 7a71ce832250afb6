"""A plan on a Ray cluster is the plan of this machine."""

from __future__ import annotations

import importlib.util

import pytest
from planner_problems import four_nodes

from helixsim.planner.plan import plan
from helixsim.planner.search_budget import SearchBudget
from helixsim.planner.simulated.search import Effort

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'helixsim[ray]'")
def test_ray_gives_the_same_plan():
    options = {
        "effort": Effort(num_seeds=2, rounds=2, annealings=4),
        "budget": SearchBudget(proposal_steps=60, templates=60),
    }
    here = plan(four_nodes(), **options)
    for jobs in (2, None):
        there = plan(four_nodes(), backend="ray", jobs=jobs, **options)
        assert (there.placement, there.simulated) == (here.placement, here.simulated)
        assert [(each.label, each.figures) for each in there.candidates] == [
            (each.label, each.figures) for each in here.candidates
        ]

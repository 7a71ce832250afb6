"""Every routing policy goes with every node scheduler and every performance model that ships."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from builders import make_scenario

from helixsim import simulate
from helixsim.control.node_schedulers import NODE_SCHEDULERS
from helixsim.control.routing import POLICIES
from helixsim.physics.performance_model import PERFORMANCE_MODELS

PLUGGED = (POLICIES, NODE_SCHEDULERS, PERFORMANCE_MODELS)
LAYERS = {"a": (0, 2), "b": (2, 4), "c": (0, 4)}
REQUESTS = [(0.05 * index, 10 + index % 7, 4 + index % 3) for index in range(40)]
COMBINATIONS = list(product(*(registry.shipped_names() for registry in PLUGGED)))


@pytest.mark.parametrize(("policy", "node", "physics"), COMBINATIONS)
def test_all_requests_are_answered(policy, node, physics):
    scenario = make_scenario(LAYERS, requests=REQUESTS, policy=policy, drain=True)
    scheduler = replace(scenario.scheduler, node=node)
    result = simulate(replace(scenario, physics=physics, scheduler=scheduler))
    assert list(result.requests["status"]) == ["completed"] * len(REQUESTS)
    assert list(result.requests["output_tokens"]) == [output for _, _, output in REQUESTS]

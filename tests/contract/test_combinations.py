"""Every routing policy goes with every node scheduler and every performance model that ships."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from builders import make_scenario

from helixsim import simulate
from helixsim.control.node_schedulers import NODE_SCHEDULERS
from helixsim.control.routing import POLICIES
from helixsim.control.routing.hop_by_hop import HopByHopPolicy
from helixsim.control.routing.policy import RoutingPoint
from helixsim.errors import InputError
from helixsim.physics.performance_model import PERFORMANCE_MODELS
from helixsim.requests import Route, Stage

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


class WholeRoutePolicy(HopByHopPolicy):
    """Gives each request a whole route of its own, of nothing but stages."""

    routing_point = RoutingPoint.ADMISSION

    def admit(self, request):
        rejection = super().admit(request)
        stages = [Stage(2, 0, 4)] if request.index % 2 else [Stage(0, 0, 2), Stage(1, 2, 4)]
        request.route = Route(stages)
        return rejection


def test_a_routing_point_that_is_none(monkeypatch):
    class Lost(HopByHopPolicy):
        routing_point = "admission"

    monkeypatch.setattr(POLICIES, "_registered", {"lost": Lost})
    scenario = make_scenario(LAYERS, requests=REQUESTS, policy="lost")
    with pytest.raises(InputError, match="'lost' has a routing_point of 'admission'; it must be"):
        simulate(scenario)


@pytest.mark.parametrize("physics", PERFORMANCE_MODELS.shipped_names())
def test_a_policy_of_a_user_may_set_whole_routes(physics, monkeypatch):
    monkeypatch.setattr(POLICIES, "_registered", {"whole": WholeRoutePolicy})
    scenario = make_scenario(LAYERS, requests=REQUESTS, policy="whole", drain=True)
    result = simulate(replace(scenario, physics=physics))
    assert list(result.requests["status"]) == ["completed"] * len(REQUESTS)
    routes = ["a[0:2] b[2:4]", "c[0:4]"] * (len(REQUESTS) // 2)
    assert list(result.requests["route"]) == routes

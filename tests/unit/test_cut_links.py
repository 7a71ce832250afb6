"""Routing around links that are cut."""

from __future__ import annotations

import pytest
from builders import make_inputs, make_scenario, make_topology, prompt
from test_coordinator_disruption import World, arrive, make

from helixsim.control.actions import LinksCut, RequestStalled
from helixsim.control.control_plane import flow_without
from helixsim.control.links_to_avoid import links_to_avoid
from helixsim.control.routing import POLICIES
from helixsim.control.routing.policy import Rejection, complete_route

LAYERS = {"a": (0, 1), "b": (1, 2), "c": (0, 1), "d": (1, 2)}
A, B, C, D, HOME = range(5)
NONE: frozenset[int] = frozenset()


def cut(*links):
    return frozenset(links)


@pytest.fixture
def scenario():
    return make_scenario(LAYERS, requests=[(0, 1, 1)])


def test_nothing_flows_over_a_link_that_is_cut(scenario):
    topology = make_topology(scenario)
    flow = flow_without(scenario, topology, NONE, cut((A, B)))
    by_pair = {(x.source, x.target): flow.link_tokens_per_s[x.index] for x in topology.links}
    assert by_pair[A, B] == 0
    assert by_pair[A, D] > 0
    assert flow_without(scenario, topology, frozenset({C}), cut((A, B), (A, D))) is None


@pytest.mark.parametrize("policy", ["maxflow", "random", "swarm"])
def test_policies_take_no_link_that_is_cut(scenario, policy):
    topology = make_topology(scenario)
    inputs = make_inputs(scenario)
    found = POLICIES.make(policy, inputs)
    avoided = cut((A, B), (C, D), (C, B))
    found.reroute(flow_without(scenario, topology, NONE, avoided), NONE, avoided)
    for number in range(20):
        request = prompt(3, number)
        assert found.admit(request) is None
        assert [each.node for each in complete_route(found, topology, request).stages] == [A, D]


def test_a_way_back_that_is_cut_closes_the_first_node_or_else_the_last(scenario):
    topology = make_topology(scenario)
    assert links_to_avoid(topology, NONE, cut((A, B))) == cut((A, B))
    assert links_to_avoid(topology, NONE, cut((B, A))) == cut((HOME, A))
    assert links_to_avoid(topology, frozenset({C}), cut((B, A))) == cut((B, HOME))
    both = links_to_avoid(topology, NONE, cut((B, A), (D, C)))
    assert both == cut((HOME, A), (D, HOME))


def test_requests_on_a_link_that_is_cut_begin_anew():
    world = World()
    coordinator = make(world)
    request, _ = arrive(coordinator)
    node = request.route.stages[0].node
    actions = coordinator.handle(LinksCut(cut((2, node))), 1.0)
    assert actions.dropped == [request]
    assert [each.attempt for each in actions.send] == [1]
    assert coordinator.handle(LinksCut(cut((2, node))), 2.0).dropped == []
    coordinator.handle(LinksCut(frozenset()), 3.0)
    assert coordinator.cut == frozenset()


def test_a_request_whose_pass_was_lost_begins_anew():
    world = World()
    coordinator = make(world)
    request, _ = arrive(coordinator)
    actions = coordinator.handle(RequestStalled(request), 1.0)
    assert (actions.dropped, [each.attempt for each in actions.send]) == ([request], [1])
    assert coordinator.handle(RequestStalled(request), 2.0).dropped == []


def test_without_a_route_requests_fail_with_the_link_in_the_reason():
    world = World()
    coordinator = make(world, reflow=lambda down, cut: None)
    request, _ = arrive(coordinator)
    coordinator.handle(LinksCut(cut((0, 1))), 1.0)
    assert ("failed", request.index, "the link a -> b was lost", 1.0) in world.log
    late, _ = arrive(coordinator)
    assert ("rejected", late.index, Rejection.NODES.value) in world.log

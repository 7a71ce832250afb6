"""What every routing policy promises; a registered one in POLICIES is tested by being there."""

from __future__ import annotations

from random import Random

import pytest
from builders import HOST, capacity, make_inputs, make_machine_type, make_scenario, offline, prompt

from helixsim.control.routing import POLICIES
from helixsim.control.routing.policy import Rejection, RoutingPoint
from helixsim.models.simulation import Simulation, simulate
from helixsim.requests import Route
from helixsim.scenario.load import load_scenario

LAYERS = {"a": (0, 2), "b": (0, 2), "c": (1, 4), "d": (2, 4)}


def inputs_of(rooms=None, **changes):
    rooms = rooms or {}
    types = {
        name: make_machine_type(f"kind-{name}", 4, room=rooms.get(name, capacity()))
        for name in LAYERS
    }
    scenario = make_scenario(LAYERS, requests=[(0, 1, 1)], types=types, link=(999.9, 0.01))
    return make_inputs(scenario, **changes)


class IdleNode:
    """A view of a node where no request waits and all KV blocks are free."""

    queue_length = waiting_tokens = num_running = 0
    free_kv_tokens = 1000
    step_s = 0.0


def with_nodes(inputs):
    inputs.view.nodes = [IdleNode() for _ in inputs.topology.nodes]
    return inputs


@pytest.fixture(params=POLICIES.names())
def name(request):
    return request.param


@pytest.fixture
def make(name):
    def make(rooms=None, **changes):
        return POLICIES.get(name)(with_nodes(inputs_of(rooms, **changes)))

    return make


@pytest.fixture
def decide():
    """Ask a policy for the link that a prompt takes from a machine, as its moment has it."""

    def decide(policy, topology, machine, request):
        if policy.routing_point is RoutingPoint.ADMISSION:
            return next(link for link in request.route.links if link.source == machine)
        if policy.routing_point is RoutingPoint.HOP:
            return policy.choose(machine, request)
        choose = policy.candidates(machine, list(topology.outgoing[machine]))
        return choose(request, set())

    return decide


def test_scenarios_can_name_every_policy(name):
    scenario = load_scenario("quickstart", [f"scheduler.policy={name}"])
    assert scenario.scheduler.policy == name
    shipped = {"maxflow", "swarm", "random", "shortest_queue", "least_kv", "prefix_aware"}
    assert shipped <= set(POLICIES)


def test_it_says_when_it_decides(make):
    assert isinstance(make().routing_point, RoutingPoint)


def test_links_get_whole_bytes_per_second_and_no_more_than_they_have(make):
    policy = make()
    for link in inputs_of().topology.links:
        bandwidth = policy.link_bandwidth(link)
        assert isinstance(bandwidth, int)
        assert 0 < bandwidth <= link.bandwidth_bytes_per_s


def test_an_admitted_prompt_has_a_route(make):
    policy, request = make(), prompt(5)
    assert policy.admit(request) is None
    assert isinstance(request.route, Route)
    whole = policy.routing_point is RoutingPoint.ADMISSION
    assert request.route.end_layer == (4 if whole else 0)


def test_prompts_get_from_the_coordinator_through_all_layers_and_back(make, decide):
    topology = inputs_of().topology
    policy = make()
    for index in range(50):
        request = prompt(5, index)
        assert policy.admit(request) is None
        machine, layer = topology.coordinator, 0
        for _ in range(len(LAYERS) + 1):
            link = decide(policy, topology, machine, request)
            assert link in topology.outgoing[machine]
            assert link.entry_layer == layer
            machine = link.target
            if machine == topology.coordinator:
                break
            layer = topology.nodes[machine].end_layer
        assert (machine, layer) == (topology.coordinator, 4)


def test_no_prompt_goes_where_it_would_be_stuck(make, decide):
    # c takes short prompts only: long ones have to go by way of d.
    rooms = {"c": capacity(max_prompt_tokens=9)}
    topology = inputs_of(rooms).topology
    policy = make(rooms)
    for index in range(50):
        request = prompt(10, index)
        assert policy.admit(request) is None
        for machine in (0, 1):
            if (
                policy.routing_point is RoutingPoint.ADMISSION
                and request.route.stages[0].node != machine
            ):
                continue
            assert topology.name(decide(policy, topology, machine, request).target) == "d"


def test_a_prompt_longer_than_any_way_takes_is_turned_away(make):
    rooms = {"c": capacity(max_prompt_tokens=9), "d": capacity(max_prompt_tokens=12)}
    policy = make(rooms)
    assert policy.admit(prompt(12)) is None
    request = prompt(13)
    assert policy.admit(request) is Rejection.LENGTH
    assert request.route is None


def test_a_request_leaves_nothing_behind(make):
    policy = make()
    before = policy.bottleneck_share(), [policy.expected_tokens(node) for node in range(4)]
    request = prompt(5)
    policy.admit(request)
    request.num_output_tokens = 1
    policy.validate([request])
    policy.decodes_dispatched([request])
    policy.finished(request)
    policy.validate([])
    assert (
        policy.bottleneck_share(),
        [policy.expected_tokens(node) for node in range(4)],
    ) == before


def test_what_is_booked_without_an_active_request_is_found(make):
    policy, request = make(), prompt(5)
    policy.admit(request)
    if policy.bottleneck_share() is None:
        pytest.skip("it books nothing")
    with pytest.raises(AssertionError, match="kv-conserved"):
        policy.validate([])


def test_expectations_are_all_there_or_not_at_all(make):
    policy = make()
    policy.admit(prompt(5))
    expected = [policy.expected_tokens(node) for node in range(4)]
    if policy.bottleneck_share() is None:
        assert expected == [None] * 4
    else:
        assert 0 < policy.bottleneck_share() <= 1
        assert sum(expected) > 0


def test_the_same_stream_gives_the_same_choices(make, decide):
    def choices():
        topology = inputs_of().topology
        policy = make(rng=Random(11))
        chosen = []
        for index in range(40):
            request = prompt(index % 7 + 1, index)
            policy.admit(request)
            chosen.append(decide(policy, topology, topology.coordinator, request).index)
        return chosen

    assert choices() == choices()


def test_it_serves_a_cluster(name):
    scenario = make_scenario(
        LAYERS,
        workload=offline([(5, 3), (8, 1), (2, 6)], initial_requests=5),
        policy=name,
        link=(1e5, 0.01),
        duration_s=300.0,
        drain=True,
    )
    simulation = Simulation(scenario)
    requests = simulation.run().summary["requests"]
    assert requests["completed"] == requests["arrived"] > 10
    assert simulation.is_idle


def test_requests_of_one_layer_hold_it_alone(name):
    """The smallest cluster there is."""
    scenario = make_scenario({"a": (0, 1)}, requests=[(0, 1, 1)], policy=name, drain=True)
    result = simulate(scenario)
    assert result.summary["requests"]["completed"] == 1
    assert result.tables["requests"].as_dict()["route"] == ["a[0:1]"]
    assert HOST not in result.tables["nodes"].as_dict()["node"]

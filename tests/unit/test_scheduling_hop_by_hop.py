"""Swarm, random, shortest queue and least KV: one hop at a time."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from builders import (
    HOST,
    capacity,
    decode,
    iterations,
    make_inputs,
    make_machine_type,
    make_scenario,
    prompt,
)

from helixsim.control.routing.least_kv import LeastKvPolicy
from helixsim.control.routing.policy import Rejection, RouteFilter
from helixsim.control.routing.random_choice import RandomPolicy
from helixsim.control.routing.shortest_queue import ShortestQueuePolicy
from helixsim.control.routing.swarm import SwarmPolicy
from helixsim.models.simulation import simulate

THREE = {"a": (0, 1), "b": (0, 1), "c": (0, 1)}
HOP_BY_HOP = [SwarmPolicy, RandomPolicy, ShortestQueuePolicy, LeastKvPolicy]


@dataclass
class FakeNode:
    """What a policy may know of a node."""

    queue_length: int = 0
    free_kv_tokens: int = 0


def inputs_of(layers, rooms=None, **changes):
    rooms = rooms or {}
    num_layers = max(end for _, end in layers.values())
    types = {
        name: make_machine_type(f"kind-{name}", num_layers, room=rooms.get(name, capacity()))
        for name in layers
    }
    scenario = make_scenario(layers, requests=[(0, 1, 1)], types=types, link=(123.9, 0.0))
    return make_inputs(scenario, **changes)


def names(topology, links):
    return [topology.name(link.target) for link in links]


# -- what they have in common


@pytest.mark.parametrize("policy_type", HOP_BY_HOP)
def test_they_admit_what_some_route_takes(policy_type):
    rooms = {
        "a": capacity(max_prompt_tokens=50),
        "b": capacity(max_prompt_tokens=20),
        "c": capacity(max_prompt_tokens=40),
    }
    inputs = inputs_of({"a": (0, 1), "b": (1, 2), "c": (1, 2)}, rooms)
    policy = policy_type(inputs)
    accepted = prompt(40)
    assert policy.admit(accepted) is None
    assert accepted.route.stages == []
    assert policy.admit(prompt(41)) is Rejection.LENGTH


@pytest.mark.parametrize("policy_type", HOP_BY_HOP)
def test_they_use_links_in_full_and_count_no_caches(policy_type):
    inputs = inputs_of(THREE)
    policy = policy_type(inputs)
    assert [policy.link_bandwidth(link) for link in inputs.topology.links] == [123] * 6
    assert policy.bottleneck_share() is None
    assert policy.expected_tokens(0) is None


def test_room_is_what_the_best_way_on_takes():
    rooms = {
        "a": capacity(max_prompt_tokens=50),
        "b": capacity(max_prompt_tokens=20),
        "c": capacity(max_prompt_tokens=40),
        "d": capacity(max_prompt_tokens=30),
    }
    layers = {"a": (0, 1), "b": (1, 2), "c": (1, 2), "d": (2, 3)}
    topology = inputs_of(layers, rooms).topology
    room = RouteFilter(topology)

    def longest(fits):
        """The longest of prompts of 10, 20, ... tokens that fits."""
        return max((n for n in range(10, 100, 10) if fits(prompt(n))), default=0)

    assert {
        (topology.name(link.source), topology.name(link.target)): longest(
            lambda request, link=link: room.fits(link, request)
        )
        for link in topology.links
    } == {
        (HOST, "a"): 30,
        ("a", "b"): 20,
        ("a", "c"): 30,
        ("b", "d"): 20,  # no longer prompt comes through b
        ("c", "d"): 30,
        ("d", HOST): 30,
    }
    assert longest(room.admits) == 30


def test_room_is_for_contexts_too():
    rooms = {"a": capacity(max_decode_context=100), "b": capacity(max_decode_context=50)}
    topology = inputs_of({"a": (0, 1), "b": (0, 1)}, rooms).topology
    room = RouteFilter(topology)
    to_a, to_b = topology.outgoing[topology.coordinator]
    assert [room.fits(link, prompt(40, output=10)) for link in (to_a, to_b)] == [True, True]
    assert [room.fits(link, prompt(40, output=20)) for link in (to_a, to_b)] == [True, False]
    assert not room.admits(prompt(90, output=11))


@pytest.mark.parametrize(
    "policy", ["swarm", "random", "shortest_queue", "least_kv", "prefix_aware"]
)
def test_no_request_goes_where_no_way_leads_on(policy):
    """Node b holds the first layer, as a does, and has no link to c: all requests take a."""
    links = dict.fromkeys([(HOST, "a"), (HOST, "b"), ("a", "c"), ("c", HOST)], (1e9, 0.001))
    scenario = make_scenario(
        {"a": (0, 1), "b": (0, 1), "c": (1, 2)},
        requests=[(0.01 * n, 5, 3) for n in range(20)],
        links=links,
        policy=policy,
        drain=True,
    )
    assert simulate(scenario).summary["requests"]["completed"] == 20


# -- swarm


def test_swarm_takes_turns_and_the_first_among_equals():
    inputs = inputs_of(THREE)
    policy, home = SwarmPolicy(inputs), inputs.topology.coordinator
    chosen = [policy.choose(home, prompt(5)) for _ in range(6)]
    assert names(inputs.topology, chosen) == ["a", "b", "c", "a", "b", "c"]


def test_swarm_learns_by_hand():
    inputs = inputs_of({"a": (0, 1), "b": (0, 1)})
    policy, home = SwarmPolicy(inputs), inputs.topology.coordinator
    learnt = prompt(5)
    learnt.via_link, learnt.sent_s = 0, 10.0
    inputs.view.passed([learnt], 10.4)
    first = 0.8 * (10.4 - 10.0) + 0.2 * 0.05  # 0.33
    inputs.view.passed([learnt], 10.1)
    second = 0.8 * (10.1 - 10.0) + 0.2 * first  # 0.146
    assert second == pytest.approx(0.146)
    assert inputs.view.transit_s == [second, 0.05, 0.05, 0.05]
    # Priorities: a 0.05 + 0.146, then b 0.1, 0.15, 0.2: a is due again before the last of them.
    chosen = [policy.choose(home, prompt(5)) for _ in range(6)]
    assert names(inputs.topology, chosen) == ["a", "b", "b", "b", "a", "b"]


def test_swarm_passes_over_dead_ends():
    inputs = inputs_of(THREE, {"a": capacity(max_prompt_tokens=4)})
    policy, home = SwarmPolicy(inputs), inputs.topology.coordinator
    assert names(inputs.topology, [policy.choose(home, prompt(5))]) == ["b"]
    assert names(inputs.topology, [policy.choose(home, prompt(4))]) == ["a"]


# -- random


def test_random_takes_the_first_free_link_of_a_shuffle():
    inputs = inputs_of(THREE, rng=Random(7))
    topology, policy = inputs.topology, RandomPolicy(inputs)
    usable = topology.outgoing[topology.coordinator]
    choose = policy.candidates(topology.coordinator, usable)
    twin = Random(7)
    taken: set[int] = set()
    for number in range(4):
        order = list(usable)
        twin.shuffle(order)
        expected = next((link for link in order if link.index not in taken), None)
        assert choose(prompt(5, number), taken) is expected
        if expected is not None:
            taken.add(expected.index)
    assert len(taken) == 3
    # Taken links were shuffled along: the streams are at the same point.
    assert inputs.rng.random() == twin.random()


def test_random_keeps_to_usable_links_and_out_of_dead_ends():
    inputs = inputs_of(THREE, {"a": capacity(max_prompt_tokens=4)})
    topology, policy = inputs.topology, RandomPolicy(inputs)
    to_a, to_b, _ = topology.outgoing[topology.coordinator]
    choose = policy.candidates(topology.coordinator, [to_a, to_b])
    assert {choose(prompt(5), set()).index for _ in range(30)} == {to_b.index}
    assert {choose(prompt(4), set()).index for _ in range(30)} == {to_a.index, to_b.index}


# -- shortest queue


def choices(waiting, usable=(0, 1, 2), rooms=None, tokens=5):
    """Where prompts go, with so many waiting at a, b and c and some links usable."""
    inputs = inputs_of(THREE, rooms)
    topology, policy = inputs.topology, ShortestQueuePolicy(inputs)
    inputs.view.nodes = [FakeNode(queue_length=length) for length in waiting]
    links = topology.outgoing[topology.coordinator]
    choose = policy.candidates(topology.coordinator, [links[index] for index in usable])
    found = [choose(prompt(tokens), set()) for _ in range(40)]
    return {None if link is None else topology.name(link.target) for link in found}


def test_shortest_queue_takes_the_shortest():
    assert choices([3, 1, 2]) == {"b"}


def test_shortest_queue_draws_among_equals():
    assert choices([1, 2, 1]) == {"a", "c"}


def test_shortest_queue_waits_for_the_shortest_of_all():
    assert choices([3, 1, 2], usable=(0, 2)) == {None}


def test_shortest_queue_does_not_count_where_a_prompt_cannot_go():
    rooms = {"b": capacity(max_prompt_tokens=4)}
    assert choices([3, 1, 2], rooms=rooms) == {"c"}
    assert choices([3, 1, 2], rooms=rooms, tokens=4) == {"b"}


def test_the_coordinator_is_the_shortest_queue():
    inputs = inputs_of({"a": (0, 1), "b": (1, 2)})
    topology, policy = inputs.topology, ShortestQueuePolicy(inputs)
    (home,) = topology.outgoing[1]
    assert inputs.view.nodes == ()  # no node's queue is asked for
    choose = policy.candidates(1, [home])
    assert choose(prompt(5), set()) is home


# -- least KV


def least_kv(free, layers=None, rooms=None):
    """The policy, where nodes have so many free KV tokens."""
    inputs = inputs_of(layers or THREE, rooms)
    inputs.view.nodes = [FakeNode(free_kv_tokens=tokens) for tokens in free]
    return LeastKvPolicy(inputs), inputs


def test_least_kv_takes_the_node_with_the_most_free_kv_tokens():
    policy, inputs = least_kv([10, 30, 20])
    home = inputs.topology.coordinator
    assert names(inputs.topology, [policy.choose(home, prompt(5)) for _ in range(2)]) == ["b", "b"]
    inputs.view.nodes[1].free_kv_tokens = 15
    assert names(inputs.topology, [policy.choose(home, prompt(5))]) == ["c"]


def test_least_kv_takes_the_first_among_equals():
    policy, inputs = least_kv([10, 20, 20])
    assert names(inputs.topology, [policy.choose(inputs.topology.coordinator, prompt(5))]) == ["b"]


def test_least_kv_passes_over_dead_ends():
    policy, inputs = least_kv([10, 30, 20], rooms={"b": capacity(max_prompt_tokens=4)})
    home = inputs.topology.coordinator
    assert names(inputs.topology, [policy.choose(home, prompt(5))]) == ["c"]
    assert names(inputs.topology, [policy.choose(home, prompt(4))]) == ["b"]


def test_least_kv_asks_no_node_where_there_is_one_way():
    inputs = inputs_of({"a": (0, 1), "b": (1, 2)})
    topology, policy = inputs.topology, LeastKvPolicy(inputs)
    assert inputs.view.nodes == ()
    assert names(topology, [policy.choose(topology.coordinator, prompt(5))]) == ["a"]
    (home,) = topology.outgoing[1]
    assert policy.choose(1, decode(5)) is home


def test_least_kv_by_hand():
    # A token takes 0.125 s on a link after 0.125 s of latency, and a second on a layer; a decode
    # that runs alone takes 2 s. A request holds its context and the tokens of its pass from when
    # that leaves the coordinator.
    rooms = {"a": capacity(kv_token_layers=20), "b": capacity(kv_token_layers=18)}
    types = {name: make_machine_type(f"kind-{name}", 1, room=room) for name, room in rooms.items()}
    scenario = make_scenario(
        {"a": (0, 1), "b": (0, 1)},
        requests=[(0, 3, 1), (1, 4, 1), (2, 2, 1), (3, 2, 1)],
        types=types,
        link=(16.0, 0.125),
        activation_bytes=0.0,
        policy="least_kv",
        drain=True,
    )
    result = simulate(scenario, record_iterations=True)
    # 2.0: free are 20 and 18: a. 3.0: 17 and 18: b. 4.0: 17 and 14: a. 5.0: 15 and 14: a.
    assert result.tables["requests"].as_dict()["route"] == ["a[0:1]", "b[0:1]", "a[0:1]", "a[0:1]"]
    log = iterations(result)
    assert log == [
        # There at 2.5, runs 3 s till 5.5; back 0.5 s later.
        (0, 0, 2.0, 6.0),
        # There at 3.625, runs 4 s till 7.625, back 0.625 s later.
        (1, 0, 3.0, 8.25),
        # Prompts of 2 tokens, there at 4.375 and 5.375, run together from 5.5 till 9.5. Sent back
        # one behind the other: 0.25 s each.
        (2, 0, 4.0, 9.875),
        (3, 0, 5.0, 10.125),
        # The decode of 1, there at 8.5, runs 2 s.
        (1, 1, 8.25, 10.75),
        # The decode of 0, there at 6.25, waits till 9.5, runs 2 s.
        (0, 1, 6.0, 11.75),
        # The decodes of 2 and 3, there at 10.125 and 10.375, run together from 11.5: 2 s.
        (2, 1, 9.875, 13.75),
        (3, 1, 10.125, 13.875),
    ]

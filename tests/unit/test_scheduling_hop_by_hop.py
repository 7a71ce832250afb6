"""Swarm, random and shortest queue: one hop at a time."""

from __future__ import annotations

from random import Random

import pytest
from builders import HOST, capacity, make_inputs, make_machine_type, make_scenario, prompt

from helixsim.control.routing.policy import Rejection, RouteFilter
from helixsim.control.routing.random_choice import RandomPolicy
from helixsim.control.routing.shortest_queue import ShortestQueuePolicy
from helixsim.control.routing.swarm import SwarmPolicy

THREE = {"a": (0, 1), "b": (0, 1), "c": (0, 1)}
HOP_BY_HOP = [SwarmPolicy, RandomPolicy, ShortestQueuePolicy]


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
        ("b", "d"): 20,  # nobody longer comes through b
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
    policy.transited([learnt], 10.4)
    first = 0.8 * (10.4 - 10.0) + 0.2 * 0.05  # 0.33
    policy.transited([learnt], 10.1)
    second = 0.8 * (10.1 - 10.0) + 0.2 * first  # 0.146
    assert second == pytest.approx(0.146)
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
    choose = policy.candidates(topology.coordinator, usable, lambda node: 0)
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
    choose = policy.candidates(topology.coordinator, [to_a, to_b], lambda node: 0)
    assert {choose(prompt(5), set()).index for _ in range(30)} == {to_b.index}
    assert {choose(prompt(4), set()).index for _ in range(30)} == {to_a.index, to_b.index}


# -- shortest queue


def choices(waiting, usable=(0, 1, 2), rooms=None, tokens=5):
    """Where prompts go, with so many waiting at a, b and c and some links usable."""
    inputs = inputs_of(THREE, rooms)
    topology, policy = inputs.topology, ShortestQueuePolicy(inputs)
    links = topology.outgoing[topology.coordinator]
    choose = policy.candidates(
        topology.coordinator, [links[index] for index in usable], waiting.__getitem__
    )
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
    choose = policy.candidates(1, [home], [].__getitem__)  # nobody's queue is asked for
    assert choose(prompt(5), set()) is home

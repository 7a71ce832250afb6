"""How full the KV caches are expected to be, and how full they are."""

from __future__ import annotations

import pytest
from builders import capacity, decode, make_machine_type, make_scenario, make_topology, prompt

from helixsim.control.kv_cache import held_token_layers
from helixsim.control.routing.kv_expectation import KvExpectation
from helixsim.requests import Route, Stage

LAYERS = {"a": (0, 2), "b": (1, 4)}


@pytest.fixture
def topology():
    rooms = {"a": capacity(kv_token_layers=1000), "b": capacity(kv_token_layers=600)}
    types = {name: make_machine_type(name, 4, room=room) for name, room in rooms.items()}
    return make_topology(make_scenario(LAYERS, requests=[(0, 1, 1)], types=types))


def routed(tokens, *stages):
    request = prompt(tokens)
    request.route = Route([Stage(*stage) for stage in stages])
    return request


@pytest.mark.parametrize(("expected", "tokens"), [(4.0, 14), (4.9, 14), (0.0, 10)])
def test_expected_tokens_are_rounded_down(topology, expected, tokens):
    assert KvExpectation(topology, 0.85, expected).tokens(prompt(10)) == tokens


def test_admission_asks_for_room_on_all_layers_of_a_node(topology):
    kv = KvExpectation(topology, 0.5, 4.0)
    # 500 of a's 1000 for 2 layers, 300 of b's 600 for 3.
    assert [kv.fits(0, tokens) for tokens in (250, 251)] == [True, False]
    assert [kv.fits(1, tokens) for tokens in (100, 101)] == [True, False]


def test_booking_counts_the_layers_of_the_route(topology):
    kv = KvExpectation(topology, 0.5, 4.0)
    request = routed(16, (0, 0, 2), (1, 2, 4))
    kv.book(request, request.route)
    assert kv.expected_tokens == [40, 40]
    # 500 - 40 left of a, 300 - 40 of b, where two layers are booked but three are asked for.
    assert [kv.fits(0, tokens) for tokens in (230, 231)] == [True, False]
    assert [kv.fits(1, tokens) for tokens in (86, 87)] == [True, False]


def test_releasing_takes_back_what_was_booked(topology):
    kv = KvExpectation(topology, 0.5, 4.0)
    first, second = routed(16, (0, 0, 2), (1, 2, 4)), routed(6, (0, 0, 2), (1, 2, 4))
    kv.book(first, first.route)
    kv.book(second, second.route)
    first.prompt_tokens = 99  # what was booked counts, not what would be booked now
    kv.release(first)
    assert kv.expected_tokens == [20, 20]
    kv.release(second)
    assert kv.expected_tokens == [0, 0]
    assert kv.bottleneck_share() == 0.0


def test_the_fullest_layer_over_all_nodes_that_hold_it(topology):
    kv = KvExpectation(topology, 0.5, 4.0)
    request = routed(16, (0, 0, 2), (1, 2, 4))
    kv.book(request, request.route)
    # 40 on a, 20 a layer; 40 on b, a third for each of its three layers.
    # Room: 500 a layer on a, 200 on b.
    shares = {0: 20 / 500, 1: (20 + 40 / 3) / 700, 2: (40 / 3) / 200}
    assert kv.bottleneck_share() == pytest.approx(max(shares.values()), rel=1e-15)
    assert max(shares, key=shares.get) == 2


def test_use_is_context_and_the_pass_under_way():
    going = decode(30)
    going.route = Route([Stage(0, 0, 2), Stage(1, 2, 4)])
    starting = prompt(10)
    starting.route = going.route
    elsewhere = prompt(5)
    elsewhere.route = Route([Stage(1, 1, 4)])
    unrouted = prompt(7)
    assert held_token_layers([going, starting, elsewhere, unrouted], 3) == [82, 82 + 15, 0]

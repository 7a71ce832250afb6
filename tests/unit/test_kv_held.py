"""KV admission by what requests hold."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest
from builders import capacity, make_inputs, make_scenario, offline

from helixsim.control.routing.kv_held import KvHeld
from helixsim.control.routing.maxflow import MaxFlowPolicy
from helixsim.models.simulation import simulate
from helixsim.requests import Request

BLOCK = 16


def policy(kv_tokens, expected=1.0, mark=1.0):
    scenario = make_scenario(
        {"a": (0, 2)}, requests=[(0, 1, 1)], room=capacity(kv_token_layers=2 * kv_tokens)
    )
    return MaxFlowPolicy(
        make_inputs(
            scenario,
            admits_by_held_kv=True,
            high_water_mark=mark,
            expected_output_tokens=expected,
        )
    )


def asked(prompt_tokens, index=0, num_decodes=1000):
    return Request(index, 0.0, prompt_tokens, num_decodes, num_decodes)


def decoded(policy, request, number):
    for _ in range(number):
        policy.decodes_dispatched((request,))
        request.num_output_tokens += 1


def test_a_request_counts_with_what_it_holds():
    held = policy(10_000)
    request = asked(100)
    assert held.admit(request) is None
    assert held.expected_tokens(0) == 2 * (100 + BLOCK)
    decoded(held, request, 30)
    assert held.expected_tokens(0) == 2 * (130 + BLOCK)
    held.validate([request])
    held.finished(request)
    assert held.expected_tokens(0) == 0


def test_room_is_kept_for_two_more_like_it():
    # Two requests hold 100 tokens each: there must be room for four.
    for room, fits in ((400, True), (399, False)):
        held = policy(room)
        assert held.admit(asked(84)) is None  # alone it may fill everything
        assert (held.admit(asked(84, index=1)) is None) is fits


def test_room_is_kept_for_growth_where_answers_are_long():
    # Two hold 100 tokens each where 400 more are expected: at most 2 x 400 e^(100/400 - 1) later.
    needed = 2 * 400 * exp(100 / 400 - 1) + 2 * 100
    for room, fits in ((needed + 1, True), (needed - 1, False)):
        held = policy(int(room), expected=400.0)
        assert held.admit(asked(84)) is None
        assert (held.admit(asked(84, index=1)) is None) is fits


def test_the_growth_is_learned_from_answers_that_have_not_ended():
    scenario = make_scenario({"a": (0, 2)}, requests=[(0, 1, 1)])
    topology = make_inputs(scenario).topology
    account = KvHeld(topology, 1.0, 10.0)
    before = account._generated / account._num_ended
    request = asked(50)
    inner = MaxFlowPolicy(make_inputs(scenario, admits_by_held_kv=True))
    inner.admit(request)
    account.book(request, request.route)
    account.grow(request.route, 1000)
    assert account._generated / account._num_ended == pytest.approx(before + 1000 / 20)


def test_the_last_admitted_is_preempted_where_the_margin_was_too_small():
    """Answers much longer than expected: what is held stays within the room, and all complete."""
    scenario = make_scenario(
        {"a": (0, 1), "b": (1, 2)},
        workload=offline([(10, 150)], initial_requests=12, mean_output_tokens=2),
        room=capacity(kv_token_layers=900),
        duration_s=400.0,
        link=(1e9, 0.001),
        drain=True,
    )
    fast = replace(
        scenario.scheduler,
        kv=replace(scenario.scheduler.kv, admission="exact", high_water_mark=1.0),
        max_waiting=100,
    )
    result = simulate(replace(scenario, scheduler=fast))
    requests = result.summary["requests"]
    assert requests["completed"] == requests["arrived"]
    assert 0 < requests["restarted"] < 2 * requests["arrived"]  # orderly: no storm
    assert max(result.nodes["kv_used_token_layers"]) <= 900

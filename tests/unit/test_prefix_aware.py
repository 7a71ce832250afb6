"""Prefix-aware routing, decision by decision."""

from __future__ import annotations

import pytest
from builders import capacity, make_inputs, make_machine_type, make_scenario, prompt

from helixsim.control.routing.prefix_aware import PrefixAwarePolicy, SentPrefixes
from helixsim.requests import SharedPrefix


def policy_of(layers=None, kv_tokens=10_000, **changes):
    layers = layers or {"a": (0, 2), "b": (0, 2)}
    kind = make_machine_type("kind", 2, room=capacity(kv_token_layers=2 * kv_tokens))
    scenario = make_scenario(layers, requests=[(0, 1, 1)], types=dict.fromkeys(layers, kind))
    inputs = make_inputs(scenario, **({"expected_output_tokens": 20.0} | changes))
    return PrefixAwarePolicy(inputs), inputs.topology


def asked(index, keys, tokens=100):
    request = prompt(tokens, index)
    request.prefix = SharedPrefix(tuple(keys), 16)
    return request


def sent(policy, topology, request):
    policy.admit(request)
    name = topology.name(policy.choose(topology.coordinator, request).target)
    policy.validate([*policy._bookings])
    return name


def test_a_prompt_goes_where_its_prefix_went():
    policy, topology = policy_of()
    first = asked(0, "xy")
    assert sent(policy, topology, first) == "a"
    policy.finished(first)
    other = asked(1, "pq")
    assert sent(policy, topology, other) == "b"  # no work anywhere; b has been sent less
    policy.finished(other)
    for index, (keys, name) in enumerate([("xz", "a"), ("pr", "b"), ("xy", "a")]):
        request = asked(2 + index, keys)
        assert sent(policy, topology, request) == name
        policy.finished(request)


def test_work_outweighs_what_is_found():
    policy, topology = policy_of()
    requests = [asked(index, "wxyz") for index in range(4)]
    # a: 100 tokens. The next prompt is 100 + 36 there and 100 at b, where then 100 wait, too.
    assert [sent(policy, topology, request) for request in requests] == ["a", "b", "a", "b"]
    # Prefills of the first and the third are back: 10 tokens are left of each, half an answer.
    policy.decodes_dispatched([requests[0], requests[2]])
    # a: 20 + 36, b: 136 + 36.
    assert sent(policy, topology, asked(5, "wxyz")) == "a"
    policy.decodes_dispatched([requests[0]])
    # a: 56 + 36, b: 172.
    assert sent(policy, topology, asked(6, "wxyz")) == "a"


def test_half_an_answer_is_expected_of_each_request():
    policy, topology = policy_of()
    first = asked(0, "x", 30)
    assert sent(policy, topology, first) == "a"
    policy.decodes_dispatched([first])
    second = asked(1, "x", 30)
    # a: 10 + 14, b: 30.
    assert sent(policy, topology, second) == "a"
    policy.decodes_dispatched([second])
    # a: 20 + 14, b: 30.
    assert sent(policy, topology, asked(2, "x", 30)) == "b"


def test_a_faster_node_gets_more_work():
    policy, topology = policy_of()
    policy._rates = [1.0, 3.0]
    names = [sent(policy, topology, prompt(100, index)) for index in range(8)]
    assert names.count("b") == 6


def test_what_a_failed_node_was_sent_is_forgotten():
    policy, topology = policy_of()
    request = asked(0, "xy")
    sent(policy, topology, request)
    policy.finished(request)
    assert policy._found(0, request) == 32
    flow = make_inputs(make_scenario({"a": (0, 2)}, requests=[(0, 1, 1)])).flow
    policy.reroute(flow, frozenset({0}))
    assert policy._found(0, request) == 0
    assert sent(policy, topology, asked(1, "xy")) == "b"


def test_parts_of_the_llm_have_no_prefix_cache():
    policy, topology = policy_of({"a": (0, 1), "b": (0, 1), "c": (1, 2)})
    for index in range(3):
        request = asked(index, "xy")
        assert sent(policy, topology, request) == "ab"[index % 2]
        (onward,) = {policy.choose(node, request).target for node in (0, 1)}
        assert topology.name(onward) == "c"
        assert policy.choose(2, request).target == topology.coordinator
        policy.validate([*policy._bookings])
        policy.finished(request)
    policy.validate([])


def test_work_of_requests_that_have_ended_is_found():
    policy, topology = policy_of()
    request = asked(0, "xy")
    sent(policy, topology, request)
    with pytest.raises(AssertionError, match="kv-conserved: work of a request that has ended"):
        policy.validate([])
    policy._prefill_tokens[0] += 1
    with pytest.raises(AssertionError, match="kv-conserved: work does not add up"):
        policy.validate([request])


# -- what was sent


def test_blocks_are_found_from_the_beginning():
    memory = SentPrefixes(1000)
    memory.add(SharedPrefix(("a", "b", "c"), 16), 0, 10)
    assert memory.found(SharedPrefix(("a", "b", "x"), 16)) == 32
    assert memory.found(SharedPrefix(("b", "c"), 16)) == 0
    # The same block at another place is another one.
    assert memory.found(SharedPrefix(("a", "a"), 16)) == 16


def test_the_last_block_may_be_shorter():
    memory = SentPrefixes(1000)
    memory.add(SharedPrefix(("a",), 512, 100), 0, 10)
    assert memory.found(SharedPrefix(("a",), 512, 100)) == 100


def test_the_least_recently_used_are_forgotten_from_their_ends():
    memory = SentPrefixes(100)
    memory.add(SharedPrefix(("a", "b", "c"), 16), 0, 4)  # 52 tokens
    memory.add(SharedPrefix(("p", "q"), 16), 1, 4)  # 88
    memory.add(SharedPrefix(("a",), 16), 2, 4)  # 92, and a is used again
    memory.add(SharedPrefix(("x",), 16), 3, 4)  # 112: the first's own four and c go, 92 are left
    assert memory.found(SharedPrefix(("a", "b", "c"), 16)) == 32
    memory.add(None, 4, 20)  # 112: b goes
    assert memory.found(SharedPrefix(("a", "b", "c"), 16)) == 16
    assert memory.found(SharedPrefix(("p", "q"), 16)) == 32
    memory.clear()
    assert memory.found(SharedPrefix(("p", "q"), 16)) == 0

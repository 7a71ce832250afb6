"""Max-flow scheduling: shares, masks, and what a rejection leaves behind."""

from __future__ import annotations

from collections import Counter

import pytest
from builders import HOST, capacity, make_inputs, make_machine_type, make_scenario, prompt

from helixsim.control.routing.maxflow import MaxFlowPolicy
from helixsim.control.routing.policy import Rejection
from helixsim.errors import NoRouteError

TWO = {"a": (0, 1), "b": (0, 1)}
REQUESTS = [(0, 1, 1)]


def make_policy(layers, flows=None, rooms=None, nics=None, link=(1e9, 0.001), **inputs):
    rooms = rooms or {}
    num_layers = max(end for _, end in layers.values())
    types = {
        name: make_machine_type(f"kind-{name}", num_layers, room=rooms.get(name, capacity()))
        for name in layers
    }
    scenario = make_scenario(layers, requests=REQUESTS, types=types, nics=nics, link=link)
    built = make_inputs(scenario, flows, **inputs)
    return MaxFlowPolicy(built), built.topology


def to_host(flows):
    """Flows from the coordinator, and the same back to it."""
    return {(HOST, name): flow for name, flow in flows.items()} | {
        (name, HOST): flow for name, flow in flows.items()
    }


def first_node(policy, request):
    assert policy.admit(request) is None
    return request.route.stages[0].node


# -- interleaved weighted round robin


def test_successors_take_turns_by_their_flow():
    policy, _ = make_policy(TWO, to_host({"a": 3.0, "b": 1.0}))
    # Loads after taking a prompt of 6 tokens: a 2, 4, 6 ... and b 6, 12 ...; the first wins ties.
    taken = [first_node(policy, prompt(6, index)) for index in range(8)]
    assert taken == [0, 0, 0, 1, 0, 0, 0, 1]


def test_shares_are_proportional_to_the_flow():
    policy, _ = make_policy(TWO, to_host({"a": 7.0, "b": 3.0}), expected_output_tokens=0.0)
    taken = Counter(first_node(policy, prompt(5, index)) for index in range(1000))
    assert taken == {0: 700, 1: 300}


def test_long_prompts_weigh_more():
    policy, _ = make_policy(TWO, to_host({"a": 1.0, "b": 1.0}))
    assert [first_node(policy, prompt(t)) for t in (10, 4, 4, 4, 4)] == [0, 1, 1, 1, 0]


def test_decodes_weigh_one_token_each():
    policy, _ = make_policy(TWO, to_host({"a": 1.0, "b": 1.0}))
    on_a, on_b = prompt(5, 0), prompt(5, 1)
    assert [first_node(policy, on_a), first_node(policy, on_b)] == [0, 1]
    for _ in range(3):
        policy.decodes_dispatched([on_a])
    # a has 8, b has 5.
    assert [first_node(policy, prompt(2)) for _ in range(3)] == [1, 1, 0]


def test_decodes_weigh_on_every_link_of_the_route_that_has_an_alternative():
    layers = {"a": (0, 1), "b": (1, 2), "c": (1, 2)}
    policy, _ = make_policy(layers)
    routes = []
    for index in range(4):
        request = prompt(3, index)
        policy.admit(request)
        routes.append([stage.node for stage in request.route.stages])
        if index == 0:
            for _ in range(6):
                policy.decodes_dispatched([request])
    assert routes == [[0, 1], [0, 2], [0, 2], [0, 2]]


def test_requests_on_the_same_path_share_a_route():
    policy, _ = make_policy(TWO, to_host({"a": 1.0, "b": 1.0}))
    requests = [prompt(5, index) for index in range(4)]
    for request in requests:
        policy.admit(request)
    assert requests[0].route is requests[2].route
    assert requests[0].route is not requests[1].route


def test_a_node_entered_in_its_middle_runs_the_rest_of_its_layers():
    policy, _ = make_policy({"a": (0, 2), "b": (1, 5)})
    request = prompt(5)
    policy.admit(request)
    assert [(s.node, s.start_layer, s.end_layer) for s in request.route.stages] == [
        (0, 0, 2),
        (1, 2, 5),
    ]


# -- masks


def test_a_small_share_of_the_flow_is_not_used():
    flows = to_host({"a": 96.0, "b": 4.0})
    policy, _ = make_policy(TWO, flows)
    assert {first_node(policy, prompt(5)) for _ in range(200)} == {0}
    policy, _ = make_policy(TWO, flows, min_flow_share=0.04)
    assert Counter(first_node(policy, prompt(5)) for _ in range(200)) == {0: 192, 1: 8}


def test_a_share_at_the_mark_is_used():
    policy, _ = make_policy(TWO, to_host({"a": 95.0, "b": 5.0}))
    assert {first_node(policy, prompt(5)) for _ in range(100)} == {0, 1}


def test_a_link_without_flow_is_not_used_even_with_no_least_share():
    policy, _ = make_policy(TWO, to_host({"a": 1.0, "b": 0.0}), min_flow_share=0.0)
    assert {first_node(policy, prompt(5)) for _ in range(20)} == {0}


def test_long_prompts_go_where_they_fit():
    policy, _ = make_policy(
        TWO, to_host({"a": 10.0, "b": 1.0}), rooms={"a": capacity(max_prompt_tokens=9)}
    )
    assert first_node(policy, prompt(9)) == 0
    assert first_node(policy, prompt(10)) == 1


def test_full_kv_caches_are_passed_over():
    # 20 tokens expected of a prompt of 16; a may hold 85 % of 50.
    policy, _ = make_policy(
        TWO, to_host({"a": 10.0, "b": 1.0}), rooms={"a": capacity(kv_token_layers=50)}
    )
    held = [prompt(16, index) for index in range(4)]
    assert [first_node(policy, request) for request in held] == [0, 0, 1, 1]
    policy.finished(held[0])
    assert first_node(policy, prompt(16, 4)) == 0


# -- rejection


@pytest.mark.parametrize(
    ("rooms", "tokens", "reason"),
    [
        ({"a": {"max_prompt_tokens": 9}, "b": {"max_prompt_tokens": 9}}, 10, Rejection.LENGTH),
        ({"a": {"kv_token_layers": 10}, "b": {"kv_token_layers": 10}}, 10, Rejection.KV),
        # One too small for the prompt, the other full: room may come.
        ({"a": {"max_prompt_tokens": 9}, "b": {"kv_token_layers": 10}}, 10, Rejection.KV),
    ],
)
def test_reasons_of_rejection(rooms, tokens, reason):
    policy, _ = make_policy(TWO, rooms={name: capacity(**limits) for name, limits in rooms.items()})
    assert policy.admit(prompt(tokens)) is reason


def test_no_flow_on_the_way_is_a_reason_of_its_own():
    layers = {"a": (0, 1), "b": (1, 2), "c": (1, 2)}
    flows = {("a", "b"): 0.0, ("a", "c"): 0.0}
    policy, _ = make_policy(layers, flows)
    assert policy.admit(prompt(5)) is Rejection.FLOW


def test_a_rejection_leaves_no_trace():
    """The same choices follow whether or not a request was rejected at the second stage."""
    layers = {"a": (0, 1), "b": (0, 1), "c": (1, 2)}
    rooms = {"c": capacity(max_prompt_tokens=100)}

    def choices(*, with_rejections):
        policy, _ = make_policy(layers, rooms=rooms, flows={(HOST, "a"): 2.0, (HOST, "b"): 1.0})
        chosen = []
        for index in range(12):
            if with_rejections and index % 3 == 1:
                rejected = prompt(128)  # exact in binary: adding and taking away leaves nothing
                assert policy.admit(rejected) is Rejection.LENGTH
                assert rejected.route is None
            chosen.append(first_node(policy, prompt(4, index)))
        assert policy.expected_tokens(2) == 12 * 8
        return chosen

    assert choices(with_rejections=True) == choices(with_rejections=False)


def test_no_flow_at_all_is_an_error():
    with pytest.raises(NoRouteError, match="maximum flow is zero"):
        make_policy(TWO, to_host({"a": 0.0, "b": 0.0}))


# -- bandwidths


def test_bandwidth_is_the_least_of_link_and_shares_of_interfaces():
    layers = {"a": (0, 1), "b": (0, 1)}
    flows = to_host({"a": 3.0, "b": 1.0})
    policy, topology = make_policy(
        layers, flows, nics={HOST: 1000.0, "a": 500.0, "b": 900.0}, link=(600.7, 0.0)
    )
    bandwidth = {
        (topology.name(link.source), topology.name(link.target)): policy.link_bandwidth(link)
        for link in topology.links
    }
    assert bandwidth == {
        (HOST, "a"): 500,  # a's interface; the link would take 600, the coordinator 750
        (HOST, "b"): 250,  # a quarter of the coordinator's
        ("a", HOST): 500,
        ("b", HOST): 250,
    }


def test_bandwidth_is_a_whole_number_and_none_without_flow():
    policy, topology = make_policy(TWO, to_host({"a": 1.0, "b": 0.0}), link=(600.7, 0.0))
    assert [policy.link_bandwidth(link) for link in topology.links] == [600, 0, 600, 0]

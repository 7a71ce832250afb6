"""Adaptive routing: turns of the flow, changed by queues and by objectives."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from builders import make_inputs, make_scenario

from helixsim.control.routing.adaptive import AdaptivePolicy
from helixsim.control.routing.maxflow import MaxFlowPolicy
from helixsim.requests import Request

LAYERS = {"quick": (0, 2), "slow": (0, 2)}


@dataclass
class Seen:
    """A node as the view shows it."""

    waiting_tokens: int = 0
    step_s: float = 0.1
    queue_length: int = 0
    num_running: int = 0
    free_kv_tokens: int = 10**6


def made(kind=AdaptivePolicy, seen=None, **limits):
    inputs = make_inputs(
        make_scenario(LAYERS, requests=[(0, 1, 1)]),
        {("coordinator", name): 1000.0 for name in LAYERS},
        **limits,
    )
    inputs.view.nodes = seen or [Seen(), Seen()]
    return kind(inputs)


def routed(policy, number):
    """To which node each of the next requests goes, and the requests."""
    requests = [Request(index, 0.0, 100, 5, 5) for index in range(number)]
    for request in requests:
        assert policy.admit(request) is None
    return [request.route.stages[0].node for request in requests], requests


def test_without_queues_and_objectives_it_is_the_flow():
    assert routed(made(), 20)[0] == routed(made(MaxFlowPolicy), 20)[0]


def test_a_queue_is_passed_by_within_bounds():
    seen = [Seen(waiting_tokens=50), Seen()]
    nodes, _ = routed(made(seen=seen), 40)
    # 100 tokens are a tenth of a second of a flow of 1,000: a second ahead are ten requests.
    assert nodes[:9] == [1] * 9
    assert nodes.count(0) >= 12


def finish(policy, request, first_token_s, token_s):
    request.first_dispatch_s = 0.0
    request.first_token_s = first_token_s
    request.num_output_tokens = 5
    request.dispatched_s = first_token_s + 4 * token_s
    policy.finished(request)


@pytest.mark.parametrize("limits", [{"tpot_limit_s": 0.1}, {"ttft_limit_s": 1.0}])
def test_a_node_that_misses_the_objective_is_passed_over_but_tried_now_and_then(limits):
    policy = made(**limits)
    nodes, requests = routed(policy, 6)
    assert nodes.count(1) == 3  # of which three times a twentieth is more than a tenth
    for node, request in zip(nodes, requests, strict=True):
        finish(policy, request, *((0.5, 0.05) if node == 0 else (2.0, 0.3)))
    later, _ = routed(policy, 100)
    assert later.count(1) == 2


def test_where_no_node_keeps_the_objective_the_flow_decides():
    policy = made(tpot_limit_s=0.1)
    for request in routed(policy, 6)[1]:
        finish(policy, request, 0.5, 0.3)
    assert routed(policy, 20)[0].count(0) == 10


def test_a_few_slow_requests_are_no_reason_to_pass_a_node_over():
    policy = made(tpot_limit_s=0.1)
    nodes, requests = routed(policy, 80)
    last = [number for number, node in enumerate(nodes) if node == 1][::20]
    for number, request in enumerate(requests):
        finish(policy, request, 0.5, 0.3 if number in last else 0.05)  # one of twenty at node 1
    assert routed(policy, 20)[0].count(1) == 10

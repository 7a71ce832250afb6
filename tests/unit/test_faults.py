"""Nodes that fail and recover in whole runs, and what the models do about it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from builders import (
    HOST,
    capacity,
    counts,
    decode,
    iterations,
    make_inputs,
    make_scenario,
    make_topology,
    prompt,
)

from helixsim.control.control_plane import flow_without, followed_flow
from helixsim.control.node_schedulers.paper import BatchQueue
from helixsim.control.routing.maxflow import MaxFlowPolicy
from helixsim.control.routing.policy import Rejection
from helixsim.control.routing.swarm import SwarmPolicy
from helixsim.models.links import DeliveryQueue, SerialLink
from helixsim.models.simulation import simulate
from helixsim.placement.flow import Flow
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Stage
from helixsim.scenario.resolved import Fault, Faults
from helixsim.steps import Batch

pytestmark = pytest.mark.usefixtures("checked_runs")

ROOT = Path(__file__).parents[2]
TWO = {"a": (0, 1), "b": (0, 1)}


def scenario_of(layers, *events, detection_s=1.0, chunk=None, waiting=0, **settings):
    """A token takes 0.125 s on a link after 0.125 s of latency, and a second on a layer."""
    settings = {"link": (16.0, 0.125), "activation_bytes": 0.0, "drain": True} | settings
    scenario = make_scenario(layers, **settings)
    return replace(
        scenario,
        scheduler=replace(scenario.scheduler, prefill_chunk_tokens=chunk, max_waiting=waiting),
        faults=Faults(detection_s=detection_s, events=events),
    )


def run(*arguments, **settings):
    result = simulate(scenario_of(*arguments, **settings), record_iterations=True)
    return iterations(result), result


def requests_of(result):
    columns = result.tables["requests"].as_dict()
    names = ("status", "route", "restarts", "decode_tokens")
    return list(zip(*(columns[name] for name in names), strict=True))


# -- whole runs


def test_a_prefill_goes_chunk_by_chunk():
    log, _ = run({"a": (0, 1)}, requests=[(0, 3, 1)], chunk=2)
    # 2 tokens: 0.375 s, 2 s, 0.375 s; then 1 token: 0.25 s, 1 s, 0.25 s.
    assert log == [(0, 0, 2.0, 6.25), (0, 1, 6.25, 8.75)]


def test_a_request_goes_on_elsewhere():
    log, result = run(TWO, Fault("a", 5.0), requests=[(0, 3, 2)])
    # The node fails at 7 s, in the first decode. At 8 s, prompt and token, 4 in all, go to the
    # other: 0.625 s, 4 s, 0.625 s.
    assert log == [(0, 0, 2.0, 6.0), (0, 1, 6.0, 13.25), (0, 2, 13.25, 15.75)]
    assert requests_of(result) == [("completed", "b[0:1]", 1, 2)]
    assert result.summary["requests"] == counts(arrived=1, completed=1, restarted=1)


def test_a_prefill_that_is_lost_begins_anew():
    log, _ = run(TWO, Fault("a", 1.0), requests=[(0, 3, 1)])
    assert log == [(0, 0, 2.0, 8.0), (0, 1, 8.0, 10.5)]  # sent at 2 s, and at 4 s again


def test_it_fails_where_there_is_no_other_node():
    log, result = run(
        {"a": (0, 1)}, Fault("a", 5.0, 4.0), requests=[(0, 3, 2), (7, 3, 2), (20, 3, 1)]
    )
    assert log == [(0, 0, 2.0, 6.0), (2, 0, 22.0, 26.0), (2, 1, 26.0, 28.5)]
    assert requests_of(result) == [
        ("failed: a was lost", None, 0, 0),
        ("rejected: nodes", None, 0, 0),
        ("completed", "a[0:1]", 0, 1),
    ]
    assert result.summary["rejected_for"]["nodes"] == 1


def test_what_is_sent_before_the_failure_is_noticed_is_lost():
    log, _ = run(
        {"a": (0, 1)},
        Fault("a", 1.0, 2.0),
        detection_s=10.0,
        requests=[(0, 1, 1), (1.5, 1, 1), (5, 3, 1)],
    )
    # At 5 s it is back, and owns up; there was no other node, so both fail.
    assert log == [(2, 0, 7.0, 11.0), (2, 1, 11.0, 13.5)]


def test_requests_wait_their_turn():
    room = capacity(kv_token_layers=10)  # for one of 3 + 4 tokens
    settings = {"requests": [(0, 3, 1), (1, 3, 1), (2, 3, 1)], "room": room}
    log, _ = run({"a": (0, 1)}, waiting=2, **settings)
    assert log == [
        (0, 0, 2.0, 6.0),
        (0, 1, 6.0, 8.5),
        (1, 0, 8.5, 12.5),
        (1, 1, 12.5, 15.0),
        (2, 0, 15.0, 19.0),
        (2, 1, 19.0, 21.5),
    ]
    _, result = run({"a": (0, 1)}, waiting=1, **settings)
    assert result.summary["requests"] == counts(arrived=3, completed=2, rejected=1)
    _, result = run({"a": (0, 1)}, waiting=2, **settings, drain=False, duration_s=4.0)
    assert result.summary["requests"] == counts(arrived=3, in_flight=1, waiting=2)
    assert [status for status, *_ in requests_of(result)] == ["in flight", "waiting", "waiting"]


@pytest.mark.parametrize("policy", ["maxflow", "shortest_queue"])
def test_runs_with_faults_do_not_depend_on_the_hash_seed(policy):
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from builders import make_scenario, offline, iterations\n"
        "from dataclasses import replace\n"
        "from helixsim.scenario.resolved import Fault, Faults\n"
        "from helixsim.models.simulation import simulate\n"
        "layers = {'a': (0, 2), 'b': (0, 2), 'c': (2, 4), 'd': (2, 4)}\n"
        "scenario = make_scenario(layers, workload=offline([(9, 5), (4, 7)]), "
        f"policy='{policy}', duration_s=60.0)\n"
        "faults = Faults(detection_s=1.0, events=(Fault('a', 9.0, 9.0), Fault('d', 30.0)))\n"
        "result = simulate(replace(scenario, faults=faults), record_iterations=True)\n"
        "print(result.summary, iterations(result))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1


# -- models


def test_a_transfer_without_some_of_its_requests():
    inbox = DeliveryQueue()
    inbox.announce = lambda transfer: None
    numbers = count()
    link = SerialLink(PlacedLink(0, 0, 1, 8.0, 0.5, 0, 2.0), 8.0, inbox, lambda: next(numbers))
    link.send(Batch.of([prompt(4, 0), decode(9, 1), decode(9, 2)]), 0.0)
    link.send(Batch.of([decode(9, 3)]), 2.0)
    before = [transfer.deliveries() for transfer in inbox.transfers]
    inbox.drop_unless(lambda request: request.index in (1, 2))
    (transfer,) = inbox.transfers
    assert transfer.deliveries() == [
        (*delivery[:4], place, delivery[5]) for place, delivery in enumerate(before[0][1:])
    ]
    assert (transfer.num_prompts, transfer.prompt_tokens, transfer.num_tokens) == (0, 0, 2)
    assert transfer.last_arrival_s == before[0][-1][0]


def test_a_link_counts_its_time_at_each_bandwidth():
    inbox = DeliveryQueue()
    inbox.announce = lambda transfer: None
    link = SerialLink(PlacedLink(0, 0, 1, 8.0, 0.5, 0, 2.0), 8.0, inbox, lambda: 0)
    link.send(Batch.of([prompt(4)]), 0.0)  # a second
    link.use_bandwidth(4.0)
    assert [link.busy_s(at) for at in (0.5, 1.0, 5.0)] == [0.5, 1.0, 1.0]
    link.send(Batch.of([prompt(4)]), 5.0)  # two seconds
    assert [link.busy_s(at) for at in (5.0, 6.0, 7.0, 9.0)] == [1.0, 2.0, 3.0, 3.0]


def test_a_queue_without_some_of_its_requests():
    queue = BatchQueue(capacity())
    queue.drop_unless(lambda request: True)
    queue.add(Batch.of([prompt(4, 0), decode(9, 1), prompt(5, 2)]))
    queue.drop_unless(lambda request: request.index != 0)
    assert [request.index for request in queue.waiting.requests] == [1, 2]
    assert (queue.waiting.num_prompts, queue.waiting.prompt_tokens) == (1, 5)
    queue.drop_unless(lambda request: False)
    assert queue.waiting is None


def test_a_chunk_counts_by_its_tokens_and_not_as_a_decode():
    chunk = prompt(10)
    chunk.split_prefill(4)
    chunk.next_chunk()
    chunk.next_chunk()
    assert Batch.of([chunk, decode(9, 1)]).prompt_tokens == 2
    queue = BatchQueue(capacity(max_decode_context=9))
    queue.add(Batch.of([chunk, decode(9, 1)]))
    assert len(queue.take(100).requests) == 2
    assert queue.waiting is None


# -- flows and policies


def test_the_flow_without_a_node_keeps_the_numbers_of_links():
    scenario = scenario_of({**TWO, "c": (1, 2)}, requests=[(0, 1, 1)])
    topology = make_topology(scenario)
    flow = flow_without(scenario, topology, frozenset({0}))
    ends = {
        (topology.name(link.source), topology.name(link.target)): rate
        for link, rate in zip(topology.links, flow.link_tokens_per_s, strict=True)
    }
    assert ends["a", "c"] == ends[HOST, "a"] == 0
    assert ends["b", "c"] == ends[HOST, "b"] == ends["c", HOST] == flow.tokens_per_s > 0
    assert flow.tokens_per_s <= followed_flow(scenario, topology).tokens_per_s
    assert flow_without(scenario, topology, frozenset({2})) is None
    assert flow_without(scenario, topology, frozenset({0, 1})) is None


def test_max_flow_follows_another_flow():
    inputs = make_inputs(scenario_of(TWO, requests=[(0, 1, 1)]))
    policy, topology = MaxFlowPolicy(inputs), inputs.topology
    first = prompt(5)
    policy.admit(first)
    assert first.route.stages[0].node == 0
    policy.decodes_dispatched([first])
    bandwidths = [policy.link_bandwidth(link) for link in topology.links]
    only_b = tuple(float(1 in (link.source, link.target)) for link in topology.links)
    policy.reroute(Flow(1.0, only_b, (1.0, 1.0)), frozenset({0}))
    policy.decodes_dispatched([first])  # it is still on its way over a link without a flow
    for index in range(3):
        request = prompt(5, index)
        policy.admit(request)
        assert request.route.stages[0].node == 1
        assert not policy.is_stranded(request)
    assert [policy.link_bandwidth(link) for link in topology.links] == bandwidths
    policy.finished(first)
    assert policy.expected_tokens(0) == 0
    policy.reroute(inputs.flow, frozenset())
    again = prompt(5)
    policy.admit(again)
    assert again.route.stages[0].node == 0  # loads start from nothing


def test_a_small_share_is_used_where_it_is_all_there_is():
    inputs = make_inputs(scenario_of(TWO, requests=[(0, 1, 1)]), min_flow_share=0.4)
    policy = MaxFlowPolicy(inputs)
    layers = dict.fromkeys("abc", (0, 1))
    inputs = make_inputs(scenario_of(layers, requests=[(0, 1, 1)]), min_flow_share=0.2)
    policy = MaxFlowPolicy(inputs)
    policy._min_share = 0.5
    policy.reroute(inputs.flow, frozenset())
    assert policy.admit(prompt(5)) is None


def test_hop_by_hop_policies_avoid_what_is_down_and_what_leads_only_there():
    layers = {"a": (0, 1), "b": (0, 1), "c": (1, 2), "d": (1, 2)}
    links = dict.fromkeys([(HOST, "a"), (HOST, "b"), ("a", "c"), ("b", "d")], (1000000000.0, 0.0))
    links |= {("c", HOST): (1e9, 0.0), ("d", HOST): (1e9, 0.0)}
    inputs = make_inputs(scenario_of(layers, requests=[(0, 1, 1)], links=links))
    policy, home = SwarmPolicy(inputs), inputs.topology.coordinator
    at_home, at_a = prompt(5, 0), prompt(5, 1)
    for request in (at_home, at_a):
        policy.admit(request)
    at_a.route.stages.append(Stage(0, 0, 1))
    policy.reroute(inputs.flow, frozenset({2}))
    assert (policy.is_stranded(at_home), policy.is_stranded(at_a)) == (False, True)
    assert {policy.choose(home, prompt(5)).target for _ in range(5)} == {1}
    policy.reroute(inputs.flow, frozenset({2, 3}))
    assert policy.admit(prompt(5)) is Rejection.NODES
    policy.reroute(inputs.flow, frozenset())
    assert not policy.is_stranded(at_a)


def test_a_long_prompt_in_short_chunks_is_admitted():
    layers = {"a": (0, 1)}
    inputs = make_inputs(
        scenario_of(layers, requests=[(0, 1, 1)], room=capacity(max_prompt_tokens=10))
    )
    for policy_type in (MaxFlowPolicy, SwarmPolicy):
        request = prompt(25)
        assert policy_type(inputs).admit(request) is Rejection.LENGTH
        request.split_prefill(10)
        assert policy_type(inputs).admit(request) is None

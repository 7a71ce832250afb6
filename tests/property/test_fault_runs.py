"""What holds for any run in which nodes fail, requests wait, and prefills go in chunks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
from builders import capacity, iterations, make_scenario, offline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_scenarios import POLICIES, troubled

from helixsim.control.kv_cache import held_token_layers
from helixsim.control.node_schedulers import NODE_SCHEDULERS
from helixsim.models.simulation import Simulation, Watcher, simulate
from helixsim.profiles.machine import LatencyProfile
from helixsim.scenario.resolved import Fault, Faults

SETTINGS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def rows(result):
    columns = result.tables["requests"].as_dict()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@SETTINGS
@given(troubled())
def test_no_request_is_lost(scenario):
    simulation = Simulation(scenario, record_iterations=True)
    result = simulation.run()
    counts = dict(result.summary["requests"])
    arrived, restarted = counts.pop("arrived"), counts.pop("restarted")
    assert arrived == sum(counts.values())
    passes = defaultdict(list)
    for request, number, start, end in iterations(result):
        passes[request].append((number, start, end))
    by_status = defaultdict(int)
    numbers = []
    for row in rows(result):
        numbers.append(row["request"])
        by_status[row["status"].split(":")[0].replace(" ", "_")] += 1
        own = passes.pop(row["request"], [])
        assert [number for number, _, _ in own] == list(range(len(own)))
        assert all(start < end for _, start, end in own)
        assert all(before[2] == after[1] for before, after in pairwise(own))
        assert row["decode_tokens"] == max(len(own) - 1, 0)
        if row["status"] == "completed":
            assert len(own) == 1 + row["output_tokens"]
    assert passes == {}
    assert numbers == sorted(set(numbers))
    assert dict(by_status) == {name: count for name, count in counts.items() if count}
    assert restarted == sum(row["restarts"] for row in rows(result))
    if not scenario.faults.events:
        assert (counts["failed"], restarted) == (0, 0)


@SETTINGS
@given(troubled(drain=True))
def test_a_drained_cluster_is_empty(scenario):
    simulation = Simulation(scenario)
    counts = simulation.run().summary["requests"]
    assert counts["in_flight"] == counts["waiting"] == 0
    assert not simulation.coordinator.waiting
    assert all(node.num_waiting == node.num_running == 0 for node in simulation.nodes)
    expected = {simulation.policy.expected_tokens(node.index) for node in simulation.topology.nodes}
    assert expected == ({0} if scenario.scheduler.policy == "maxflow" else {None})


@SETTINGS
@given(troubled(drain=True), st.sampled_from(NODE_SCHEDULERS.shipped_names()))
def test_a_drained_cluster_of_engines_holds_no_kv_blocks(scenario, node_scheduler):
    scheduler = replace(scenario.scheduler, node=node_scheduler)
    # One byte of weights, as the toy LLM has, would make attention to earlier chunks take days.
    llm = replace(scenario.llm, layer_bytes=1000 * scenario.llm.activation_bytes_per_token)
    changed = replace(scenario, llm=llm, physics="calibrated", scheduler=scheduler)
    simulation = Simulation(changed)
    counts = simulation.run().summary["requests"]
    assert counts["in_flight"] == counts["waiting"] == 0
    for node in simulation.nodes:
        assert node.num_waiting == node.num_running == 0
        kv = node.scheduler.kv
        assert (kv is None) == (node_scheduler == "paper")
        if kv is not None:
            assert (kv.num_free, list(kv.latest())) == (kv.num_blocks, [])


@SETTINGS
@given(troubled(), st.booleans())
def test_what_is_served_is_always_accounted_for(scenario, often):
    """Gauges stay within bounds while it goes on, and looking changes nothing."""
    nodes = Simulation(scenario).topology.nodes
    looks = []

    def look(running):
        coordinator = running.coordinator
        used = held_token_layers(coordinator.active, len(nodes))
        looks.append(all(held >= 0 for held in used))
        assert coordinator.active or not coordinator.waiting
        for request in coordinator.active:
            assert all(stage.node not in coordinator.down for stage in request.route.stages)
            assert request.num_computed_tokens + request.num_new_tokens <= request.longest_context
        for node in running.nodes:
            assert node.busy_s(running.now) >= 0
            assert node.free_kv_tokens >= 0

    watchers = (Watcher(0.07 if often else 0.3, look),)
    watched = simulate(scenario, record_iterations=True, watchers=watchers)
    assert iterations(watched) == iterations(simulate(scenario, record_iterations=True))


# -- what comes of it, on placements where it can be told

TWO_WAYS = {"a": (0, 2), "b": (0, 2), "c": (2, 4), "d": (2, 4)}
ONE_WAY = {"a": (0, 2), "c": (2, 4)}


def steady(layers, policy, faults, detection_s=1.0, **settings):
    scenario = make_scenario(
        layers,
        workload=offline([(20, 30)], initial_requests=6),
        duration_s=60.0,
        policy=policy,
        prefill=curve(),
        decode=curve(),
        room=capacity(kv_token_layers=800),
        sample_interval_s=5.0,
        **settings,
    )
    return replace(scenario, faults=Faults(detection_s=detection_s, events=tuple(faults)))


def curve():
    return LatencyProfile((0, 10_000), (0.0, 10.0))


@pytest.mark.parametrize("policy", POLICIES)
def test_where_there_is_another_way_all_requests_are_served(policy):
    result = simulate(steady(TWO_WAYS, policy, [Fault("a", 10.0)], drain=True))
    counts = result.summary["requests"]
    assert counts["completed"] > 100
    # No request is rejected but by expectation, which is as it is without faults.
    assert counts["completed"] + result.summary["rejected_for"]["kv"] == counts["arrived"]
    assert counts["restarted"] > 0
    late = [row for row in rows(result) if row["dispatch_s"] > 13.1]
    assert late
    assert not any(row["route"].startswith("a[") for row in late)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_another_way_requests_fail_and_new_ones_come_when_it_is_back(policy):
    result = simulate(steady(ONE_WAY, policy, [Fault("c", 10.0, 10.0)]))
    counts = result.summary["requests"]
    assert counts["failed"] >= 6
    assert {row["status"] for row in rows(result) if row["status"].startswith("failed")} == {
        "failed: c was lost"
    }
    assert result.summary["rejected_for"]["nodes"] > 0
    timeline = result.timeline.set_index("time_s").decode_tokens_per_s
    before, after = timeline.loc[:12].mean(), timeline.loc[27:].mean()
    during = timeline.loc[15:21].mean()
    assert during < 0.1 * before
    assert after > 0.6 * before  # now out of step, at first all in step


@pytest.mark.parametrize("policy", POLICIES)
def test_throughput_returns_with_the_node(policy):
    result = simulate(steady(TWO_WAYS, policy, [Fault("a", 20.0, 15.0)]))
    assert result.summary["requests"]["failed"] == 0
    routes = [row["route"] for row in rows(result) if row["dispatch_s"] > 45]
    assert any(route.startswith("a[") for route in routes)
    timeline = result.timeline.set_index("time_s").decode_tokens_per_s
    assert timeline.loc[45:].mean() == pytest.approx(timeline.loc[:20].mean(), rel=0.2)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_node_that_is_back_before_its_failure_is_noticed_has_forgotten_all(policy):
    result = simulate(steady(TWO_WAYS, policy, [Fault("a", 20.0, 0.5)], detection_s=5.0))
    counts = result.summary["requests"]
    assert counts["restarted"] > 0
    assert counts["failed"] == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_chunks_make_room_for_long_prompts(policy):
    scenario = make_scenario(
        TWO_WAYS,
        requests=[(0.1 * n, 100, 4) for n in range(10)],
        policy=policy,
        prefill=curve(),
        decode=curve(),
        room=capacity(max_prompt_tokens=30),
        drain=True,
    )
    assert simulate(scenario).summary["rejected_for"]["length"] == 10
    chunked = replace(scenario, scheduler=replace(scenario.scheduler, prefill_chunk_tokens=30))
    assert simulate(chunked).summary["requests"]["completed"] == 10

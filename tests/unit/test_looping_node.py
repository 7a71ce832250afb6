"""Nodes whose decodes loop: times by hand, and steps that repeat against steps one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import capacity, iterations, make_scenario
from hypothesis import HealthCheck, given, settings
from toy_scenarios import troubled

from helixsim.models.looping_node import LoopingNode
from helixsim.models.simulation import Simulation, simulate
from helixsim.physics.engine import EngineCosts
from helixsim.profiles.machine import LatencyProfile

SETTINGS = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
FLAT = LatencyProfile((0, 1, 100), (0.0, 1.0, 1.0))
"""A layer takes a second, whatever runs."""


def today(layers, requests, *, engine=None, **changes):
    """Links without latency that take no time to speak of."""
    changes = {"link": (1e12, 0.0), "prefill": FLAT, "decode": FLAT, "drain": True} | changes
    changes.setdefault("room", capacity(kv_token_layers=10**6))
    scenario = make_scenario(layers, requests=requests, **changes)
    return replace(scenario, physics="calibrated", engine=engine or EngineCosts())


def rows(scenario):
    return simulate(scenario).requests.set_index("request")


def test_one_request_by_hand():
    """A layer of 1 s: the prompt's step from 2 to 3 s, then two decodes of a second each."""
    row = rows(today({"a": (0, 1)}, [(0, 10, 3)])).loc[0]
    assert row.first_token_s == pytest.approx(3.0)
    assert row.end_s == pytest.approx(5.0)
    assert row.tpot_s == pytest.approx(1.0)


def test_two_requests_share_each_step():
    """Both would take turns if they went back to the coordinator: then a token takes 2 s."""
    engine = EngineCosts(async_scheduling=False)
    frame = rows(today({"a": (0, 1)}, [(0, 10, 9), (0.5, 10, 9)], engine=engine))
    assert list(frame.tpot_s) == pytest.approx([1.0, 1.0])
    # The first runs from 2 s to 11 s, the second from 3 s to 12 s.
    assert list(frame.end_s) == pytest.approx([11.0, 12.0])


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_as_many_groups_as_stages(num_stages):
    """16 equal requests, a flat decode curve, no latency: a token takes all stages, no more."""
    each = 8 // num_stages
    layers = {f"n{s}": (s * each, (s + 1) * each) for s in range(num_stages)}
    requests = [(0.3 * n, 10, 60) for n in range(16)]
    frame = rows(today(layers, requests, link=(1e9, 0.0)))
    assert list(frame.tpot_s[4:]) == pytest.approx([8.0] * 12, rel=0.02)


def test_tokens_reach_the_coordinator_a_latency_later_and_nothing_waits_for_them():
    frame = rows(today({"a": (0, 1)}, [(0, 10, 5)], link=(1e12, 30.0)))
    row = frame.loc[0]
    # There at 32 s; a token each second from 33 s on, here 30 s later.
    assert row.first_token_s == pytest.approx(63.0)
    assert row.end_s == pytest.approx(67.0)


def test_the_way_back_is_one_hop():
    """Two stages of a second; from the last node straight to the first one."""
    links = {("coordinator", "a"): (1e12, 50.0), ("a", "b"): (1e12, 1.0)}
    links |= {("b", "coordinator"): (1e12, 50.0), ("b", "a"): (1e12, 2.0)}
    scenario = today({"a": (0, 1), "b": (1, 2)}, [(0, 10, 6)], links=links)
    assert scenario.placement is not None
    scenario = replace(
        scenario,
        placement=replace(
            scenario.placement,
            links=(("coordinator", "a"), ("a", "b"), ("b", "coordinator")),
        ),
    )
    row = rows(scenario).loc[0]
    assert row.tpot_s == pytest.approx(1.0 + 1.0 + 1.0 + 2.0)
    # Without a link of the network from b to a it is the way over the coordinator.
    del links["b", "a"]
    scenario = today({"a": (0, 1), "b": (1, 2)}, [(0, 10, 6)], links=links)
    assert rows(scenario).loc[0].tpot_s == pytest.approx(1.0 + 1.0 + 1.0 + 100.0)


def test_host_time_hides_behind_the_gpu_unless_the_step_is_short():
    def tpot(**engine):
        scenario = today({"a": (0, 1)}, [(0, 10, 5)], engine=EngineCosts(**engine))
        return rows(scenario).loc[0].tpot_s

    assert tpot(step_host_s=0.5) == pytest.approx(1.0)
    assert tpot(step_host_s=3.0) == pytest.approx(3.0)
    assert tpot(step_host_s=0.5, async_scheduling=False) == pytest.approx(1.5)


def test_a_request_that_can_never_fit_is_refused_at_once_under_every_policy():
    for policy in ("maxflow", "swarm", "random", "shortest_queue", "least_kv"):
        scenario = today(
            {"a": (0, 1)},
            [(0, 600, 5), (0, 10, 2)],
            room=capacity(kv_token_layers=500, max_prompt_tokens=10**6),
            policy=policy,
        )
        assert list(rows(scenario).status) == ["rejected: length", "completed"]


def tables(scenario):
    result = simulate(scenario, record_iterations=True)
    return {name: table.as_dict() for name, table in result.tables.items()}, iterations(result)


@SETTINGS
@given(troubled())
def test_steps_that_repeat_are_summed_to_the_last_bit(monkeypatch, scenario):
    scenario = replace(
        scenario,
        physics="calibrated",
        scheduler=replace(scenario.scheduler, node="vllm"),
        engine=EngineCosts(max_num_seqs=4, max_num_batched_tokens=40),
    )
    with monkeypatch.context() as patch:
        patch.setattr(LoopingNode, "repeats", False)
        one_by_one = tables(scenario)
    assert repr(tables(scenario)) == repr(one_by_one)


@SETTINGS
@given(troubled(drain=True))
def test_progress_in_bounded_restarts(scenario):
    """With any KV size: every request ends, and requests are not preempted without end."""
    scenario = replace(
        scenario,
        physics="calibrated",
        faults=replace(scenario.faults, events=()),
        scheduler=replace(scenario.scheduler, node="vllm"),
    )
    simulation = Simulation(scenario)
    result = simulation.run()
    requests = result.requests
    num = len(requests)
    completed = requests[requests.status == "completed"]
    assert len(completed) + requests.status.str.startswith("rejected").sum() == num
    tokens = int((completed.prompt_tokens + completed.output_tokens).sum())
    # A request is preempted for a block of another, and each block is filled once a residence.
    assert int(requests.preemptions.sum()) <= tokens
    for node in simulation.nodes:
        kv = node.scheduler.kv
        assert kv is not None
        assert kv.num_free == kv.num_blocks

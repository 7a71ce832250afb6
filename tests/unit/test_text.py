"""Text for people."""

from __future__ import annotations

import pytest
from builders import capacity, make_scenario, offline

from helixsim.metrics.summary_text import status_text, summary_text
from helixsim.models.simulation import Simulation, simulate

LAYERS = {"a": (0, 1), "b": (1, 2)}


def test_the_summary_of_a_run_without_requests():
    scenario = make_scenario(LAYERS, requests=[(90.0, 1, 1)], duration_s=8.0, warmup_s=1.0)
    result = simulate(scenario)
    flow = result.summary["max_flow_tokens_per_s"]
    compute = result.summary["max_compute_tokens_per_s"]
    assert summary_text(result.summary).splitlines() == [
        "toy (maxflow, paper physics, seed 0), measured from 3 s to 10 s",
        "",
        "decode throughput         0.0 tokens/s",
        "total throughput          0.0 tokens/s, prompts included",
        f"  max flow         {flow:10.1f} tokens/s, at typical batches",
        f"  max compute      {compute:10.1f} tokens/s, estimated",
        "",
        "                             mean       p5      p25      p50      p75      p95      p99",
        "prompt latency         s        -        -        -        -        -        -        -",
        "decode latency         s        -        -        -        -        -        -        -",
        "time to first token    s        -        -        -        -        -        -        -",
        "time per output token  s        -        -        -        -        -        -        -",
        "end to end             s        -        -        -        -        -        -        -",
        "",
        "requests: 0 arrived, 0 completed, 0 in flight, 0 rejected",
        "warning: no request of the trace arrives in the run of 8 s: the first is at 90 s",
    ]


def test_figures_have_three_decimals():
    scenario = make_scenario(
        {"a": (0, 1)}, requests=[(0, 3, 2)], link=(16.0, 0.125), activation_bytes=0.0
    )
    lines = summary_text(simulate(scenario).summary).splitlines()
    # See test_coordinator_node.test_one_request_alone.
    assert lines[8] == "prompt latency         s" + "    4.000" * 7
    assert lines[9] == "decode latency         s" + "    2.500" * 7
    assert lines[12] == "end to end             s" + "    9.000" * 7


def test_reasons_and_overflows_are_told():
    scenario = make_scenario(
        LAYERS,
        requests=[(0.0, 3, 300), (1.0, 20_000, 1), (2.0, 20, 1), (3.0, 25, 1)],
        room=capacity(kv_token_layers=30),
        duration_s=400.0,
    )
    *lines, coverage = summary_text(simulate(scenario).summary).splitlines()
    assert "arrive from 0 to 3 s" in coverage
    assert lines[-3].endswith(
        "3 rejected (1 longer than a batch or a KV cache allows, 2 KV caches expected to be full)"
    )
    assert lines[-2].startswith("warning: in ")
    assert "held more than its KV cache" in lines[-2]
    # 85 percent of 30.
    assert lines[-1].startswith("warning: no request was completed")
    assert lines[-1].endswith("a has room for 25 tokens on each layer")


def status_after(seconds, policy="maxflow"):
    scenario = make_scenario(
        LAYERS,
        workload=offline([(30, 40)], initial_requests=3, mean_output_tokens=20),
        duration_s=seconds,
        policy=policy,
        room=capacity(kv_token_layers=400),
    )
    simulation = Simulation(scenario)
    simulation.run()
    return status_text(simulation).splitlines()


def test_the_status_of_a_run():
    first, heading, a, b = status_after(1.0)
    # Three prompts of 30 tokens; 50 of each are expected, of 400 a node, that is 400 a layer.
    assert first == (
        "at 1.0 s: 3 requests active, 0 finished, 0 rejected; fullest layer expected at 37.5%"
    )
    assert heading.split() == ["node", "layers", "KV", "used", "expected", "of", "token-layers"]
    assert a.split() == ["a", "0-1", "22.5%", "37.5%", "400"]
    assert b.split() == ["b", "1-2", "22.5%", "37.5%", "400"]


@pytest.mark.parametrize("policy", ["swarm", "random", "shortest_queue"])
def test_the_status_where_nothing_is_expected(policy):
    first, _, a, _ = status_after(1.0, policy)
    assert first == "at 1.0 s: 3 requests active, 0 finished, 0 rejected"
    assert a.split()[3] == "-"

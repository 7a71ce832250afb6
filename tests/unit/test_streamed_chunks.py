"""Streamed chunks, reckoned by hand: one second for a token and layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import make_scenario

from helixsim import load_scenario
from helixsim.control.control_plane import placed_topology, suitable_chunk_tokens
from helixsim.control.node_schedulers.composition import StepLimits
from helixsim.models.simulation import simulate
from helixsim.scenario.resolved import Fault, Faults

pytestmark = pytest.mark.usefixtures("checked_runs")

PIPELINE = {"a": (0, 1), "b": (1, 2)}


def served(layers, requests, *, chunk_tokens=2, streams=True, faults=(), **changes):
    scenario = make_scenario(layers, requests=requests, drain=True, **changes)
    scheduler = replace(
        scenario.scheduler,
        prefill_chunk_tokens=chunk_tokens,
        stream_chunks=streams,
        step=StepLimits(max_prefill_tokens=chunk_tokens),
        max_waiting=10,
    )
    # With these weights, attention to one earlier token takes a tenth of a second.
    llm = replace(scenario.llm, layer_bytes=160.0)
    return simulate(
        replace(
            scenario,
            scheduler=scheduler,
            llm=llm,
            faults=Faults(detection_s=1.0, events=tuple(faults)),
        )
    )


def first_tokens(result):
    return list(result.requests["ttft_s"])


def test_later_chunks_attend_to_earlier_ones():
    # Chunks of two tokens: 2 s; 2 s and 2 x 2 pairs of a tenth; 2 s and 2 x 4 pairs.
    result = served({"a": (0, 1)}, [(0, 6, 1)])
    assert first_tokens(result) == pytest.approx([2 + 2.4 + 2.8], abs=0.01)


def test_stages_work_on_the_chunks_of_one_prompt_at_once():
    # The second stage waits for each chunk: 2 to 4, 4.4 to 6.8, 7.2 to 10.0.
    assert first_tokens(served(PIPELINE, [(0, 6, 1)])) == pytest.approx([10.0], abs=0.01)
    # One chunk at a time: both stages run each chunk, one after the other.
    serial = served(PIPELINE, [(0, 6, 1)], streams=False)
    assert first_tokens(serial) == pytest.approx([2 * (2 + 2.4 + 2.8)], abs=0.02)
    whole = served(PIPELINE, [(0, 6, 1)], chunk_tokens=None, streams=False)
    assert first_tokens(whole) == pytest.approx([12.0], abs=0.01)


def test_chunks_are_of_equal_length():
    # Five tokens in chunks of about two: two chunks, of three and two, with 2 x 3 pairs.
    assert first_tokens(served({"a": (0, 1)}, [(0, 5, 1)])) == pytest.approx([5.6], abs=0.01)


def test_two_prompts_share_a_stage_in_order():
    result = served({"a": (0, 1)}, [(0, 4, 1), (0.5, 4, 1)])
    # 2 + 2.4 s each, and between the chunks of the second the lone decode of the first, of 2 s.
    assert first_tokens(result) == pytest.approx([4.4, 4.4 + 2 + 2 + 2.4 - 0.5], abs=0.01)


def test_a_node_lost_in_the_middle_of_a_stream_restarts_the_prompt():
    layers = {"a": (0, 1), "b": (1, 2), "c": (1, 2)}
    for lost in ("b", "c"):
        result = served(layers, [(0, 6, 2)], faults=[Fault(lost, 3.0, None)])
        assert result.summary["requests"]["completed"] == 1
    assert set(result.requests["restarts"]) <= {0, 1}


@pytest.mark.parametrize("physics", ["paper", "calibrated"])
@pytest.mark.parametrize("policy", ["maxflow", "swarm", "random", "shortest_queue", "least_kv"])
def test_every_policy_keeps_chunks_on_one_route(policy, physics):
    layers = {"a": (0, 1), "b": (0, 1), "c": (1, 2), "d": (1, 2)}
    scenario = make_scenario(
        layers, requests=[(n / 4, 5, 3) for n in range(8)], drain=True, policy=policy
    )
    scheduler = replace(
        scenario.scheduler, prefill_chunk_tokens=2, stream_chunks=True, node="prototype"
    )
    result = simulate(replace(scenario, scheduler=scheduler, physics=physics))
    assert result.summary["requests"]["completed"] == 8
    assert all(len(route.split()) == 2 for route in result.requests["route"])


@pytest.mark.parametrize(("batching", "tokens"), [("separate", 256), ("mixed", 128)])
def test_chunks_are_half_as_long_where_decodes_run_with_them(tmp_path, batching, tokens):
    engine = tmp_path / "engine.yaml"
    engine.write_text(f"{{schema: 1, kind: engine, name: own, batching: {batching}}}\n")
    changes = ["physics=calibrated", f"engine={engine}"]
    scenario = load_scenario("single24-llama2-70b-helix-offline", changes)
    assert suitable_chunk_tokens(scenario, placed_topology(scenario)) == tokens

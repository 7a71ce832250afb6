"""The calibrated physics: steps, passes, messages and KV caches, by numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import (
    capacity,
    iterations,
    make_llm,
    make_machine_type,
    make_scenario,
    make_topology,
    offline,
)
from hypothesis import HealthCheck, given, settings
from toy_scenarios import scenarios

from helixsim.control.kv_cache import KvCache
from helixsim.control.routing.policy import Rejection
from helixsim.models.messages import _JITTER
from helixsim.models.simulation import simulate
from helixsim.physics.calibrated import EngineStepTimer
from helixsim.physics.engine import EngineCosts, GpuCosts, KnownRange
from helixsim.physics.rounded_profile import without_rounding
from helixsim.profiles.machine import LatencyProfile
from helixsim.requests import Request

pytestmark = pytest.mark.usefixtures("checked_runs")

NEAR = 2e-5
"""Idle workers look for messages every microsecond at the most; there are a few on a route."""


def calibrated(layers, *, engine=None, waiting=None, chunk=None, **changes):
    """A token takes 0.125 s on a link after 0.125 s of latency, and a second on a layer."""
    changes = {"link": (16.0, 0.125), "activation_bytes": 0.0, "drain": True} | changes
    scenario = make_scenario(layers, **changes)
    return replace(
        scenario,
        physics="calibrated",
        engine=(engine or EngineCosts()).model_copy(update={"scheduler": "prototype"}),
        scheduler=replace(scenario.scheduler, max_waiting=waiting, prefill_chunk_tokens=chunk),
    )


def log_of(*arguments, **changes):
    return iterations(simulate(calibrated(*arguments, **changes), record_iterations=True))


def near(log):
    return [
        (*row[:2], pytest.approx(row[2], abs=NEAR), pytest.approx(row[3], abs=NEAR)) for row in log
    ]


def test_a_request_alone():
    # Prompt: 3 tokens there 0.5 s, 2 layers of 3 s, one token back 0.25 s. A decode takes as long
    # as two: 2 s a layer.
    assert log_of({"a": (0, 2)}, requests=[(0, 3, 2)]) == near(
        [(0, 0, 2.0, 8.75), (0, 1, 8.75, 13.25)]
    )


def test_a_short_prompt_has_the_weights_read():
    assert log_of({"a": (0, 1)}, requests=[(0, 1, 1)]) == near([(0, 0, 2.0, 4.5)])


def test_messages_are_fetched_between_steps_and_run_together():
    # The first prompt arrives at 2.5 and runs till 5.5; the others come meanwhile and share a pass.
    log = log_of({"a": (0, 1)}, requests=[(0, 3, 1), (1, 2, 1), (1.5, 2, 1)])
    assert log[0] == near([(0, 0, 2.0, 5.75)])[0]
    assert [row[3] for row in log[1:]] == pytest.approx([9.75, 9.875], abs=NEAR)


def test_prompts_go_before_decodes_and_leave_before_them():
    # The decode of the first request and the second prompt are fetched together at 5.5.
    log = log_of({"a": (0, 1)}, requests=[(0, 3, 2), (3.0, 4, 1)])
    ends = {row[:2]: row[3] for row in log}
    assert ends[0, 0] == pytest.approx(5.75, abs=NEAR)
    # The prompt of 4 tokens arrives at 5.625, the decode at 6.0, when the prompt is running.
    assert ends[1, 0] == pytest.approx(5.625 + 4 + 0.25, abs=NEAR)
    assert ends[0, 1] == pytest.approx(9.625 + 2 + 0.25, abs=NEAR)


def test_mixed_batching_runs_one_pass():
    engine = EngineCosts(batching="mixed")
    decode = LatencyProfile((0, 2, 100), (0.0, 2.0, 2.1))
    layers, requests = {"a": (0, 1)}, [(0, 6, 3), (0.5, 3, 6), (4.25, 5, 6), (9, 8, 3)]
    separate = log_of(layers, requests=requests, decode=decode)
    mixed = log_of(layers, requests=requests, decode=decode, engine=engine)
    assert max(row[3] for row in mixed) < max(row[3] for row in separate)
    assert {row[:2] for row in mixed} == {row[:2] for row in separate}


def test_requests_that_enter_in_the_middle_join_the_pass_there():
    layers = {"a": (0, 1), "b": (0, 3), "c": (1, 4)}
    log = log_of(layers, requests=[(0, 2, 2), (0, 2, 2), (0.01, 2, 2)], seed=3)
    assert {row[:2] for row in log} == {(i, k) for i in range(3) for k in range(2)}


def test_hidden_states_are_copied_in_and_out_but_tokens_are_not():
    layers = {"a": (0, 1), "b": (1, 2)}
    plain = log_of(layers, requests=[(0, 4, 1)], activation_bytes=8.0, link=(1e9, 0.125))
    copies = EngineCosts(copy_bytes_per_s=8.0)
    copied = log_of(
        layers, requests=[(0, 4, 1)], activation_bytes=8.0, link=(1e9, 0.125), engine=copies
    )
    # 4 tokens x 8 bytes, out of a and into b: 4 s each.
    assert copied[0][3] - plain[0][3] == pytest.approx(8.0, abs=NEAR)


def test_a_machine_hands_over_one_message_after_another():
    engine = EngineCosts(message_s=0.5)
    log = log_of({"a": (0, 1)}, requests=[(0, 2, 1), (0, 2, 1)], link=(1e9, 0.0), engine=engine)
    # Handed over at 2.5 and 3.0; the first runs from 2.5 to 4.5, then the second.
    assert [row[3] for row in log] == pytest.approx([5.0, 7.0], abs=NEAR)


def test_an_idle_worker_notices_at_the_end_of_its_round():
    engine = EngineCosts(poll_layer_s=0.4)
    log = log_of({"a": (0, 1)}, requests=[(0, 3, 1)], link=(1e9, 0.0), engine=engine)
    # Rounds end at 0.4, 0.8, ... 2.0; the message is there a moment after 2.0, noticed at 2.4.
    assert log[0][3] == pytest.approx(2.4 + 3, abs=1e-6)


def test_jitter_is_exponential_with_mean_one():
    assert sum(_JITTER) / len(_JITTER) == pytest.approx(1.0, abs=2e-3)
    assert sorted(_JITTER) == list(_JITTER)


def test_seeds_change_delays_and_nothing_else():
    engine = EngineCosts(delivery_jitter_s=0.01)
    requests = [(0.1 * i, 3, 3) for i in range(5)]

    def log(seed):
        return log_of({"a": (0, 1), "b": (1, 2)}, requests=requests, engine=engine, seed=seed)

    assert log(1) == log(1)
    assert log(1) != log(2)
    assert {row[:2] for row in log(1)} == {row[:2] for row in log(2)}


# -- times of passes


@pytest.fixture
def times_of():
    def make(engine=None, gpu=None):
        kind = make_machine_type(
            "kind",
            1,
            prefill=LatencyProfile((0, 100), (0.0, 1.0)),
            decode=LatencyProfile((0, 2, 10), (0.0, 0.1, 0.2)),
        )
        costs = {
            "prefill_scale": 0.5,
            "layer_pass_s": 0.02,
            "multi_sequence_overhead_s": 0.03,
            "kv_read_bytes_per_s": 1000.0,
        }
        common = {"per_sequence_overhead_s": 0.001, "prompt_s": 0.01, "profile_context_tokens": 50}
        costly = EngineCosts(
            **(common | (engine or {})), gpus={"kind": GpuCosts(**(costs | (gpu or {})))}
        )
        scenario = make_scenario({"a": (0, 1)}, requests=[(0, 1, 1)], types={"a": kind})
        node = make_topology(scenario).nodes[0]
        return EngineStepTimer(make_llm(1), node, costly)

    return make


@pytest.fixture
def times(times_of):
    return times_of()


def test_prefill_pass(times):
    assert times.prefill_layer_s(2, 80) == pytest.approx(0.4 + 0.02 + 0.02)
    assert times.prefill_layer_s(1, 4) == pytest.approx(0.1 + 0.02 + 0.01)


def test_decode_pass(times):
    assert times.decode_layer_s(1, 50) == pytest.approx(0.1 + 0.02)
    assert times.decode_layer_s(6, 300) == pytest.approx(0.15 + 0.02 + 0.03 + 0.005)


def test_context_beyond_that_of_the_profile_is_read(times):
    # One byte a token and layer here, 1,000 bytes/s.
    assert times.decode_layer_s(6, 400) - times.decode_layer_s(6, 300) == pytest.approx(0.1)
    assert times.decode_layer_s(6, 10) == pytest.approx(0.1)  # never faster than two


def test_mixed_pass(times):
    assert times.mixed_layer_s(0, 0, 6, 300) == times.decode_layer_s(6, 300)
    assert times.mixed_layer_s(1, 80, 0, 0) == times.prefill_layer_s(1, 80)
    assert times.mixed_layer_s(1, 74, 6, 300) == pytest.approx(
        0.4 + 0.02 + 0.01 + (0.15 - 0.1) + 0.006
    )


def test_passes_of_prompts_have_host_time_of_their_own(times_of):
    plain, costly = times_of(), times_of(gpu={"prefill_pass_s": 0.5})
    assert costly.prefill_layer_s(2, 80) - plain.prefill_layer_s(2, 80) == pytest.approx(0.5)
    assert costly.decode_layer_s(6, 300) == plain.decode_layer_s(6, 300)


def test_tables_of_blocks_take_time(times_of):
    plain, costly = times_of(), times_of(engine={"kv_block_s": 0.16})
    assert costly.decode_layer_s(6, 400) - plain.decode_layer_s(6, 400) == pytest.approx(4.0)
    mixed = [each.mixed_layer_s(1, 74, 6, 400) for each in (plain, costly)]
    assert mixed[1] - mixed[0] == pytest.approx(4.0)


def test_only_the_last_layer_makes_tokens():
    layers = {"a": (0, 1), "b": (1, 2)}
    costly = EngineCosts(other_gpus=GpuCosts(output_pass_s=0.5))
    plain, found = (
        log_of(layers, requests=[(0, 3, 2)], engine=engine) for engine in (None, costly)
    )
    assert [b[3] - a[3] for a, b in zip(plain, found, strict=True)] == pytest.approx(
        [0.5, 1.0], abs=NEAR
    )


# -- rounded profiles


def test_short_times_in_whole_milliseconds_lie_on_a_line():
    rounded = LatencyProfile((0, 250, 500, 750, 1000, 20000), (0.0, 1e-3, 2e-3, 4e-3, 5e-3, 0.1))
    found = without_rounding(rounded)
    assert found.seconds[1:5] == pytest.approx([0.9e-3, 2.3e-3, 3.7e-3, 5.1e-3])
    assert (found.seconds[0], found.seconds[5]) == (0.0, 0.1)
    tenths = LatencyProfile((0, 2, 4, 6, 8), (0.0, 0.9e-3, 0.9e-3, 1e-3, 1e-3))
    assert without_rounding(tenths).seconds == pytest.approx(
        [0.85e-3, 0.89e-3, 0.93e-3, 0.97e-3, 1.01e-3]
    )


@pytest.mark.parametrize(
    "seconds", [(0.0, 0.00123, 0.002, 0.003), (0.0, 0.001, 0.002, 0.5), (0.0, 0.5, 0.6, 0.7)]
)
def test_other_times_stay(seconds):
    profile = LatencyProfile((0, 10, 20, 30), seconds)
    assert without_rounding(profile) is profile


# -- KV caches


def test_blocks():
    cache = KvCache.by_layer(16 * 10, end_layer=3)
    request = Request(0, 0.0, 17, 5, num_decodes=4)
    assert cache.missing(request, 17, entry_layer=1) == 4  # 2 blocks on each of 2 layers
    cache.allocate(request, 4)
    assert (cache.num_free, cache.missing(request, 17, 1)) == (6, 0)
    assert cache.release(request)
    assert not cache.release(request)
    assert cache.num_free == 10


def test_a_decode_without_room_preempts_the_last_to_come():
    room = capacity(kv_token_layers=16 * 5)
    scenario = calibrated({"a": (0, 1)}, requests=[(0, 30, 20), (1, 30, 20)], room=room)
    scenario = replace(
        scenario,
        scheduler=replace(
            scenario.scheduler, kv=replace(scenario.scheduler.kv, high_water_mark=1.0)
        ),
    )
    result = simulate(scenario)
    columns = result.tables["requests"].as_dict()
    assert list(columns["status"]) == ["completed", "completed"]
    assert list(columns["restarts"]) == [0, 1]


def test_chunks_do_not_wait_for_each_other():
    # Together, the prompts need 8 blocks on each node, which has 6: half-way, neither has room.
    room = capacity(kv_token_layers=16 * 6, max_prompt_tokens=10)
    layers, requests = {"a": (0, 1), "b": (1, 2)}, [(0, 60, 2), (0.1, 60, 2), (0.2, 60, 2)]
    scenario = calibrated(layers, requests=requests, room=room)
    scenario = replace(scenario, scheduler=replace(scenario.scheduler, policy="random"))
    columns = simulate(scenario).tables["requests"].as_dict()
    assert list(columns["status"]) == ["completed"] * 3
    assert sum(columns["restarts"]) > 0


def test_a_prompt_that_can_never_fit_is_refused():
    room = capacity(kv_token_layers=16)
    scenario = calibrated({"a": (0, 1)}, requests=[(0, 40, 2), (1, 4, 2)], room=room)
    scenario = replace(scenario, scheduler=replace(scenario.scheduler, policy="random"))
    status = list(simulate(scenario).tables["requests"].as_dict()["status"])
    assert status == ["rejected: length", "completed"]


def test_no_request_is_lost_for_want_of_room():
    room = capacity(kv_token_layers=100)
    requests = [(0.1 * i, 20, 4) for i in range(8)]
    paper = replace(calibrated({"a": (0, 1)}, requests=requests, room=room), physics="paper")
    assert simulate(paper).summary["rejected_for"][Rejection.KV] > 0
    result = simulate(calibrated({"a": (0, 1)}, requests=requests, room=room))
    assert result.summary["requests"]["completed"] == 8


def test_prompts_longer_than_a_batch_go_in_chunks():
    room = capacity(max_prompt_tokens=10)
    result = simulate(calibrated({"a": (0, 1)}, requests=[(0, 25, 2)], room=room))
    assert result.summary["requests"]["completed"] == 1


def test_small_shares_of_the_flow_are_used_where_there_are_no_others():
    layers = {f"n{i}": (0, 1) for i in range(25)}
    result = simulate(calibrated(layers, requests=[(0, 3, 2)]))
    assert result.summary["requests"]["completed"] == 1


def test_an_offline_run_goes_on():
    scenario = calibrated(
        {"a": (0, 1)},
        workload=offline([(5, 3)], initial_requests=3),
        drain=False,
        room=capacity(kv_token_layers=50),
    )
    assert simulate(scenario).summary["requests"]["completed"] > 3


def test_a_run_beyond_what_was_recorded_says_so():
    known = KnownRange(
        machine_types=("other",),
        llms=("toy",),
        max_in_flight=1,
        max_prompt_tokens=1,
        max_context_tokens=1,
        max_decode_tokens_per_s=1.0,
    )
    engine = EngineCosts(name="mine", known=known)
    result = simulate(calibrated({"a": (0, 1)}, requests=[(0, 3, 1)], engine=engine))
    assert result.summary["warnings"][1:] == [
        "engine mine was fitted without machine types kind: NOT MADE FOR THEM; on two recorded "
        "vLLM runs on other machine types, its times per token were 30 to 80 % too long, and "
        "times to the first token wrong by a factor of two; use engine: vllm"
    ]


COSTS = EngineCosts(
    per_sequence_overhead_s=0.001,
    prompt_s=0.002,
    copy_bytes_per_s=1e6,
    send_bytes_per_s=1e6,
    message_s=0.001,
    poll_layer_s=0.003,
    delivery_jitter_s=0.01,
    other_gpus=GpuCosts(layer_pass_s=0.01, multi_sequence_overhead_s=0.01, kv_read_bytes_per_s=1e4),
)


@given(scenarios(drain=True))
@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
def test_every_request_ends(scenario):
    """Whatever the cluster: all requests end, with as many passes as their answers have tokens."""
    scenario = replace(scenario, physics="calibrated", engine=COSTS)
    result = simulate(scenario, record_iterations=True)
    rows = result.tables["requests"].as_dict()
    ended = {"completed"}
    for status, output, decodes in zip(
        rows["status"], rows["output_tokens"], rows["decode_tokens"], strict=True
    ):
        assert status in ended or status.startswith(("rejected", "failed")), status
        if status == "completed":
            assert decodes == output - 1
    passes = result.tables["iterations"].as_dict()
    assert all(s <= e for s, e in zip(passes["start_s"], passes["end_s"], strict=True))
    again = simulate(scenario, record_iterations=True)
    assert again.tables["iterations"].as_dict() == passes


def test_watching_a_run_does_not_change_it():
    from helixsim import load_scenario
    from helixsim.models.simulation import Watcher, simulate

    scenario = load_scenario("quickstart", ["physics=calibrated", "run.duration=30 s"])
    looks = []
    plain = simulate(scenario, record_iterations=True)
    watched = simulate(scenario, record_iterations=True, watchers=(Watcher(0.37, looks.append),))
    assert len(looks) > 50
    assert watched.tables["iterations"].values == plain.tables["iterations"].values
    assert watched.summary == plain.summary

"""Summary and frames of a run."""

from __future__ import annotations

import math
import signal

import pandas as pd
import pytest
from builders import capacity, counts, make_scenario, offline

from helixsim.models.simulation import Simulation, Watcher, simulate

LAYERS = {"a": (0, 1), "b": (1, 2)}
TIMES = {"link": (16.0, 0.125), "activation_bytes": 0.0}


def run(requests=((0.0, 3, 2), (4.0, 2, 1)), **settings):
    settings = {"duration_s": 40.0, "sample_interval_s": 4.0} | TIMES | settings
    return simulate(make_scenario(LAYERS, requests=requests, **settings), record_iterations=True)


def test_frames_have_the_columns_of_their_tables():
    result = run()
    for name, table in result.tables.items():
        frame = getattr(result, name)
        assert list(frame.columns) == list(table.names)
        assert len(frame) == len(table) > 0
        for column, code in zip(table.names, table.types, strict=True):
            kinds = {"q": "i", "d": "f", "s": "OUT"}
            assert frame[column].dtype.kind in kinds[code], (name, column)


def test_frames_of_an_empty_run_have_columns_and_types_too():
    result = simulate(make_scenario(LAYERS, requests=[(50.0, 1, 1)], duration_s=10.0))
    assert len(result.requests) == 0
    assert result.requests["arrival_s"].dtype == "float64"
    assert result.requests["request"].dtype == "int64"
    assert result.summary["decode_tokens_per_s"] == 0.0
    assert result.summary["e2e_s"]["mean"] is None


def test_iterations_that_were_not_recorded_are_missed_by_name():
    result = simulate(make_scenario(LAYERS, requests=[(0, 1, 1)], duration_s=1.0))
    with pytest.raises(KeyError, match="iterations"):
        _ = result.iterations


def test_the_summary_agrees_with_the_tables():
    result = run(warmup_s=8.0)
    summary, passes = result.summary, result.iterations
    start, end = summary["window_start_s"], summary["window_end_s"]
    assert (start, end) == (10.0, 42.0)
    inside = passes[(passes.end_s >= start) & (passes.end_s <= end)]
    prompts, decodes = inside[inside.phase == "prompt"], inside[inside.phase == "decode"]
    tokens = result.requests.set_index("request").prompt_tokens
    assert 0 < len(prompts) < 2  # one of the two came back in the warm-up
    assert summary["decode_tokens_per_s"] == len(decodes) / 32
    assert summary["output_tokens_per_s"] == len(inside) / 32
    prompt_tokens = sum(tokens[request] for request in prompts.request)
    assert summary["total_tokens_per_s"] == (len(inside) + prompt_tokens) / 32
    assert summary["requests_per_s"] == 2 / 32
    latency = (decodes.end_s - decodes.start_s).sort_values(ignore_index=True)
    assert summary["decode_latency_s"]["mean"] == pytest.approx(latency.mean(), rel=1e-15)
    assert summary["decode_latency_s"]["p50"] == latency[int(len(latency) / 2)]
    assert summary["itl_s"] == summary["decode_latency_s"]
    ended = result.requests
    assert summary["e2e_s"]["mean"] == pytest.approx(ended.e2e_s.mean(), rel=1e-15)
    assert summary["tpot_s"]["mean"] == pytest.approx(ended.tpot_s.mean(), rel=1e-15)
    assert summary["requests"] == counts(arrived=2, completed=2)


def test_the_timeline_covers_the_run_without_gaps():
    result = run()
    assert list(result.timeline.time_s) == [2.0 + 4.0 * step for step in range(1, 11)]
    assert list(result.nodes.time_s.unique()) == list(result.timeline.time_s)
    # Rates times intervals give back what was done in all.
    decodes = (result.iterations.phase == "decode").sum()
    assert result.timeline.decode_tokens_per_s.sum() * 4.0 == pytest.approx(decodes)
    assert result.timeline.prompt_tokens_per_s.sum() * 4.0 == pytest.approx(5)
    assert list(result.timeline.completed)[-1] == 2
    by_node = result.nodes.groupby("node")
    # Prompts of 3 and 2 s and three decodes, each alone for 2 s but where they meet.
    assert by_node.tokens_per_s.sum()["a"] * 4.0 == pytest.approx(5 + 3)
    assert by_node.batches.sum()["a"] == 5
    assert by_node.utilisation.sum()["a"] * 4.0 == pytest.approx(11)
    assert (result.nodes.kv_capacity_token_layers == 10**9).all()
    sent = result.links.groupby("source").bytes_per_s.sum() * 4.0
    assert sent["coordinator"] == pytest.approx(2 * 8)
    # 16 bytes take a second at 16 bytes/s.
    busy = result.links.groupby("source").utilisation.sum() * 4.0
    assert busy["coordinator"] == pytest.approx(1.0)
    assert result.links.groupby("source").requests.sum()["b"] == 5


def test_a_timeline_that_ends_between_samples_has_a_last_row():
    result = run(duration_s=10.0)
    assert list(result.timeline.time_s) == [6.0, 10.0, 12.0]


def test_policies_without_expectation_leave_it_open():
    result = run(policy="swarm")
    assert result.nodes.kv_expected_token_layers.isna().all()
    expected = run().nodes.kv_expected_token_layers
    assert (expected > 0).any()
    assert not expected.isna().any()


def test_overflowing_caches_are_counted():
    # Admission expects 4 tokens of output; there are 300.
    result = run(
        requests=[(0.0, 3, 300)],
        room=capacity(kv_token_layers=30),
        duration_s=400.0,
        sample_interval_s=10.0,
    )
    used = result.nodes[result.nodes.node == "a"].kv_used_token_layers
    over = (result.nodes.kv_used_token_layers > 30).sum()
    assert used.is_monotonic_increasing
    assert 0 < over == result.summary["kv_overflow_samples"]


def test_watchers_see_the_run_as_it_goes():
    seen = []
    scenario = make_scenario(
        LAYERS, workload=offline([(3, 2)], initial_requests=2), duration_s=30.0, **TIMES
    )
    simulation = Simulation(scenario)

    def look(running):
        assert running is simulation
        seen.append((running.environment.now, running.recorder.num_arrived))

    simulation.run((Watcher(10.0, look),))
    assert [now for now, _ in seen] == [2.0, 12.0, 22.0, 32.0]
    assert seen[0][1] in (0, 1)
    assert seen[-1][1] > 2


def test_an_interrupted_run_keeps_what_it_has():
    def interrupt(running):
        if running.environment.now > 20.0:
            signal.raise_signal(signal.SIGINT)

    scenario = make_scenario(LAYERS, requests=[(0.0, 3, 50)], duration_s=300.0, **TIMES)
    result = simulate(scenario, watchers=(Watcher(5.0, interrupt),), record_iterations=True)
    summary = result.summary
    assert summary["partial"]
    assert (summary["simulated_s"], summary["window_end_s"]) == (22.0, 22.0)
    assert summary["requests"]["in_flight"] == 1
    assert list(result.requests.status) == ["in flight"]
    assert summary["decode_tokens_per_s"] == (len(result.iterations) - 1) / 20.0


def test_a_seed_in_place_of_the_scenario_s():
    scenario = make_scenario(
        LAYERS, workload=offline([(n, 2) for n in range(1, 30)]), duration_s=60.0, seed=1, **TIMES
    )
    assert simulate(scenario).seed == 1
    assert simulate(scenario, seed=5).summary["seed"] == 5
    own, other = simulate(scenario), simulate(scenario, seed=5)
    assert list(own.requests.prompt_tokens) != list(other.requests.prompt_tokens)


def test_statistics_are_finite_or_none():
    def numbers(value):
        if isinstance(value, dict):
            for inner in value.values():
                yield from numbers(inner)
        elif isinstance(value, float):
            yield value

    assert all(math.isfinite(number) for number in numbers(run().summary))
    assert isinstance(run().requests, pd.DataFrame)


def test_looking_at_a_run_does_not_change_it():
    looks = []
    scenario = make_scenario(
        LAYERS, requests=[(0.0, 3, 50), (4.0, 2, 7)], duration_s=20.0, drain=True, **TIMES
    )
    alone = simulate(scenario, record_iterations=True)
    watched = simulate(scenario, record_iterations=True, watchers=(Watcher(777.0, looks.append),))
    assert looks
    assert watched.summary == alone.summary
    for name, table in alone.tables.items():
        assert [list(map(repr, column)) for column in watched.tables[name].values] == [
            list(map(repr, column)) for column in table.values
        ]
    assert alone.summary["simulated_s"] == max(alone.requests.end_s)

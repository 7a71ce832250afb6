"""Small inputs that an earlier version got wrong (``../shared/cases``), with the right answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from helixsim.errors import ScenarioError, TraceError
from helixsim.models.simulation import simulate
from helixsim.scenario.load import load_scenario

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:engine files. 'max_batched_tokens'"),
]


@pytest.fixture
def cases(reference: Path) -> Path:
    folder = reference.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases in {folder}")
    return folder


def run(cases: Path, name: str, *changes: str):
    return simulate(load_scenario(cases / name, list(changes)))


def told(result):
    """The warnings, but for a mean request of the scenario that the trace contradicts."""
    warnings = result.summary["warnings"]
    return [text for text in warnings if not text.startswith("workload.mean_")]


def test_a_qwen_bailian_traces_are_in_seconds(cases):
    result = run(cases, "one.yaml", "workload.trace=bailian.jsonl")
    # Sending starts at 2 s.
    assert list(result.requests.arrival_s) == [2.0, 22.5, 42.25]
    assert told(result) == []


def test_a_the_unit_can_be_given(cases):
    changes = ("workload.trace=bailian.jsonl", "workload.trace.time_unit=ms")
    result = run(cases, "one.yaml", *changes)
    assert list(result.requests.arrival_s) == [2.0, 2.0205, 2.04025]
    assert "arrive from 0 to 0.04025 s, the run lasts 60 s" in told(result)[0]


@pytest.mark.parametrize("policy", ["swarm", "random", "shortest_queue", "maxflow"])
def test_b_a_request_that_can_never_fit_is_refused(cases, policy):
    result = run(cases, "livelock.yaml", f"scheduler.policy={policy}")
    assert list(result.requests.status) == ["rejected: length"]


def test_b2_such_a_request_changes_nothing_for_others(cases):
    changes = (
        "scheduler.policy=swarm",
        "cluster.nodes.0.kv_token_layers=50000",
        "run.duration=20 s",
        "run.drain=false",
    )
    with_it, without = (
        run(cases, "kv.yaml", f"workload.trace={trace}.csv", *changes) for trace in ("st1", "st0")
    )
    assert without.summary["decode_tokens_per_s"] == 18.0
    assert with_it.summary["decode_tokens_per_s"] == 18.0
    assert with_it.summary["requests"]["restarted"] == 0


def test_f_sixteen_requests_on_one_machine_share_each_step(cases):
    result = run(cases, "flat.yaml", "workload.trace=flat.csv", "run.duration=100 s")
    # The curve: 5 ms a layer for one decode, 5.63 ms for 64, so 5.15 ms for 16; 10 layers.
    assert result.summary["tpot_s"]["mean"] == pytest.approx(0.0515, rel=0.001)


def test_g_no_more_is_held_than_there_is(cases):
    result = run(
        cases,
        "kv.yaml",
        "scheduler.policy=swarm",
        "workload.trace=kv3.csv",
        "workload.mean_prompt_tokens=10",
        "workload.mean_output_tokens=1",
        "run.sample_interval=0.5 s",
        "run.duration=8 s",
    )
    used = result.nodes.kv_used_token_layers
    # 400 to 449 tokens on 10 layers, in blocks of 16 tokens.
    assert used.max() == 4480
    assert (used <= 5000).all()
    assert not any("paper's physics" in warning for warning in told(result))
    assert list(result.requests.status) == ["completed"] * 3


def test_i_rejected_requests_miss_their_slo(cases):
    result = run(
        cases,
        "kv.yaml",
        "physics=paper",
        "workload.trace=ol.csv",
        "workload.mean_output_tokens=40",
        "workload.mean_prompt_tokens=20",
        "slo={chat: {ttft: 1 s, share: 0.95}}",
    )
    found = result.summary["slo"]["chat"]
    assert found["due"] == result.summary["requests"]["arrived"] == 400
    assert found["refused"] == result.summary["requests"]["rejected"] >= 296
    assert found["attainment"] <= 104 / 400
    assert found["met"] is False


@pytest.mark.parametrize(
    ("trace", "arrivals", "left_out"),
    [
        ("burst_v3.csv", [2.0, 12.0], "1 of 3 rows left out: 1 without output tokens"),
        ("epoch.csv", [2.0, 3.0], None),
    ],
)
def test_h_times_count_from_the_first_request(cases, trace, arrivals, left_out):
    result = run(cases, "one.yaml", f"workload.trace={trace}")
    assert list(result.requests.arrival_s) == arrivals
    assert list(result.requests.status) == ["completed"] * 2
    *notes, coverage = told(result)
    assert notes == ([] if left_out is None else [f"{trace}: {left_out}"])
    assert f"from 0 to {arrivals[-1] - 2:g} s, the run lasts 60 s" in coverage


def test_h_a_trace_can_be_repeated_until_the_run_ends(cases):
    trace = ("workload.trace=epoch.csv", "workload.trace.repeat=fill")
    result = run(cases, "one.yaml", *trace, "run.duration=20 s")
    assert list(result.requests.arrival_s) == [2.0 + second for second in range(21)]
    assert told(result) == []


def test_h_a_part_without_requests_is_an_error(cases):
    changes = ["workload.trace=epoch.csv", "workload.trace.start=2 s"]
    with pytest.raises(ScenarioError, match="has no request from 2 s on; its last is at 1 s"):
        load_scenario(cases / "one.yaml", changes)


def test_j_rows_without_output_are_left_out_and_counted(cases):
    result = run(cases, "one.yaml", "workload.trace=azure24_zero.csv")
    assert list(result.requests.arrival_s) == pytest.approx([2.0, 6.99007, 12.007405], abs=1e-9)
    assert list(result.requests.prompt_tokens) == [100, 500, 1000]
    assert told(result)[0] == ("azure24_zero.csv: 1 of 4 rows left out: 1 without output tokens")


def test_j_a_turn_with_a_delay_follows_the_end_of_the_turn_before_it(cases):
    requests = run(cases, "one.yaml", "workload.trace=mc_session.jsonl").requests
    first_end_s = requests.end_s[0]
    assert list(requests.arrival_s) == [2.0, first_end_s + 0.5]
    assert list(requests.prompt_tokens) == [100, 200]


def test_j_llm_serving_sim_is_in_nanoseconds(cases):
    requests = run(cases, "one.yaml", "workload.trace=lss.jsonl").requests
    assert list(requests.arrival_s) == pytest.approx([2.0, 2 + 10 - 0.00405974], abs=1e-12)
    assert list(requests.prompt_tokens) == [100, 500]


def test_j_sharegpt_is_a_source_of_lengths(cases):
    changes = ["workload.lengths=sharegpt.json", "workload.mean_tokens_per_s=40"]
    result = run(cases, "one.yaml", *changes)
    # 11 and 2 characters, a quarter of a token each.
    assert set(result.requests.prompt_tokens) == {3}
    assert set(result.requests.output_tokens) == {1}
    assert told(result) == [
        "sharegpt.json: 1 of 2 conversations left out: they have no prompt with an answer",
        "sharegpt.json: lengths are characters / 4, for want of a tokenizer",
    ]
    with pytest.raises(TraceError, match=r"\(ShareGPT JSON\); give it as lengths"):
        load_scenario(cases / "one.yaml", ["workload.trace=sharegpt.json"])

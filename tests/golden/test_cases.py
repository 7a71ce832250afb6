"""Small inputs that an earlier version got wrong (``../shared/cases``), with the right answers."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert not any("paper's physics" in warning for warning in result.summary["warnings"])
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

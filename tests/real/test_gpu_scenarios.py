"""A scenario with nodes named by their GPU, in a real cluster with emulated engines."""

import pytest
import yaml

from helixreal.coordinator.attempts import blank_prompts
from helixreal.inventory import NodeEntry
from helixreal.launch import Launch
from helixreal.net import encoding, messages
from helixsim import replay
from helixsim.metrics.output import OutputFolder

SCENARIO = {
    "schema": 1,
    "name": "one",
    "llm": {"config": "llama3.1-8b", "weights": "fp8"},
    "profiles": "roofline",
    "cluster": {
        "coordinator": {"nic": "25 Gbit/s"},
        "nodes": [{"gpu": "L40S", "gpus": 2, "name": "n"}],
        "network": {"within": {"bandwidth": "25 Gbit/s", "latency": "0.1 ms"}},
    },
    "placement": {"layers": {"n": [0, 32]}},
    "workload": {"requests_per_s": 3, "prompt_tokens": 500, "output_tokens": 3},
    "run": {"warmup": "0 s", "duration": "4 s", "drain": True},
}


def test_prompts_of_its_requests_share_nothing(tmp_path):
    """One GPU machine of today holds more than a million KV blocks of one layer."""
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(SCENARIO))
    launch = Launch.local(file, (), 0, NodeEntry(), 1.0)
    with launch.cluster() as cluster:
        launch.start(cluster)
        cluster.run_workload()
        result, recorded = cluster.result(), cluster.events.files(cluster.topology)
    with OutputFolder(tmp_path / "run") as folder:
        result.write(folder, table_format="csv", more=recorded)
    replayed = replay(tmp_path / "run", file, warmup_s=0.0)
    simulated = replayed.simulated["prompt_latency_s"]["p50"]
    assert replayed.recorded["prompt_latency_s"]["p50"] == pytest.approx(simulated, rel=0.05)


def test_blank_prompts_begin_differently():
    assert len(blank_prompts(0, 1)) == 1
    assert blank_prompts(3, 40)[:16] != blank_prompts(4, 50)[:16]
    assert blank_prompts(3, 40) == blank_prompts(3, 40)


def test_a_worker_may_have_many_kv_blocks():
    ready = messages.Ready(0, "x", 10_000_000, 16)
    assert encoding.decode(encoding.encode(ready, [])) == (ready, [])

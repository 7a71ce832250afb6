"""Recorded runs of vLLM 0.19: the simulator against every request's latencies.

Step times come from operator tables of the same GPUs. Two defaults of `import-operators` are from
these runs: the latency of an all-reduce over PCIe, and the time between two steps.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from helixsim.profiles.import_operators import ImportSettings, import_operators
from helixsim.recorded.log_replay import replay_log
from helixsim.recorded.log_series import simulated_series, start_s
from helixsim.scenario.load import load_scenario
from helixsim.yaml_files import yaml_text

pytestmark = pytest.mark.reference

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
QWEN3_32B = {
    "model_type": "qwen3",
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
RUNS = {
    "rtx4090-llama3.1-8b": ("rtx4090/llama3.1-8b/tp1", LLAMA_8B, 1),
    "rtxpro6000x2-qwen3-32b": ("rtxpro6000/qwen3-32b/tp2", QWEN3_32B, 2),
}


def scenario_of(reference: Path, run: str, folder: Path):
    """One machine with the engine arguments of the recording."""
    measured, config, num_gpus = RUNS[run]
    meta = json.loads((reference / "vllm_runs" / run / "meta.json").read_text())
    arguments = meta["engine_kwargs"]
    (folder / "config.json").write_text(json.dumps(config))
    imported = import_operators(
        reference / "operator_profiles" / measured,
        folder / "config.json",
        ImportSettings(name="machine", memory=f"{100 * num_gpus} GB", tensor_parallel=num_gpus),
        llm_name="llm",
    )
    assert imported.llm is not None
    (folder / "machine.yaml").write_text(imported.machine)
    (folder / "llm.yaml").write_text(imported.llm)
    engine = {
        "schema": 1,
        "kind": "engine",
        "name": "recorded",
        "scheduler": "vllm",
        "max_num_seqs": arguments["max_num_seqs"],
        "max_num_batched_tokens": arguments["max_num_batched_tokens"],
    }
    if "kv_cache" in meta:
        engine["kv_tokens"] = meta["kv_cache"]["num_kv_tokens"]
    (folder / "engine.yaml").write_text(yaml_text(engine))
    document = {
        "schema": 1,
        "name": "recorded",
        "llm": "llm.yaml",
        "machine_types": ["machine.yaml"],
        "cluster": {
            "coordinator": {"nic": "100 Gbit/s"},
            "nodes": [{"type": "machine", "name": "n0"}],
            "network": {"within": {"bandwidth": "100 Gbit/s", "latency": "0 ms"}},
        },
        "placement": {
            "layers": {"n0": [0, config["num_hidden_layers"]]},
            "allow_overcommitted_layers": True,
        },
        "workload": {
            "mode": "online",
            "arrivals": "poisson",
            "lengths": "azure-conversation",
            "mean_tokens_per_s": 1000,
            "mean_prompt_tokens": 800,
            "mean_output_tokens": 600,
        },
        "physics": "calibrated",
        "engine": "engine.yaml",
        "run": {"duration": "600 s", "drain": True},
    }
    (folder / "scenario.yaml").write_text(yaml_text(document))
    return load_scenario(folder / "scenario.yaml")


@pytest.mark.parametrize(
    ("run", "mean", "percentile"),
    [("rtx4090-llama3.1-8b", 0.03, 0.12), ("rtxpro6000x2-qwen3-32b", 0.015, 0.04)],
)
def test_a_recorded_run(reference, tmp_path, run, mean, percentile):
    result = replay_log(reference / "vllm_runs" / run, scenario_of(reference, run, tmp_path))
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        for statistic, error in result.error[name].items():
            most = mean if statistic == "mean" else percentile
            assert abs(error) <= most, (name, statistic, error)
    assert abs(result.error["makespan_s"]) <= 0.03


def implied_preemptions(running: pd.Series, first_token_s, end_s) -> int:
    """Requests that ran at one second and neither ran nor had ended at the next.

    Counted where no request began for a second before and after: there only requests
    come in that are resumed, and these hide as many preemptions on both sides.
    """
    implied = 0
    for t in range(2, 184):
        begins = ((first_token_s > t - 2) & (first_token_s <= t + 1)).any()
        if not begins and t in running.index and t - 1 in running.index:
            ended = ((end_s > t - 1) & (end_s <= t)).sum()
            implied += max(int(running[t - 1] - running[t] - ended), 0)
    return implied


def test_preemptions_are_as_many_as_the_log_implies(reference, tmp_path):
    """The log has the running requests each second, and when each request began and ended."""
    run = "rtx4090-llama3.1-8b"
    folder = reference / "vllm_runs" / run
    recorded = pd.read_csv(folder / "requests.csv")
    result = replay_log(folder, scenario_of(reference, run, tmp_path))
    simulated, start = result.results[0].requests, start_s(result.results[0])
    series = simulated_series(result.results[0])
    series.index = series.time_s.round().astype(int)
    of_log = implied_preemptions(
        pd.read_csv(folder / "timeseries.csv").set_index("t").running,
        recorded.first_token_s,
        recorded.last_token_s,
    )
    of_run = implied_preemptions(
        series.simulated_running[~series.index.duplicated()],
        simulated.first_token_s - start,
        simulated.end_s - start,
    )
    print(of_log, of_run, result.simulated["preemptions"])
    assert abs(of_run / of_log - 1) <= 0.2
    assert of_run <= result.simulated["preemptions"]

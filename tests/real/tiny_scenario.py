"""A scenario that serves the tiny Llama of the tests, written out as files."""

from __future__ import annotations

import yaml

LAYERS = {"n0": [0, 5], "n1": [3, 8], "n2": [0, 3]}
LINKS = [
    ["coordinator", "n0"],
    ["n0", "n1"],
    ["coordinator", "n2"],
    ["n2", "n1"],
    ["n1", "coordinator"],
]
"""n1 is entered at 5 from n0 and at 3 from n2, which stand in for one another."""


def write_tiny_scenario(folder, layers=None, **settings):
    """Write the scenario with its LLM and its machine type; the name of its file."""
    placement = {"layers": layers} if layers else {"layers": LAYERS, "links": LINKS}
    layers = placement["layers"]
    llm = {
        "schema": 1,
        "kind": "llm",
        "name": "tiny",
        "num_layers": 8,
        "hidden_size": 64,
        "bytes_per_value": 4,
        "layer_size": "200 kB",
        "kv_size": "512 B",
    }
    counts = list(range(1, 9))
    curve = {"tokens": [0, 1, 256], "ms": [0.0, 0.2, 3.0]}
    machine = {
        "schema": 1,
        "kind": "machine",
        "name": "box",
        "memory": "1 GB",
        "nic": "10 Gbit/s",
        "disk": "1 GB/s",
        "llms": {
            "tiny": {
                "prefill": curve,
                "decode": curve,
                "kv": {"layers": counts, "token_layers": [8192 * n for n in counts]},
                "batch_limits": {
                    "max_prompts": 3,
                    "max_prompt_tokens": 128,
                    "max_decode_tokens": 32,
                },
            }
        },
    }
    scenario = {
        "schema": 1,
        "name": "tiny-llama",
        "llm": "tiny.yaml",
        "machine_types": ["box.yaml"],
        "cluster": {
            "coordinator": {"nic": "10 Gbit/s"},
            "nodes": [{"type": "box", "name": name} for name in layers],
            "network": {"within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}},
        },
        "placement": placement,
        "scheduler": {"policy": "maxflow", "max_waiting": 1000} | settings.pop("scheduler", {}),
        "workload": {
            "mode": "online",
            "lengths": "alpaca",
            "max_prompt_tokens": 60,
            "max_output_tokens": 30,
            "mean_tokens_per_s": 100,
            "mean_prompt_tokens": 30,
            "mean_output_tokens": 20,
        },
        "run": {"duration": "10 s", "warmup": "1 s"},
    } | settings
    for name, data in (("tiny", llm), ("box", machine), ("scenario", scenario)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return str(folder / "scenario.yaml")


def write_engine(folder, **costs):
    """Write an engine file; what a scenario names it by."""
    engine = {"schema": 1, "kind": "engine", "name": "own"} | costs
    (folder / "engine.yaml").write_text(yaml.safe_dump(engine))
    return "engine.yaml"

"""A scenario that runs in a moment, and sweeps over it."""

from __future__ import annotations

import copy
from pathlib import Path

import yaml

SCENARIO = {
    "schema": 1,
    "name": "small",
    "llm": "llama1-30b",
    "cluster": {
        "coordinator": {"nic": "80 Gbit/s"},
        "nodes": [{"type": "A100", "count": 4, "name": "n{i}"}],
        "network": {"within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}},
    },
    "placement": {"layers": {"n0": [0, 18], "n1": [18, 36], "n2": [36, 48], "n3": [48, 60]}},
    "workload": {
        "mode": "online",
        "arrivals": "poisson",
        "mean_tokens_per_s": 100,
        "lengths": "alpaca",
        "max_output_tokens": 50,
    },
    "run": {"warmup": "2 s", "duration": "12 s", "seed": 5},
    "slo": {"quick": {"ttft": "500 ms", "share": 0.5}},
    "dollars_per_hour": {"A100": 3.6},
}
GRID = {
    "schema": 1,
    "kind": "sweep",
    "scenario": "small.yaml",
    "grid": {
        "scheduler.policy": ["maxflow", "random"],
        "workload.mean_tokens_per_s": [50, 100.5],
    },
    "seeds": [3, 1],
}
TOO_SLOW = {"scheduler.policy": "shortest_queue", "cluster.network.within.bandwidth": "1 B/s"}
"""What lets a run fail as it starts: this policy uses no such links."""


def write(name: str, data: object) -> Path:
    path = Path(name)
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def write_study(sweep: dict | None = None, **changes: object) -> Path:
    """The scenario and a sweep in the current directory; changes are top-level keys."""
    write("small.yaml", SCENARIO)
    data = copy.deepcopy(GRID if sweep is None else sweep)
    for key, value in changes.items():
        if value is None:
            data.pop(key, None)
        else:
            data[key] = value
    return write("sweep.yaml", data)

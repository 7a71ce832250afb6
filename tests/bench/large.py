"""Large clusters."""

from __future__ import annotations

from random import Random
from typing import Any

from helixsim.scenario.resolved import Scenario

SHARES = {
    "A100-40-PCIe": 6, "A100-80-SXM": 4, "V100-16-SXM": 12, "L4": 16, "L4x2": 12, "T4": 22, "T4x4": 10,
    "A10G": 16, "L40S": 6, "RTX-3090": 20,
}
REGIONS = ("virginia", "oregon", "frankfurt", "mumbai", "tokyo")


def counts(num_nodes: int, seed: int = 0):
    rng = Random(f"large/{num_nodes}/{seed}")
    total = sum(SHARES.values())
    found = {region: {} for region in REGIONS}
    weights = {(t, r): SHARES[t] * rng.choice((0.2, 0.6, 1.0, 1.6)) for t in SHARES for r in REGIONS}
    whole = sum(weights.values())
    exact = {key: num_nodes * w / whole for key, w in weights.items()}
    floor = {key: int(v) for key, v in exact.items()}
    for key in sorted(exact, key=lambda k: floor[k] - exact[k])[: num_nodes - sum(floor.values())]:
        floor[key] += 1
    for (t, r), n in floor.items():
        if n:
            found[r][t] = n
    return found


def document(num_nodes: int) -> dict[str, Any]:
    nodes = []
    for region, types in counts(num_nodes).items():
        for kind, count in types.items():
            gpu, _, number = kind.partition("x") if kind[-2] == "x" else (kind, "", "")
            nodes.append({"gpu": gpu, "gpus": int(number or 1), "count": count, "region": region,
                          "name": f"{region}-{kind.lower()}-{{i}}", "nic": "10 Gbit/s"})
    rules = []
    rng = Random("links")
    for n, a in enumerate(REGIONS):
        for b in REGIONS[n + 1:]:
            rules.append({"between": [a, b], "bandwidth": "500 Mbit/s",
                          "latency": f"{rng.randrange(20, 81)} ms"})
    return {
        "schema": 1,
        "name": f"large{num_nodes}",
        "llm": {"config": "llama2-70b"},
        "cluster": {
            "coordinator": {"nic": "80 Gbit/s", "region": "virginia"},
            "nodes": nodes,
            "network": {"within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}, "regions": rules},
        },
        "workload": {"mode": "offline"},
        "run": {"warmup": "60 s", "duration": "300 s"},
    }


def scenario(num_nodes: int, **changes) -> Scenario:
    return Scenario.from_dict(document(num_nodes) | changes)

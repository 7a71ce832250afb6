"""What plans of large clusters reach in a time, on fresh seeds: prints a table, asserts nothing.

    python tests/bench/large.py [126] [420] [1008] [--physics paper|calibrated] [--limit SECONDS]
        [--duration SECONDS] [--jobs N] [--seeds N]

Ten machine types in five regions, with other counts in each: 10 Gbit/s within a region, 500 Mbit/s
and 20 to 80 ms between regions; LLaMA-2 70B, offline, the balanced split, and no limit on the
shares of nodes. Physics `paper` goes with `published` scheduling, `calibrated` with `tuned`.
Rivals: the placement of greatest flow, `replicas`, and tiles as a person would make them: each
region cut into tiles of 20 nodes with the same mix, each with the placement of its greatest flow.
The memory is the greatest of this process, and of one of its children.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from random import Random
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import fmean
from typing import Any

from helixsim import plan, simulate
from helixsim.metrics.summary import figures_of
from helixsim.placement.placement import Placement
from helixsim.planner.max_flow.optimise import optimise
from helixsim.planner.problem import planning_problem
from helixsim.planner.search import FlowSearch
from helixsim.planner.simulated.alike import SIMILAR, alike_nodes
from helixsim.planner.tiles.assembly import Assembly, assembled
from helixsim.planner.tiles.cuts import cuts
from helixsim.planner.tiles.parts import PartPlan
from helixsim.scenario.resolved import Scenario

SHOWN = ("decode_tokens_per_s", "decode_latency_s.mean", "prompt_latency_s.mean")
LIMIT_S = {126: 600.0, 420: 1200.0, 1008: 1200.0}
FRESH = 1000
"""First of the seeds that no search uses."""
REGIONS = ("virginia", "oregon", "frankfurt", "mumbai", "tokyo")
MIX = {
    ("A100-40-PCIe", 1): 6,
    ("A100-80-SXM", 1): 4,
    ("V100-16-SXM", 1): 12,
    ("L4", 1): 16,
    ("L4", 2): 12,
    ("T4", 1): 22,
    ("T4", 4): 10,
    ("A10G", 1): 16,
    ("L40S", 1): 6,
    ("RTX-3090", 1): 20,
}
"""GPU and how many of them a machine has -> about how many of 124 machines are such."""
HAND_TILE_NODES = 20


def machine_counts(num_nodes: int) -> dict[tuple[str, tuple[str, int]], int]:
    """(Region, machine) -> number of such machines; some are rare in a region, some frequent."""
    rng = Random(f"large/{num_nodes}")
    weights = {
        (region, kind): share * rng.choice((0.2, 0.6, 1.0, 1.6))
        for kind, share in MIX.items()
        for region in REGIONS
    }
    scale = num_nodes / sum(weights.values())
    found = {key: int(scale * weight) for key, weight in weights.items()}
    by_rest = sorted(weights, key=lambda key: found[key] - scale * weights[key])
    for key in by_rest[: num_nodes - sum(found.values())]:
        found[key] += 1
    return found


def large(num_nodes: int, physics: str, duration_s: float) -> Scenario:
    """The cluster with this number of nodes."""
    nodes: list[dict[str, Any]] = [
        {
            "gpu": gpu,
            "gpus": gpus,
            "count": count,
            "region": region,
            "name": f"{region}-{gpu.lower()}x{gpus}-{{i}}",
            "nic": "10 Gbit/s",
        }
        for (region, (gpu, gpus)), count in machine_counts(num_nodes).items()
        if count
    ]
    rng = Random("latencies")
    across = [
        {
            "between": [one, other],
            "bandwidth": "500 Mbit/s",
            "latency": f"{rng.randrange(20, 81)} ms",
        }
        for number, one in enumerate(REGIONS)
        for other in REGIONS[number + 1 :]
    ]
    preset = "published" if physics == "paper" else "tuned"
    return Scenario.from_dict(
        {
            "name": f"large{num_nodes}",
            "llm": {"config": "llama2-70b"},
            "cluster": {
                "coordinator": {"nic": "80 Gbit/s", "region": REGIONS[0]},
                "nodes": nodes,
                "network": {
                    "within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"},
                    "regions": across,
                },
            },
            "scheduler": {"preset": preset, "flow_split": "balanced", "min_flow_share": 0.0},
            "workload": {"mode": "offline"},
            "physics": physics,
            "run": {"warmup": "60 s", "duration": f"{duration_s:g} s"},
        }
    )


def hand_tiles(scenario: Scenario) -> Placement:
    """Tiles of 20 nodes with the same mix in each region, each with its greatest flow."""
    problem = planning_problem(scenario)
    alike = alike_nodes(problem, SIMILAR)
    chosen, plans = [], {}
    for region in REGIONS:
        site = [n for n, node in enumerate(problem.cluster.nodes) if node.region == region]
        cut = cuts(problem, alike, site, (HAND_TILE_NODES,))[0]
        chosen.append(cut)
        for tile in cut.tiles:
            if tile.key not in plans:
                search = FlowSearch(problem.restricted(tile.nodes))
                optimise(search)
                plans[tile.key] = PartPlan((tuple(sorted(search.ranges.items())),), search.value)
    return assembled(problem, Assembly("by hand", tuple(chosen)), plans)


def run_once(scenario: Scenario, task: tuple[Placement, int]) -> dict[str, float]:
    """Figures of a placement with a seed."""
    placement, seed = task
    return figures_of(simulate(replace(scenario, placement=placement), seed=seed).summary, SHOWN)


def report(
    scenario: Scenario, how: str, find: Callable[[], Placement], options: argparse.Namespace
) -> None:
    """Print one row of the table."""
    began = time.monotonic()
    placement = find()
    spent_s = time.monotonic() - began
    tasks = [(placement, FRESH + number) for number in range(options.seeds)]
    with ProcessPoolExecutor(options.jobs) as pool:
        runs = list(pool.map(partial(run_once, scenario), tasks))
    figures = " | ".join(f"{fmean(run[key] for run in runs):.2f}" for key in SHOWN)
    memory = max(getrusage(who).ru_maxrss for who in (RUSAGE_SELF, RUSAGE_CHILDREN)) / 1024
    print(f"| {scenario.name} | {how} | {figures} | {spent_s:.0f} | {memory:.0f} |", flush=True)


def main() -> None:
    """Print the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nodes", nargs="*", type=int, default=[126, 420])
    parser.add_argument("--physics", choices=("paper", "calibrated"), default="paper")
    parser.add_argument("--limit", type=float)
    parser.add_argument("--duration", type=float, default=300.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    print("| cluster | placement | decode tokens/s | decode s | prompt s | seconds | MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for num_nodes in options.nodes:
        scenario = large(num_nodes, options.physics, options.duration)
        limit_s = options.limit or LIMIT_S.get(num_nodes, 1200.0)

        def planned(scenario: Scenario = scenario, limit_s: float = limit_s) -> Placement:
            result = plan(scenario, time_limit_s=limit_s, jobs=options.jobs)
            for each in sorted(result.candidates, key=lambda each: -each.figures[SHOWN[0]]):
                print(f"    {each.label}: {each.figures[SHOWN[0]]:.1f}, {each.seeds} seeds")
            return result.placement

        def by(method: str, scenario: Scenario = scenario) -> Placement:
            return plan(scenario, method=method, objective="flow", time_limit_s=60.0).placement

        report(scenario, "plan", planned, options)
        report(scenario, "flow", partial(by, "optimise"), options)
        report(scenario, "replicas", partial(by, "replicas"), options)
        report(scenario, "hand tiles", partial(hand_tiles, scenario), options)


if __name__ == "__main__":
    main()

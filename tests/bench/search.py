"""What plans by simulation reach in a given time, on fresh seeds: prints a table, asserts nothing.

    python tests/bench/search.py [sixteen-paper] [sixteen-calibrated] [single24] [het42]
        [het42-quick] [geo24]
        [--limit SECONDS] [--jobs N] [--seeds N] [--simple]

All rows use the `published` scheduling with the balanced split. The plan is run again with seeds
that the search has not seen. `--simple` adds a simple search: the best templates, each improved by
a short annealing of the surrogate, then one simulation of each of the twelve best; its CPU time is
printed for comparison.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import fmean

from helixsim import load_scenario, plan, simulate
from helixsim.cluster import COORDINATOR, Cluster, LinkRule, Nic, Node, RuleNetwork, Spread
from helixsim.metrics.summary import figures_of
from helixsim.placement.placement import Placement
from helixsim.planner.objective import Objective
from helixsim.planner.problem import planning_problem
from helixsim.planner.simulated.proposals import Proposer
from helixsim.planner.simulated.templates import best_templates
from helixsim.scenario.resolved import Scenario

SHOWN = ("decode_tokens_per_s", "decode_latency_s.mean", "prompt_latency_s.mean")
SETTINGS = ("scheduler.preset=published", "scheduler.flow_split=balanced")
FRESH = 1000
"""First of the seeds that no search uses."""


@dataclass(frozen=True)
class Row:
    scenario: Callable[[], Scenario]
    target: str
    limit_s: float
    subject_to: tuple[str, ...] = ()


def published(name: str, *settings: str) -> Scenario:
    """The published offline scenario of a cluster."""
    return load_scenario(f"{name}-llama2-70b-helix-offline", [*SETTINGS, *settings])


def sixteen(physics: str) -> Scenario:
    """Four A100 and four L4x2 in one region, eight T4x2 in another: 500 Mbit/s, 20 ms between."""
    scenario = published("single24", f"physics={physics}")
    types = load_scenario("het42-llama2-70b-helix-offline").machine_types
    sample = scenario.cluster.nodes[0]
    nodes: list[Node] = []
    for kind, count, region in (("A100", 4, "near"), ("L4x2", 4, "near"), ("T4x2", 8, "far")):
        nic = Nic(types[kind].nic_bytes_per_s, types[kind].nic_bytes_per_s)
        nodes += [
            replace(sample, name=f"{kind}-{n}", machine_type=kind, nic=nic, region=region)
            for n in range(count)
        ]
    regions = {node.name: node.region for node in nodes} | {COORDINATOR: "near"}
    network = RuleNetwork(
        regions,
        within=LinkRule(Spread(1.25e9), Spread(0.001)),
        across=LinkRule(Spread(62.5e6), Spread(0.02)),
    )
    cluster = Cluster(tuple(nodes), scenario.cluster.front_ends, network)
    run = replace(scenario.run, warmup_s=60.0, duration_s=600.0)
    return replace(scenario, cluster=cluster, machine_types=types, placement=None, run=run)


ROWS = {
    "sixteen-paper": Row(lambda: sixteen("paper"), "495", 45),
    "sixteen-calibrated": Row(lambda: sixteen("calibrated"), "455", 45),
    "single24": Row(lambda: published("single24"), "350 at 1.0 s", 300),
    "het42": Row(lambda: published("het42"), "830 at 0.86 s", 600),
    "het42-quick": Row(
        lambda: published("het42"), "830 at 0.86 s", 600, ("decode_latency_s.mean<=0.86",)
    ),
    "geo24": Row(lambda: published("geo24"), "235", 600),
}


def cpu_s() -> float:
    """CPU seconds of this process and of the ended ones that it has started."""
    return sum(getrusage(who).ru_utime for who in (RUSAGE_SELF, RUSAGE_CHILDREN))


def run_once(scenario: Scenario, task: tuple[Placement, int]) -> dict[str, float]:
    """Figures of a placement with a seed."""
    placement, seed = task
    return figures_of(simulate(replace(scenario, placement=placement), seed=seed).summary, SHOWN)


def simple_search(scenario: Scenario) -> Placement:
    """The best of twelve: templates, improved on the surrogate, simulated once."""
    problem = planning_problem(scenario)
    proposer = Proposer(scenario, problem, Objective())
    found = {}
    for number, start in enumerate(best_templates(proposer, Random(0))):
        for proposal in proposer.anneal(dict(start.ranges), Random(number), 2000)[:2]:
            found[proposal.ranges] = proposal.score
    best = sorted(found, key=lambda ranges: -found[ranges])[:12]
    placements = [problem.placement(dict(ranges)) for ranges in best]
    rates = [run_once(scenario, (each, scenario.run.seed))[SHOWN[0]] for each in placements]
    return placements[rates.index(max(rates))]


def report(
    name: str,
    scenario: Scenario,
    how: str,
    placement: Placement,
    spent: str,
    options: argparse.Namespace,
) -> None:
    """Print one row of the table."""
    tasks = [(placement, FRESH + number) for number in range(options.seeds)]
    with ProcessPoolExecutor(options.jobs) as pool:
        runs = list(pool.map(partial(run_once, scenario), tasks))
    figures = " | ".join(f"{fmean(run[key] for run in runs):.3f}" for key in SHOWN)
    print(f"| {name} | {how} | {figures} | {ROWS[name].target} | {spent} |", flush=True)


def main() -> None:
    """Print the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []])
    parser.add_argument("--limit", type=float)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--simple", action="store_true")
    options = parser.parse_args()
    print("| cluster | search | decode tokens/s | decode s | prompt s | target | time |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.rows or ROWS:
        scenario = ROWS[name].scenario()
        limit_s = options.limit or ROWS[name].limit_s
        before, began = cpu_s(), time.monotonic()
        result = plan(
            scenario,
            time_limit_s=limit_s,
            jobs=options.jobs,
            subject_to=ROWS[name].subject_to,
        )
        spent = f"{time.monotonic() - began:.0f} s, {cpu_s() - before:.0f} CPU s"
        report(name, scenario, "plan", result.placement, spent, options)
        if options.simple:
            before = cpu_s()
            placement = simple_search(scenario)
            report(name, scenario, "simple", placement, f"{cpu_s() - before:.0f} CPU s", options)


if __name__ == "__main__":
    main()

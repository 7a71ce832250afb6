"""What the optimiser reaches and how fast: prints a table, asserts nothing.

    python tests/bench/plan.py [single24] [geo24] [geo24-pruned] [het42] [het42-pruned]
                               [uniform126] [uniform420] [uniform1008] [uneven126]
                               [--seeds N] [--limit SECONDS]

Without names, all of them. `seconds` is when the best placement was found, `all` when the search
ended; wall time, which depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from helixsim import load_scenario
from helixsim.cluster import COORDINATOR, Cluster, FrontEnd, LinkRule, RuleNetwork, Spread
from helixsim.planner.max_flow.optimise import optimise
from helixsim.planner.problem import PlanningProblem, planning_problem
from helixsim.planner.search import FlowSearch
from helixsim.scenario.resolved import Scenario


@dataclass(frozen=True)
class Row:
    problem: Callable[[], PlanningProblem]
    target: str
    limit_s: float


def published(name: str, keep_links: int | None = None) -> PlanningProblem:
    scenario = load_scenario(f"{name}-llama2-70b-helix-offline")
    return planning_problem(scenario, keep_links=keep_links)


def copies(times: int, *, num_regions: int = 1) -> PlanningProblem:
    """The machines of het42 several times, in regions with 100 Mbit/s between them."""
    scenario: Scenario = load_scenario("het42-llama2-70b-helix-offline")
    nodes = tuple(
        replace(node, name=f"{node.name}-{i}", region=f"region{(7 * j + 3 * i) % num_regions}")
        for i in range(times)
        for j, node in enumerate(scenario.cluster)
    )
    spread = 0.1 if num_regions > 1 else 0.0
    within, across = (
        LinkRule(Spread(mean, spread * mean), Spread(latency))
        for mean, latency in ((1e9, 0.001), (12.5e6, 0.05))
    )
    regions = {node.name: node.region for node in nodes}
    network = RuleNetwork(regions | {COORDINATOR: "region0"}, within=within, across=across)
    cluster = Cluster(nodes, (FrontEnd(scenario.cluster.coordinator_nic),), network)
    return planning_problem(replace(scenario, cluster=cluster, placement=None))


ROWS = {
    "single24": Row(lambda: published("single24"), "2045.6, proved", 10),
    "geo24": Row(lambda: published("geo24"), "1754.3", 30),
    "geo24-pruned": Row(lambda: published("geo24", 12), "1754.3", 30),
    "het42": Row(lambda: published("het42"), "5970", 60),
    "het42-pruned": Row(lambda: published("het42", 12), "5740", 60),
    "uniform126": Row(lambda: copies(3), "gap 1 %", 10),
    "uniform420": Row(lambda: copies(10), "gap 1 %", 20),
    "uniform1008": Row(lambda: copies(24), "gap 1 %", 30),
    "uneven126": Row(lambda: copies(3, num_regions=3), "gap 5 %", 60),
}


def measure(name: str, row: Row, seed: int, limit_s: float) -> str:
    begin = time.perf_counter()
    problem = row.problem()
    start = time.perf_counter()
    search = FlowSearch(
        problem,
        seed=seed,
        elapsed_s=lambda: time.perf_counter() - start,
        time_limit_s=limit_s,
    )
    optimise(search)
    found = search.trace[-1].seconds if search.trace else float("nan")
    cells = [
        name,
        str(seed),
        f"{search.value:.2f}",
        row.target,
        f"{search.bound:.2f}",
        "proved" if search.optimal else f"{100 * search.gap:.2f} %",
        f"{found:.1f}",
        f"{search.elapsed_s():.1f}",
        f"{start - begin:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which rows; all by default")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0 on")
    parser.add_argument("--limit", type=float, help="seconds; instead of each row's own")
    options = parser.parse_args()
    print("| cluster | seed | tokens/s | target | bound | gap | seconds | all | set-up |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.rows or ROWS:
        for seed in range(options.seeds):
            row = ROWS[name]
            print(measure(name, row, seed, options.limit or row.limit_s), flush=True)


if __name__ == "__main__":
    main()

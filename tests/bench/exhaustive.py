"""Plans of small random clusters beside the best of all placements: prints a table.

    PYTHONPATH=.:tests python tests/bench/exhaustive.py [--clusters N] [--first SEED]
        [--layers N] [--jobs N]

Six machines of three types in one or two regions, an LLM of three layers, offline. Every placement
is simulated (alike nodes exchanged count once), and the plan is compared with the best. The search
has no time limit and one seed, so that both see the same requests.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from small_clusters import RATE, all_placements, random_cluster, served

from helixsim import plan
from helixsim.planner.problem import planning_problem
from helixsim.planner.simulated.search import Effort


def compare(seed: int, num_layers: int, jobs: int) -> float:
    """Print one row; the plan's share of the optimum."""
    scenario = random_cluster(seed, num_layers=num_layers)
    problem = planning_problem(scenario)
    began = time.process_time()
    result = plan(scenario, effort=Effort(num_seeds=1))
    plan_s = time.process_time() - began
    placements = list(map(problem.placement, all_placements(problem)))
    with ProcessPoolExecutor(jobs) as pool:
        rates = list(pool.map(partial(served, scenario), placements, chunksize=16))
    best = max(rates)
    assert result.simulated is not None
    found = result.simulated[RATE]
    better = sum(rate > found for rate in rates)
    print(
        f"| {seed} | {len(placements)} | {best:.2f} | {found:.2f} | {found / best:.4f} | {better} "
        f"| {len(result.candidates)} | {plan_s:.1f} |",
        flush=True,
    )
    return found / best


def main() -> None:
    """Compare clusters one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clusters", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    print("| cluster | placements | best | plan | share | better | simulated | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    shares = [
        compare(options.first + number, options.layers, options.jobs)
        for number in range(options.clusters)
    ]
    good = sum(share >= 0.99 for share in shares)
    print(f"at least 99 % of the optimum: {good} of {len(shares)}; worst {min(shares):.4f}")


if __name__ == "__main__":
    main()

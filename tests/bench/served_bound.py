"""Bounds on served tokens against simulations: thousands of random cases, and published clusters.

    python tests/bench/served_bound.py cases [--first 0] [--cases 2000] [--jobs 2]
    python tests/bench/served_bound.py clusters [--only single24] [--seconds 300]

`cases` simulates random small clusters with random placements, physics and scheduling, and fails if
one serves more than a bound. `clusters` prints what published placements serve on published
clusters, beside their bounds and their maximum flow.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from served_cases import Held, held_against_bounds, random_case

from helixsim import load_scenario, simulate
from helixsim.planner.max_flow.upper_bound import upper_bound
from helixsim.planner.problem import planning_problem
from helixsim.planner.served_bound import served_bound, served_bound_of_placement

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
CLUSTERS = {
    "single24": ("single24-llama2-70b-helix-offline", ("petals", "swarm", "helix")),
    "het42": ("het42-llama2-70b-helix-offline", ("swarm", "helix")),
    "geo24": ("geo24-llama2-70b-helix-offline", ("helix", "helix-scheduling-study")),
}
SETTINGS: dict[str, list[str]] = {
    "paper, published": [],
    "paper, tuned": ["scheduler.preset=tuned"],
    "calibrated, published": ["physics=calibrated"],
    "calibrated, tuned": ["physics=calibrated", "scheduler.preset=tuned"],
}


def one_case(seed: int) -> tuple[int, Held | None]:
    """A random case by its seed."""
    return seed, held_against_bounds(random_case(seed))


def cases(first: int, number: int, jobs: int) -> int:
    """Hold random cases against the bounds; the exit status."""
    began, shares, cluster_shares, over = time.monotonic(), [], [], 0
    with ProcessPoolExecutor(jobs) as pool:
        for seed, found in pool.map(one_case, range(first, first + number), chunksize=4):
            if found is None:
                continue
            shares.append(found.decodes_per_s / found.placement_bound)
            cluster_shares.append(found.decodes_per_s / found.cluster_bound)
            if max(shares[-1], cluster_shares[-1]) > 1:
                over += 1
                print(f"seed {seed} serves more than its bound: {found}", flush=True)
            if len(shares) % 100 == 0:
                print(f"{len(shares)} cases, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(shares)} cases with enough requests; {over} above a bound")
    print("served / bound, quantiles " + ", ".join(f"{share:.0%}" for share in QUANTILES))
    for name, found in (("of the placement", shares), ("of the cluster", cluster_shares)):
        found.sort()
        values = (found[int(share * (len(found) - 1))] for share in QUANTILES)
        print(f"  {name:<17} " + "  ".join(f"{value:.3f}" for value in values))
    return int(over > 0)


def clusters(seconds: float, only: str | None) -> None:
    """Print what placements of published clusters serve, and bounds."""
    print("cluster    placement               setting                 served   placement's bound")
    for cluster, (name, placements) in CLUSTERS.items():
        if only not in (None, cluster):
            continue
        for setting, values in SETTINGS.items():
            base = load_scenario(name, values)
            for placement in placements:
                file = f"placements/{cluster}-llama2-70b-{placement}.yaml"
                scenario = load_scenario(
                    name,
                    [*values, f"placement.file={file}", f"run.duration={seconds + 60:g} s"],
                )
                bound = served_bound_of_placement(scenario).decode_tokens_per_s
                served = simulate(scenario).summary["decode_tokens_per_s"]
                print(
                    f"{cluster:<10} {placement:<23} {setting:<23}"
                    f"{served:7.1f}  {bound:7.1f}  ({served / bound:.0%})",
                    flush=True,
                )
            problem = planning_problem(base, partial_inference=True)
            most = served_bound(base, problem).decode_tokens_per_s
            print(
                f"{cluster:<10} {'any placement':<23} {setting:<23}{'':7}  {most:7.1f}", flush=True
            )
        flow = upper_bound(planning_problem(base)).tokens_per_s
        print(f"{cluster:<10} maximum flow of any placement: {flow:.1f} tokens/s", flush=True)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cases", "clusters"))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--only", choices=tuple(CLUSTERS))
    options = parser.parse_args()
    if options.what == "cases":
        return cases(options.first, options.cases, options.jobs)
    clusters(options.seconds, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The paper's comparisons of methods, under both physics: prints tables, asserts nothing.

    python tests/bench/paper.py [TABLE ...] [--seeds N] [--jobs N]

Tables: single24, llama30b, georivals, geo24, het42; all of them by default.

Mean decode throughput over seeds with 95 % confidence intervals (Student's t), what was published
for the published simulator (seed 0), and the factor of Helix over each method, seed by seed. Runs
are those of the published figures: offline 60 s of warm-up and 600 s measured, online 1,800 s.
Progress goes to standard error. It needs no extra.
"""

from __future__ import annotations

import argparse
import sys
from statistics import mean, stdev

from geo_rivals import RIVAL, rival
from joblib import Parallel, delayed
from simulate import published_files

from helixsim import load_scenario, simulate
from helixsim.studies.student_t import t_quantile

PARTS = ("a100", "l4", "t4")
S24, S30 = "single24-llama2-70b", "single24-llama1-30b"
GEO, HET = "geo24-llama2-70b", "het42-llama2-70b"

# Method -> scenarios whose throughputs add up, and the published figure.
Methods = dict[str, tuple[list[str], float | None]]
COMPARISONS: dict[str, dict[str, Methods]] = {
    "single24": {
        "LLaMA-2 70B, 24 nodes, offline": {
            "Helix": ([f"{S24}-helix-offline"], 252.1),
            "Swarm": ([f"{S24}-swarm-offline"], 124.7),
            "separate pipelines": ([f"{S24}-separate-{p}-offline" for p in PARTS], 124.3),
        },
        "LLaMA-2 70B, 24 nodes, online": {
            "Helix": ([f"{S24}-helix-online"], 141.6),
            "Swarm": ([f"{S24}-swarm-online"], 69.8),
            "separate pipelines": ([f"{S24}-separate-{p}-online" for p in PARTS], 84.0),
        },
    },
    "llama30b": {
        "LLaMA-1 30B, 24 nodes, offline": {
            "Helix": ([f"{S30}-helix-{p}-offline" for p in PARTS], 339.6),
            "Swarm": ([f"{S30}-swarm-offline"], 151.6),
        },
    },
    "georivals": {
        f"LLaMA-2 70B, three regions, {mode}": {
            "Helix": ([f"{GEO}-helix-{mode}"], 98.0 if mode == "offline" else None),
            "Swarm": ([f"{RIVAL}swarm {mode}"], None),
            "separate pipelines": ([f"{RIVAL}separate-{p} {mode}" for p in PARTS], None),
        }
        for mode in ("offline", "online")
    },
    "geo24": {
        "Scheduling on one placement, three regions, offline": {
            "Helix": ([f"{GEO}-study-maxflow-offline"], 99.8),
            "Swarm": ([f"{GEO}-study-swarm-offline"], 81.7),
            "random": ([f"{GEO}-study-random-offline"], 87.4),
            "shortest queue": ([f"{GEO}-study-shortest-queue-offline"], 83.6),
        },
    },
    "het42": {
        "LLaMA-2 70B, 42 nodes of seven types, offline": {
            "Helix": ([f"{HET}-helix-offline"], 645.6),
            "Swarm": ([f"{HET}-swarm-offline"], 473.2),
        },
    },
}


def figure(names: list[str], physics: str, seed: int) -> float:
    """Decode tokens per second of a method: its scenarios add up."""
    overrides = [*published_files(), f"physics={physics}"]
    scenarios = [
        rival(name, overrides) if name.startswith(RIVAL) else load_scenario(name, overrides)
        for name in names
    ]
    return sum(
        simulate(scenario, seed=seed).summary["decode_tokens_per_s"] for scenario in scenarios
    )


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % confidence interval."""
    if len(values) < 2:
        return f"{values[0]:.4g}"
    half = t_quantile(len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.4g} ± {half:.2g}"


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", choices=[*COMPARISONS, []])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    for table in options.tables or COMPARISONS:
        for title, methods in COMPARISONS[table].items():
            cells = [
                (method, physics, seed)
                for method in methods
                for physics in ("paper", "calibrated")
                for seed in range(options.seeds)
            ]
            found = []
            runs = Parallel(n_jobs=options.jobs, return_as="generator")(
                delayed(figure)(methods[method][0], physics, seed)
                for method, physics, seed in cells
            )
            for value in runs:
                found.append(value)
                progress = f"{title}: {len(found)} of {len(cells)} runs"
                print(progress, file=sys.stderr, flush=True)
            values = dict(zip(cells, found, strict=True))
            print(f"\n{title}\n")
            print("| method | published | paper | Helix over it | calibrated | Helix over it |")
            print("| --- | --- | --- | --- | --- | --- |")
            for method, (_, published) in methods.items():
                row = f"| {method} | {'-' if published is None else published} "
                for physics in ("paper", "calibrated"):
                    own = [values[method, physics, seed] for seed in range(options.seeds)]
                    helix = [values["Helix", physics, seed] for seed in range(options.seeds)]
                    factors = [a / b for a, b in zip(helix, own, strict=True)]
                    over = "" if method == "Helix" else interval(factors)
                    row += f"| {interval(own)} | {over} "
                print(row + "|", flush=True)


if __name__ == "__main__":
    main()

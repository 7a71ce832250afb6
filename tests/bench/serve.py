"""What placements serve, planned by flow and by simulation: prints tables, asserts nothing.

    python tests/bench/serve.py [misleading] [estimate] [plan] [--cluster NAME ...]
        [--time-limit SECONDS] [--split published|balanced] [--seeds N] [--jobs N]

Offline runs of LLaMA-2 70B with the paper's physics, 600 s after a warm-up of 60 s, means over
seeds. With the reference folder, lengths are those of the published runs; without, the built-in
ones. The published placement is what the scenario has.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from helixsim import load_scenario, plan, simulate
from helixsim.control.control_plane import followed_flow
from helixsim.metrics.summary import figures_of
from helixsim.placement.placement import Placement
from helixsim.planner.figures import OBJECTIVE_FIGURES
from helixsim.planner.problem import planning_problem
from helixsim.planner.simulated.search import Effort
from helixsim.planner.simulated.surrogate import Surrogate
from helixsim.scenario.resolved import Scenario

ROOT = Path(__file__).parents[2]
REFERENCE = Path(os.environ.get("HELIX_REFERENCE_DATA", ROOT.parent / "shared" / "reference"))
CAPS = {"single24": (9, 10, 12, 14, 16, 18, 22, None), "geo24": (10, 11, 12, 13, 14, None)}
LATENCIES = {
    "single24": ("decode_latency_s.mean<=1.25",),
    "geo24": ("decode_latency_s.mean<=2.47", "prompt_latency_s.mean<=8.65"),
    "het42": ("decode_latency_s.mean<=1.05", "prompt_latency_s.mean<=2.2"),
}
"""Limits under which `plan` searches; for geo24 and het42 those of the published placements."""
SHOWN = ("decode_tokens_per_s", "decode_latency_s.mean", "prompt_latency_s.mean")


def scenario_of(cluster: str, split: str = "published") -> Scenario:
    """The published offline scenario of a cluster."""
    lengths = REFERENCE / "traces" / "azure_conv_lengths.csv.gz"
    changes = [f"scheduler.flow_split={split}"]
    if lengths.is_file():
        changes.append(f"workload.lengths={lengths}")
    return load_scenario(ROOT / "scenarios" / f"{cluster}-llama2-70b-helix-offline.yaml", changes)


def _run(task: tuple[str, str, Placement, int]) -> dict[str, float]:
    cluster, split, placement, seed = task
    scenario = replace(scenario_of(cluster, split), placement=placement)
    return figures_of(simulate(scenario, seed=seed).summary, OBJECTIVE_FIGURES)


def measured(
    cluster: str, placements: list[Placement], arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """Means over seeds of full runs."""
    tasks = [
        (cluster, arguments.split, placement, seed)
        for placement in placements
        for seed in range(arguments.seeds)
    ]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        found = list(pool.map(_run, tasks))
    count = arguments.seeds
    return [
        {name: fmean(run[name] for run in found[i : i + count]) for name in SHOWN}
        for i in range(0, len(found), count)
    ]


def misleading(cluster: str, arguments: argparse.Namespace) -> None:
    """The best flows under caps on stages, and what they serve."""
    if cluster not in CAPS:
        return
    scenario = scenario_of(cluster)
    problem = planning_problem(scenario)
    assert scenario.placement is not None
    rows = [("published", problem.flow(scenario.placement).tokens_per_s, scenario.placement)]
    for cap in CAPS[cluster]:
        result = plan(scenario, objective="flow", max_stages=cap, time_limit_s=60)
        name = "best flow" if cap is None else f"best flow, at most {cap} stages"
        rows.append((name, result.max_flow_tokens_per_s, result.placement))
    figures = measured(cluster, [row[2] for row in rows], arguments)
    tokens = 1 + 763 / 232  # prompt and output tokens for each output token
    print(f"\n{cluster}, flow_split {arguments.split}, mean of {arguments.seeds} seeds")
    print(
        "| placement | max flow tokens/s | decode tokens/s | mean decode latency s "
        "| mean prompt latency s | served/flow |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for (name, flow, _), served in zip(rows, figures, strict=True):
        decode, latency, prompt = (served[key] for key in SHOWN)
        share = decode * tokens / flow
        print(
            f"| {name} | {flow:.0f} | {decode:.1f} | {latency:.2f} | {prompt:.2f} | {share:.2f} |"
        )


def estimate(cluster: str, arguments: argparse.Namespace) -> None:
    """The estimate beside simulations."""
    scenario = scenario_of(cluster, arguments.split)
    problem = planning_problem(scenario)
    estimator = Surrogate(scenario, problem)
    assert scenario.placement is not None
    rows = [("published", scenario.placement)]
    for cap in CAPS.get(cluster, (14, 18, 24)):
        result = plan(scenario, objective="flow", max_stages=cap, time_limit_s=30)
        rows.append((f"best flow, cap {cap}", result.placement))
    figures = measured(cluster, [row[1] for row in rows], arguments)
    print(f"\n{cluster}, flow_split {arguments.split}: estimated / simulated")
    print("| placement | decode tokens/s | mean decode latency s | mean prompt latency s |")
    print("| --- | --- | --- | --- |")
    for (name, placement), served in zip(rows, figures, strict=True):
        topology = problem.topology(placement)
        found = estimator.of_flow(topology, followed_flow(scenario, topology))
        print(
            f"| {name} | {found.decode_tokens_per_s:.0f} / {served[SHOWN[0]]:.0f} "
            f"| {found.decode_latency_s:.2f} / {served[SHOWN[1]]:.2f} "
            f"| {found.prompt_latency_s:.2f} / {served[SHOWN[2]]:.2f} |"
        )


def planned(cluster: str, arguments: argparse.Namespace) -> None:
    """Plans by simulation, with the front."""
    scenario = scenario_of(cluster, arguments.split)
    limits = arguments.subject_to or LATENCIES[cluster]
    result = plan(
        scenario,
        subject_to=limits,
        time_limit_s=arguments.time_limit,
        jobs=arguments.jobs,
        effort=Effort(num_seeds=arguments.seeds),
    )
    print(
        f"\n{cluster}, flow_split {arguments.split}, {', '.join(limits)}: {result.seconds:.0f} s, "
        f"{len(result.candidates)} candidates; {'; '.join(result.notes)}"
    )
    print(
        "| placement | max flow tokens/s | stages | decode tokens/s | mean decode latency s "
        "| mean prompt latency s |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    own = [each for each in result.candidates if each.label == "own"]
    for each in [*own, *result.front]:
        name = "published" if each.label == "own" else "front"
        figures = " | ".join(f"{each.figures[key]:.2f}" for key in SHOWN)
        print(
            f"| {'**plan**' if each.chosen else name} | {each.max_flow_tokens_per_s:.0f} "
            f"| {each.stages} "
            f"| {figures} |"
        )
    again = measured(cluster, [result.placement], arguments)[0]
    print("the plan, simulated again: " + ", ".join(f"{k} {again[k]:.3f}" for k in SHOWN))


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tables", nargs="*", default=["misleading", "estimate", "plan"])
    parser.add_argument("--cluster", nargs="+", default=["single24", "geo24", "het42"])
    parser.add_argument("--time-limit", type=float, default=300.0)
    parser.add_argument("--split", default="published")
    parser.add_argument("--subject-to", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    tables = {"misleading": misleading, "estimate": estimate, "plan": planned}
    for table in arguments.tables:
        for cluster in arguments.cluster:
            tables[table](cluster, arguments)


if __name__ == "__main__":
    main()

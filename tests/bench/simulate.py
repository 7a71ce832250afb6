"""Speed and memory of the simulator: prints tables, asserts nothing.

    python tests/bench/simulate.py [speed] [memory] [growth] [start-up] [large] [--repeat N]

Without names, all of them but `large`, which takes most of an hour. CPU times are medians; beside
them stands what they are in bare reused SimPy events, measured in the same process just before,
because machines differ and
their speed changes under one's feet. `speed` needs the reference folder only to run with the
published lengths; without it, the built-in ones are used.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from heapq import heappush
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import simpy

from helixsim import load_scenario
from helixsim.cluster import COORDINATOR, FrontEnd, Link, Nic
from helixsim.models.simulation import Simulation
from helixsim.placement.placement import Placement
from helixsim.scenario.resolved import Scenario

ROOT = Path(__file__).parents[2]
REFERENCE = Path(os.environ.get("HELIX_REFERENCE_DATA", ROOT.parent / "shared" / "reference"))
PUBLISHED_CPU_S = 626.0
"""What the published simulator takes for single24-llama2-70b-helix-offline, at best."""


def bare_event_us(count: int = 200_000) -> float:
    """CPU time of one reused event in plain SimPy, in microseconds."""
    environment = simpy.Environment()
    event = simpy.Event(environment)
    event._ok, event._value = True, None
    left = count

    def again(_: simpy.Event) -> None:
        nonlocal left
        left -= 1
        if left:
            event.callbacks = callbacks
            heappush(environment._queue, (environment._now + 1.0, 1, left, event))

    callbacks = [again]
    event.callbacks = callbacks
    heappush(environment._queue, (0.0, 1, 0, event))
    start = time.process_time()
    environment.run()
    return (time.process_time() - start) / count * 1e6


def published_files() -> list[str]:
    """Overrides that let lengths and arrivals be drawn as in the published runs."""
    traces = REFERENCE / "traces"
    if not traces.is_dir():
        return []
    return [f"workload.lengths={traces / 'azure_conv_lengths.csv.gz'}"]


def speed(repeat: int) -> None:
    """CPU time of whole runs, from the first event to the last."""
    print("| scenario | simulated | CPU s | bare SimPy events | us per decode token |")
    print("| --- | --- | --- | --- | --- |")
    for name in (
        "single24-llama2-70b-helix-offline",
        "single24-llama2-70b-helix-online",
        "single24-llama2-70b-swarm-offline",
        "het42-llama2-70b-helix-offline",
        "geo24-llama2-70b-helix-offline",
        "geo24-llama2-70b-study-random-offline",
    ):
        arrivals = REFERENCE / "traces" / "azure_conv_arrivals_per_3s.csv"
        online = [f"workload.arrivals={arrivals}"] if "online" in name and arrivals.exists() else []
        scenario = load_scenario(name, [*published_files(), *online])
        times, ratios = [], []
        for _ in range(repeat):
            bare = bare_event_us()
            simulation = Simulation(scenario)
            start = time.process_time()
            simulation.run()
            times.append(time.process_time() - start)
            ratios.append(times[-1] / bare * 1e6)
        cpu, decodes = median(times), simulation.recorder.num_decode_tokens
        print(
            f"| {name} | {scenario.run.duration_s:g} s | {cpu:.2f} | {median(ratios) / 1e6:.1f} M "
            f"| {cpu / decodes * 1e6:.1f} |",
            flush=True,
        )
        if name == "single24-llama2-70b-helix-offline":
            print(
                f"|   (published simulator, at best) | | {PUBLISHED_CPU_S:g} "
                f"| {PUBLISHED_CPU_S / cpu:.0f} x | |"
            )


class _Uniform:
    """One link like every other between any two machines."""

    def link(self, source: str, target: str) -> Link | None:
        return None if source == target else Link(source, target, 1e9, 0.001)


def grown(base: Scenario, factor: int, duration_s: float) -> Scenario:
    """`factor` copies of a cluster behind one coordinator, with as much load for each."""
    nodes, layers, links = [], {}, []
    assert base.placement is not None and base.placement.links is not None
    for copy in range(factor):
        nodes += [replace(node, name=f"{node.name}_{copy}") for node in base.cluster]
        layers |= {f"{name}_{copy}": held for name, held in base.placement.layers.items()}
        links += [
            tuple(end if end == COORDINATOR else f"{end}_{copy}" for end in pair)
            for pair in base.placement.links
        ]
    nic = base.cluster.coordinator_nic
    return replace(
        base,
        cluster=replace(
            base.cluster,
            nodes=tuple(nodes),
            network=_Uniform(),
            front_ends=(
                FrontEnd(Nic(nic.inbound_bytes_per_s * factor, nic.outbound_bytes_per_s * factor)),
            ),
        ),
        placement=Placement(layers=layers, links=tuple(links)),
        # With more than twenty nodes behind the coordinator, each has less than 5 % of its flow.
        scheduler=replace(base.scheduler, min_flow_share=0.0),
        workload=replace(base.workload, mean_tokens_per_s=base.workload.mean_tokens_per_s * factor),
        run=replace(base.run, duration_s=duration_s),
    )


def growth(repeat: int) -> None:
    """Cost of a decode token as the cluster grows at the same load per node."""
    base = load_scenario("single24-llama2-70b-helix-online", published_files())
    print("| nodes | decode tokens | set-up CPU s | run CPU s | us per decode token | hops |")
    print("| --- | --- | --- | --- | --- | --- |")
    for factor in (1, 10, 42):
        scenario = grown(base, factor, 120.0)
        builds, runs = [], []
        for _ in range(repeat if factor < 42 else 1):
            start = time.process_time()
            simulation = Simulation(scenario)
            built = time.process_time()
            simulation.run()
            builds.append(built - start)
            runs.append(time.process_time() - built)
        decodes = simulation.recorder.num_decode_tokens
        active = simulation.coordinator.active
        hops = sum(len(r.route.stages) for r in active) / len(active) if active else 0
        print(
            f"| {24 * factor} | {decodes:,} | {median(builds):.2f} | {median(runs):.2f} "
            f"| {median(runs) / decodes * 1e6:.1f} | {hops:.1f} |",
            flush=True,
        )


def memory(_: int) -> None:
    """Peak memory of the whole process, as a user would start it."""
    print("| command | peak MB |")
    print("| --- | --- |")
    with TemporaryDirectory() as folder:
        for duration in ("660 s", "6600 s"):
            arguments = ["run", "single24-llama2-70b-helix-offline", "--json"]
            arguments += [
                "-o",
                f"{folder}/{duration.split()[0]}",
                "--set",
                f"run.duration={duration}",
            ]
            for override in published_files():
                arguments += ["--set", override]
            code = (
                "import resource, sys\n"
                "from helixsim.cli import app\n"
                f"try: app({arguments!r})\n"
                "except SystemExit as end: assert not end.code\n"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)"
            )
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            figures = json.loads(done.stdout)
            print(
                f"| helixsim run single24-llama2-70b-helix-offline -o ..., {duration}: "
                f"{figures['requests']['completed']} requests | {done.stderr.split()[-1]} |",
                flush=True,
            )


def large(_: int) -> None:
    """1,008 nodes and 100,000 requests, in this process: run it alone for its memory."""
    requests = 100_000
    base = load_scenario("single24-llama2-70b-helix-online", published_files())
    rate = base.workload.mean_tokens_per_s
    assert rate is not None
    mean_tokens = base.workload.mean_prompt_tokens + base.workload.mean_output_tokens
    duration_s = 1.06 * requests * mean_tokens / (42 * rate)  # slots are drawn: some fewer come
    scenario = grown(base, 42, duration_s)
    scenario = replace(scenario, run=replace(scenario.run, sample_interval_s=60.0))
    start = time.process_time()
    result = Simulation(scenario).run()
    spent_s = time.process_time() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    counts = result.summary["requests"]
    print("| nodes | simulated s | requests | completed | CPU s | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {len(scenario.cluster)} | {duration_s:.0f} | {counts['arrived']:,} "
        f"| {counts['completed']:,} | {spent_s:.0f} | {peak_mb} |",
        flush=True,
    )


def start_up(repeat: int) -> None:
    """Wall time of commands that should come at once."""
    print("| command | wall s |")
    print("| --- | --- |")
    for command in (
        ["--help"],
        ["validate", "quickstart"],
        ["validate", "geo24-llama2-70b-helix-offline"],
    ):
        times = []
        for _ in range(max(repeat, 5)):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "helixsim", *command], capture_output=True, check=True
            )
            times.append(time.perf_counter() - start)
        print(f"| helixsim {' '.join(command)} | {median(times):.2f} |", flush=True)


TABLES = {"speed": speed, "memory": memory, "growth": growth, "start-up": start_up}
ONLY_ASKED_FOR = {"large": large}


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tables", nargs="*", choices=[*TABLES, *ONLY_ASKED_FOR, []], help="which; by default all"
    )
    parser.add_argument("--repeat", type=int, default=5, help="runs to take the median of")
    options = parser.parse_args()
    for name in options.tables or TABLES:
        print(f"\n## {name}\n")
        (TABLES | ONLY_ASKED_FOR)[name](options.repeat)


if __name__ == "__main__":
    main()

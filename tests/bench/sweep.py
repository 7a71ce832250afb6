"""Time of a sweep of 64 short runs with one process and with two: prints a table, asserts nothing.

    python tests/bench/sweep.py [--repeat N] [--jobs 2]

Sweeps with one and several processes take turns, each in a fresh interpreter; times are medians.
The time before the first run (imports, checks) is part of them, as users wait for it too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
SWEEP = """
schema: 1
kind: sweep
scenario: quickstart
set: {run.warmup: 20 s, run.duration: DURATION}
grid:
  scheduler.policy: [maxflow, swarm, random, shortest_queue]
  workload.initial_requests: [10, 20, 30, 40]
seeds: 4
"""


def seconds(folder: Path, jobs: int, number: int) -> float:
    """Wall time of one sweep."""
    command = [sys.executable, "-m", "helixsim", "sweep", "sweep.yaml"]
    start = time.perf_counter()
    subprocess.run(
        [*command, "-o", f"out-{jobs}-{number}", "--jobs", str(jobs)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--duration", default="200 s", help="simulated, of each run")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sweep.yaml").write_text(SWEEP.replace("DURATION", options.duration))
        taken: dict[int, list[float]] = {1: [], options.jobs: []}
        for number in range(options.repeat):
            for jobs, times in taken.items():
                times.append(seconds(folder, jobs, number))
                print(f"{jobs} processes: {times[-1]:.2f} s, load {os.getloadavg()[0]:.2f}")
        tables = {(folder / f"out-{jobs}-0" / "cells.parquet").read_bytes() for jobs in taken}
    one, many = (median(times) for times in taken.values())
    print("| processes | median s | times as fast |")
    print("| --- | --- | --- |")
    print(f"| 1 | {one:.2f} | 1.00 |")
    print(f"| {options.jobs} | {many:.2f} | {one / many:.2f} |")
    print("tables are the same" if len(tables) == 1 else "TABLES DIFFER")


if __name__ == "__main__":
    main()

"""Plans under growing time limits: what each is worth on fresh seeds, and how late it came.

    python tests/bench/limits.py [quickstart] [single24] [--limits 1 10 60 300] [--jobs N]
        [--seeds N]

A plan with more time should never be worth less, and should come at most 2 s after its limit. The
overrun counts all of `plan`, with the search by flow and the start of processes. The same fresh
seeds are run for all plans of a scenario, so `gain` compares seed by seed with the best plan under
shorter limits; `±` is its standard error. Prints a table, asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import sqrt
from statistics import fmean, stdev

from search import FRESH, SHOWN, published, run_once

from helixsim import load_scenario, plan
from helixsim.scenario.resolved import Scenario

ROWS: dict[str, Callable[[], Scenario]] = {
    "quickstart": lambda: load_scenario("quickstart"),
    "single24": lambda: published("single24"),
}


def main() -> None:
    """Print the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []])
    parser.add_argument("--limits", type=float, nargs="+", default=[1.0, 10.0, 60.0, 300.0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    print("| scenario | limit s | overrun s | decode tokens/s | gain | ± | placement |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.rows or ROWS:
        scenario = ROWS[name]()
        known: dict[object, int] = {}
        best: list[float] = []
        for limit_s in options.limits:
            began = time.monotonic()
            result = plan(scenario, time_limit_s=limit_s, jobs=options.jobs)
            overrun_s = time.monotonic() - began - limit_s
            tasks = [(result.placement, FRESH + number) for number in range(options.seeds)]
            with ProcessPoolExecutor(options.jobs) as pool:
                runs = list(pool.map(partial(run_once, scenario), tasks))
            rates = [run[SHOWN[0]] for run in runs]
            gains = [rate - before for rate, before in zip(rates, best or rates, strict=True)]
            error = stdev(gains) / sqrt(len(gains)) if len(gains) > 1 else 0.0
            best = max(best, rates, key=sum)
            number = known.setdefault(tuple(sorted(result.placement.layers.items())), len(known))
            letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number % 26]
            print(
                f"| {name} | {limit_s:g} | {overrun_s:+.1f} | {fmean(rates):.1f} "
                f"| {fmean(gains):+.1f} | {error:.1f} | {letter} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""How near the built-in distributions and patterns come to the reference data.

Run from the project root, with the folder of the reference data in HELIX_REFERENCE_DATA if it
is not in ../shared/reference; prints the tables that stand in the docstrings of
`helixsim.traces.lengths` and `helixsim.traces.patterns`::

    PYTHONPATH=. python tests/tools/trace_nearness.py
"""

from __future__ import annotations

import os
import random
from itertools import takewhile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from helixsim.traces import (
    ARRIVAL_PATTERNS,
    SLOT_S,
    length_models,
    read_lengths,
    read_slot_arrivals,
)

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "azure-conversation": "azure_conv",
    "azure-code": "azure_code",
    "alpaca": "alpaca",
    "sharegpt": "shared_gpt",
}
PERCENTILES = (5, 25, 50, 75, 95, 99)
NUM_DRAWN = 100_000
NUM_HOURS = 100
SLOTS_PER_HOUR = 1200


def ks_distance(left: np.ndarray, right: np.ndarray) -> float:
    """Largest distance between two cumulative distributions."""
    at = np.union1d(left, right)
    shares = [np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())


def lengths_table(traces: Path) -> str:
    """Table of the length distributions; `traces` is the folder of the reference traces."""
    head = "".join(f"{f'p{p}':>6}" for p in PERCENTILES)
    lines = [f"{'':33}  mean{head}     KS"]
    for name, stem in FILES.items():
        data = np.array(read_lengths(traces / f"{stem}_lengths.csv.gz").pairs)
        drawn = np.array(length_models()[name].draw(NUM_DRAWN, random.Random(0)).pairs)
        for column, what in enumerate(("prompt", "output")):
            ks = ks_distance(data[:, column], drawn[:, column])
            for kind, pairs, last in (("data", data, ""), ("drawn", drawn, f"{ks:7.3f}")):
                values = np.percentile(pairs[:, column], PERCENTILES, method="inverted_cdf")
                cells = "".join(f"{value:6.0f}" for value in values)
                lines.append(
                    f"{name:19}{what:8}{kind:5}{pairs[:, column].mean():7.1f}{cells}{last}"
                )
        spearman = [spearmanr(pairs).statistic for pairs in (data, drawn)]
        pearson = [np.corrcoef(pairs.T)[0, 1] for pairs in (data, drawn)]
        lines.append(
            f"{name:19}Spearman: data {spearman[0]:.2f}, drawn {spearman[1]:.2f};"
            f" Pearson: data {pearson[0]:.2f}, drawn {pearson[1]:.2f}"
        )
    return "\n".join(line.rstrip() for line in lines)


STATISTICS = {
    "mean count": np.mean,
    "variance / mean": lambda counts: counts.var() / counts.mean(),
    "the same in 30 s": lambda counts: (
        (sums := counts.reshape(-1, 10).sum(axis=1)).var() / sums.mean()
    ),
    "correlation, lag 1": lambda counts: np.corrcoef(counts[:-1], counts[1:])[0, 1],
    "correlation, lag 5": lambda counts: np.corrcoef(counts[:-5], counts[5:])[0, 1],
    "share of empty slots": lambda counts: np.mean(counts == 0),
    "p95 of counts": lambda counts: np.percentile(counts, 95),
}


def hour_of(name: str, rng: random.Random) -> np.ndarray:
    """Counts in the slots of one hour of a built-in pattern."""
    end = SLOTS_PER_HOUR * SLOT_S
    times = takewhile(lambda time: time < end, ARRIVAL_PATTERNS[name].arrivals(rng))
    return np.histogram(list(times), SLOTS_PER_HOUR, (0, end))[0]


def arrivals_table(traces: Path) -> str:
    """Table of the arrival patterns; `traces` is the folder of the reference traces."""
    lines = [f"{'':22}" + "".join(f"{name:^26}" for name in ARRIVAL_PATTERNS)]
    lines.append(f"{'':22}" + f"{'data':>8}{'drawn':>9}{'':9}" * 2)
    columns = []
    for name in ARRIVAL_PATTERNS:
        rng = random.Random(0)
        counts = np.array(read_slot_arrivals(traces / f"{FILES[name]}_arrivals_per_3s.csv"))
        hours = [hour_of(name, rng) for _ in range(NUM_HOURS)]
        columns.append((counts, hours))
    for title, statistic in STATISTICS.items():
        line = f"{title:22}"
        for counts, hours in columns:
            drawn = np.array([statistic(hour) for hour in hours])
            line += f"{statistic(counts):8.2f}{drawn.mean():9.2f} +- {drawn.std():<5.2f}"
        lines.append(line)
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    default = ROOT.parent / "shared" / "reference"
    traces = Path(os.environ.get("HELIX_REFERENCE_DATA") or default) / "traces"
    print(lengths_table(traces), arrivals_table(traces), sep="\n\n")


if __name__ == "__main__":
    main()

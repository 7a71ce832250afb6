"""Fit the built-in length distributions to the reference data and write lengths.json.

Run from the project root, with the folder of the reference data in HELIX_REFERENCE_DATA if it
is not in ../shared/reference::

    PYTHONPATH=. python tests/tools/fit_lengths.py

The points of a quantile function are put where they help most: starting from the two ends, the
candidate that brings down the error most is added, and then points are moved for as long as
that helps. The error is the KS distance plus the mean absolute difference of the quantiles, in
means (Wasserstein-1). Whole numbers are spread evenly over +-0.5, so that straight lines fit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from helixsim.traces import read_lengths

ROOT = Path(__file__).resolve().parents[2]
NUM_POINTS = 21
GRID = 8
GRID_TOTAL = 10_000
SETS = {
    "azure-conversation": "azure_conv",
    "azure-code": "azure_code",
    "alpaca": "alpaca",
    "sharegpt": "shared_gpt",
}

Floats = NDArray[np.float64]


def fit_quantiles(lengths: Floats, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Points (probability, tokens) of the quantile function of these lengths."""
    spread = np.sort(lengths + rng.random(len(lengths)) - 0.5)
    ranks = (np.arange(len(spread)) + 0.5) / len(spread)
    tails = np.geomspace(1e-4, 0.1, 40)
    candidates = np.unique(np.r_[np.linspace(0, 1, 301), tails, 1 - tails].round(4))
    tokens = np.interp(candidates, ranks, spread).round(1)
    tokens[0], tokens[-1] = lengths.min() - 0.5, lengths.max() + 0.5
    chosen = [0, len(candidates) - 1]

    fine = np.unique(np.r_[np.linspace(0, 1, 3001), 1 - np.geomspace(1e-5, 0.05, 200)])
    exact = np.interp(fine, ranks, spread)
    weights = np.gradient(fine) / lengths.mean()

    def error(points: list[int]) -> float:
        ps, xs = candidates[points], tokens[points]
        if (np.diff(xs) <= 0).any():
            return np.inf
        ks = np.abs(np.interp(exact, xs, ps) - fine).max()
        return ks + np.sum(np.abs(np.interp(fine, ps, xs) - exact) * weights)

    def best_addition(points: list[int]) -> tuple[float, list[int]]:
        free = set(range(len(candidates))) - set(points)
        trials = (sorted([*points, new]) for new in sorted(free))
        return min((error(trial), trial) for trial in trials)

    while len(chosen) < NUM_POINTS:
        now, chosen = best_addition(chosen)
    improved = True
    while improved:
        improved = False
        for point in chosen[1:-1]:
            trial = best_addition([other for other in chosen if other != point])
            if trial[0] < now - 1e-6:
                (now, chosen), improved = trial, True
                break
    return [(float(candidates[i]), float(tokens[i])) for i in chosen]


def fit_grid(pairs: Floats, rng: np.random.Generator) -> list[list[int]]:
    """How often each eighth of the prompts goes with each eighth of the answers."""
    # Equal lengths are put in random order, so that every part holds the same share.
    order = np.lexsort((rng.random(len(pairs)), pairs[:, 0]))
    rows = np.empty(len(pairs), int)
    rows[order] = np.arange(len(pairs)) * GRID // len(pairs)
    order = np.lexsort((rng.random(len(pairs)), pairs[:, 1]))
    columns = np.empty(len(pairs), int)
    columns[order] = np.arange(len(pairs)) * GRID // len(pairs)
    counts = np.bincount(rows * GRID + columns, minlength=GRID * GRID).reshape(GRID, GRID)
    return (counts * GRID_TOTAL / len(pairs)).round().astype(int).tolist()


def main() -> None:
    default = ROOT.parent / "shared" / "reference"
    folder = Path(os.environ.get("HELIX_REFERENCE_DATA") or default) / "traces"
    entries = []
    for name, stem in SETS.items():
        rng = np.random.default_rng(0)
        pairs = np.array(read_lengths(folder / f"{stem}_lengths.csv.gz").pairs, float)
        lines = [
            f'"{key}": {json.dumps(fit_quantiles(pairs[:, column], rng))}'
            for column, key in enumerate(("prompt", "output"))
        ]
        lines.append(f'"grid": {json.dumps(fit_grid(pairs, rng))}')
        entries.append(f'"{name}": {{\n' + ",\n".join(lines) + "\n}")
        print(name, "done")
    path = ROOT / "helixsim" / "traces" / "lengths.json"
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n")


if __name__ == "__main__":
    main()

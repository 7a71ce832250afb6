"""Fit the built-in arrival patterns to the reference data and print their numbers.

Run from the project root, with the folder of the reference data in HELIX_REFERENCE_DATA if it
is not in ../shared/reference::

    PYTHONPATH=. python tests/tools/fit_arrivals.py

Bursts are runs of slots with arrivals, lulls runs of slots without. For the counts N within
bursts, with mean m, a rate of m exp(drift + jitter) makes the mean of N(i) N(i+k) equal to
m^2 exp(drift_sd^2 exp(-k/drift_slots)); least squares over short lags k give both. What is then
left of the variance beyond Poisson's is the jitter. A drift slower than 100 slots (5 minutes)
cannot be told from the trend of the one hour that there is.
"""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path

import numpy as np

from helixsim.traces import read_slot_arrivals
from helixsim.traces.arrivals import SLOT_S

ROOT = Path(__file__).resolve().parents[2]


def fit(counts: np.ndarray, *, lulls: bool, lags: range) -> dict[str, float]:
    """The numbers of an `ArrivalPattern` for these counts."""
    busy = counts > 0 if lulls else np.ones(len(counts), bool)
    runs = [(key, len(list(group))) for key, group in groupby(busy)]
    burst = np.array([length for key, length in runs if key])
    lull = np.array([length for key, length in runs if not key])
    mean = counts[busy].mean()
    logs = np.array([np.log(_mean_product(counts, busy, lag) / mean**2) for lag in lags])
    trials = []
    for slots in np.geomspace(1, 100, 200):
        shape = np.exp(-np.array(lags) / slots)
        variance = shape @ logs / (shape @ shape)
        trials.append((np.sum((logs - variance * shape) ** 2), variance, slots))
    _, drift_variance, drift_slots = min(trials)
    excess = (np.mean(counts[busy] ** 2) - mean) / mean**2
    numbers = {
        "trace_rate_per_s": counts.mean() / SLOT_S,
        "burst_slots": burst.mean(),
        "burst_cv": burst.std() / (burst.mean() - 1) if lulls else 0.0,
        "lull_slots": lull.mean() if lulls else 0.0,
        "lull_cv": lull.std() / (lull.mean() - 1) if lulls else 0.0,
        "drift_sd": np.sqrt(drift_variance),
        "drift_slots": drift_slots,
        "jitter_sd": np.sqrt(max(np.log(excess) - drift_variance, 0.0)),
    }
    return {key: round(float(number), 3) for key, number in numbers.items()}


def _mean_product(counts: np.ndarray, busy: np.ndarray, lag: int) -> float:
    both = busy[:-lag] & busy[lag:]
    return float(np.mean(counts[:-lag][both] * counts[lag:][both]))


def main() -> None:
    default = ROOT.parent / "shared" / "reference"
    folder = Path(os.environ.get("HELIX_REFERENCE_DATA") or default) / "traces"
    patterns = (("azure_conv", False, range(1, 11)), ("azure_code", True, range(1, 6)))
    for stem, lulls, lags in patterns:
        counts = np.array(read_slot_arrivals(folder / f"{stem}_arrivals_per_3s.csv"), float)
        print(stem, fit(counts, lulls=lulls, lags=lags))


if __name__ == "__main__":
    main()

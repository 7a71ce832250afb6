"""Corrections of the surrogate by what has been simulated.

The logarithm of the ratio of a simulated to an estimated figure is a linear function of traits of
the placement: a search learns it as it goes. With few simulations, the weights of the traits stay
near 0, as in a ridge regression, and the ratio is that of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log

from helixsim.planner.objective import Figures, estimated_family
from helixsim.planner.simulated.candidates import THROUGHPUT
from helixsim.planner.simulated.estimates import Estimate, Traits

_NOISE = 0.03
"""Standard deviation of the logarithm of a ratio that the traits do not explain."""
_PRIOR = (2.0, 0.02, 0.05, 0.3)
"""Standard deviations of the weights before any simulation: of the mean, per stage, per slow link,
per logarithm of the requests in flight."""
_CLOSE = 4.0
"""Exponent of the weight of a simulation by its figure relative to the best: errors matter near the
optimum."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What simulated figures are expected to be, given the surrogate's estimate.

    Attributes
    ----------
    weights
        Figure -> weights of the terms of :func:`_terms`; a missing figure is not corrected.
    """

    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def ratio(self, name: str, traits: Traits) -> float:
        """Expected ratio of a simulated to an estimated figure."""
        weights = self.weights.get(name)
        if weights is None:
            return 1.0
        terms = _terms(traits)
        return exp(sum(weight * term for weight, term in zip(weights, terms, strict=True)))

    def figures(
        self, estimate: Estimate, output_tokens: float, names: Sequence[str]
    ) -> dict[str, float]:
        """The expected figures of a simulation."""
        base = base_figures(estimate, output_tokens)
        found = {}
        for name in names:
            family = estimated_family(name)
            found[name] = base[family] * self.ratio(name, estimate.traits)
            if family != THROUGHPUT:
                found[name] += estimate.missed_s
        return found


def base_figures(estimate: Estimate, output_tokens: float) -> dict[str, float]:
    """The figures that the surrogate estimates."""
    return {
        THROUGHPUT: estimate.decode_tokens_per_s,
        "decode_latency_s.mean": estimate.decode_latency_s,
        "prompt_latency_s.mean": estimate.prompt_latency_s,
        "e2e_s.mean": estimate.prompt_latency_s + output_tokens * estimate.decode_latency_s,
    }


def learned(
    pairs: Sequence[tuple[Estimate, Figures]], output_tokens: float, names: Sequence[str]
) -> Correction:
    """The correction that fits estimates to simulated figures.

    Parameters
    ----------
    pairs
        Estimates, and the figures of simulations of the same placements, best first.
    output_tokens
        Output tokens of the mean request.
    names
        Figures to correct.
    """
    weights = {}
    for name in names:
        rows, targets, trust = [], [], []
        best = None
        for estimate, figures in pairs:
            if estimate.missed_s and estimated_family(name) != THROUGHPUT:
                continue  # latencies grow for as long as the run lasts
            expected = base_figures(estimate, output_tokens)[estimated_family(name)]
            actual = figures.get(name, 0.0)
            if not (actual > 0 and 0 < expected < 1e300):
                continue
            best = best or actual
            rows.append(_terms(estimate.traits))
            targets.append(log(actual / expected))
            trust.append(min(actual / best, best / actual) ** _CLOSE)
        if rows:
            weights[name] = _ridge(rows, targets, trust)
    return Correction(weights)


def _terms(traits: Traits) -> tuple[float, ...]:
    return (
        1.0,
        traits.stages,
        traits.crossings,
        log(traits.most_in_flight) if traits.most_in_flight > 0 else 0.0,
    )


def _ridge(
    rows: Sequence[Sequence[float]], targets: Sequence[float], trust: Sequence[float]
) -> tuple[float, ...]:
    """Weights of most probability under normal errors and the prior.

    Terms count from their means, so that the prior of a weight does not pull at the mean ratio.
    """
    size = len(_PRIOR)
    total = sum(trust)
    means = [0.0] + [
        sum(t * row[i] for t, row in zip(trust, rows, strict=True)) / total for i in range(1, size)
    ]
    centred = [[value - mean for value, mean in zip(row, means, strict=True)] for row in rows]
    matrix = [
        [
            sum(t * row[i] * row[j] for t, row in zip(trust, centred, strict=True))
            for j in range(size)
        ]
        for i in range(size)
    ]
    for i, prior in enumerate(_PRIOR):
        matrix[i][i] += (_NOISE / prior) ** 2
    right = [
        sum(t * row[i] * y for t, row, y in zip(trust, centred, targets, strict=True))
        for i in range(size)
    ]
    weights = _solved(matrix, right)
    weights[0] -= sum(w * m for w, m in zip(weights, means, strict=True))
    return tuple(weights)


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve a small system of a positive definite matrix by elimination.

    In plain Python, as libraries round differently from machine to machine.
    """
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(size):
        for j in range(i + 1, size):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (rows[i][size] - known) / rows[i][i]
    return solution

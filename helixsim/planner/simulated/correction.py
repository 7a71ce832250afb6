"""Corrections of the surrogate by what has been simulated.

The logarithm of the ratio of a simulated to an estimated figure is a linear function of traits of
the placement: a search learns it as it goes. With few simulations, the weights of the traits stay
near 0, as in a ridge regression, and the ratio is that of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log, sqrt

from helixsim.planner.figures import is_share, latency_name
from helixsim.planner.objective import Figures
from helixsim.planner.simulated.estimates import Estimate, Traits
from helixsim.planner.simulated.formulas import Formulas

_NOISE = 0.03
"""Standard deviation of the logarithm of a ratio that the traits do not explain."""
_PRIOR = (2.0, 0.02, 0.05, 0.3)
"""Standard deviations of the weights before any simulation: of the mean, per stage, per slow link,
per logarithm of the requests in flight."""
_GUESSES = 4.0
"""Simulations that this deviation counts for when the deviation itself is learned."""
_CLOSE = 4.0
"""Exponent of the weight of a simulation by its figure relative to the best: errors matter near the
optimum."""
_LEAST_SHARE = 0.01
"""What a share of 0 counts as, so that it has a logarithm."""
_MOST = 1e300
"""Estimates above it say nothing."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What simulated figures are expected to be, given the surrogate's estimate.

    Attributes
    ----------
    weights
        Figure -> weights of the terms of :func:`_terms`; a missing figure is not corrected.
    errors
        Figure -> standard deviation of the logarithm of what is left between corrected estimates
        and simulations.
    """

    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    def error(self, name: str) -> float:
        """How far off a corrected estimate is, relative to it; as assumed where none is known."""
        return self.errors.get(name, _NOISE)

    def ratio(self, name: str, traits: Traits) -> float:
        """Expected ratio of a simulated to an estimated figure."""
        weights = self.weights.get(name)
        if weights is None:
            return 1.0
        terms = _terms(traits)
        return exp(sum(weight * term for weight, term in zip(weights, terms, strict=True)))

    def figures(
        self, estimate: Estimate, formulas: Formulas, names: Sequence[str]
    ) -> dict[str, float]:
        """The expected figures of a simulation."""
        found = {}
        for name in names:
            value = self.uncorrected(estimate, formulas, name) * self.ratio(name, estimate.traits)
            if latency_name(name) is not None:
                value += estimate.missed_s
            found[name] = min(1.0, value) if is_share(name) else value
        return found

    def uncorrected(self, estimate: Estimate, formulas: Formulas, name: str) -> float:
        """A figure by its formula, from corrected latencies where it is one of SLOs."""
        latencies_s = {
            each: formulas.value(each, estimate) * self.ratio(each, estimate.traits)
            for each in formulas.inputs(name)
        }
        return formulas.value(name, estimate, latencies_s)


def learned(
    pairs: Sequence[tuple[Estimate, Figures]], formulas: Formulas, names: Sequence[str]
) -> Correction:
    """The correction that fits estimates to simulated figures.

    Parameters
    ----------
    pairs
        Estimates, and the figures of simulations of the same placements, best first.
    formulas
        The scenario's formulas.
    names
        Figures to correct; the latencies that they are computed from are corrected first.
    """
    inputs = [each for name in names for each in formulas.inputs(name)]
    weights: dict[str, tuple[float, ...]] = {}
    errors: dict[str, float] = {}
    for name in dict.fromkeys([*inputs, *names]):
        found = _fitted(pairs, formulas, name, Correction(weights))
        if found is not None:
            weights[name], errors[name] = found
    return Correction(weights, errors)


def _fitted(
    pairs: Sequence[tuple[Estimate, Figures]],
    formulas: Formulas,
    name: str,
    known: Correction,
) -> tuple[tuple[float, ...], float] | None:
    """Weights of the terms for a figure, and its error; None if no simulation tells them."""
    rows, targets, trust = [], [], []
    best = None
    least = _LEAST_SHARE if is_share(name) else 0.0
    for estimate, figures in pairs:
        if estimate.missed_s and latency_name(name) is not None:
            continue  # latencies grow for as long as the run lasts
        expected = known.uncorrected(estimate, formulas, name)
        actual = max(figures.get(name, 0.0), least)
        if not (actual > 0 and 0 < expected < _MOST):
            continue
        best = best or actual
        rows.append(_terms(estimate.traits))
        targets.append(log(actual / expected))
        trust.append(min(actual / best, best / actual) ** _CLOSE)
    if not rows:
        return None
    weights = _ridge(rows, targets, trust)
    left = [
        target - sum(weight * term for weight, term in zip(weights, row, strict=True))
        for target, row in zip(targets, rows, strict=True)
    ]
    squares = sum(t * each**2 for t, each in zip(trust, left, strict=True))
    return weights, sqrt((_GUESSES * _NOISE**2 + squares) / (_GUESSES + sum(trust)))


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

"""Confidence interval of the mean of few values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import cos, fsum, isnan, nan, pi, sin, sqrt, tan
from statistics import fmean, stdev

_HALVINGS = 60
_DIGITS = 10


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, standard deviation, and the 95 % confidence interval of the mean.

    The interval is Student's: mean ± t s / √n, where t is its 97.5 % quantile for n - 1 degrees
    of freedom and s the standard deviation of the sample (over n - 1).

    Returns
    -------
    tuple
        Mean, standard deviation, lower and upper end; NaN for statistics that need more values.
    """
    n = len(values)
    if not n or any(isnan(value) for value in values):
        return nan, nan, nan, nan
    mean = fmean(values)
    if n == 1:
        return mean, nan, nan, nan
    deviation = stdev(values)
    half = t_quantile(n - 1) * deviation / sqrt(n)
    return mean, deviation, mean - half, mean + half


@cache
def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to ten digits.

    Parameters
    ----------
    degrees
        Degrees of freedom, at least 1.

    Notes
    -----
    For whole numbers of degrees of freedom, the probability is a finite sum: Abramowitz and
    Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4. It is solved for t by
    bisection.
    """
    low, high = 0.0, pi / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _within(middle, degrees) < 0.95:
            low = middle
        else:
            high = middle
    return float(f"{sqrt(degrees) * tan((low + high) / 2):.{_DIGITS}g}")


def _within(angle: float, degrees: int) -> float:
    """Probability that t lies between plus and minus tan(angle) times √degrees."""
    odd = degrees % 2
    cosine = cos(angle)
    term = cosine if odd else 1.0
    terms = []
    for step in range(1, degrees // 2 + 1):
        terms.append(term)
        below = 2 * step + odd
        term *= (below - 1) / below * cosine * cosine
    total = sin(angle) * fsum(terms)
    return 2 / pi * (angle + total) if odd else total

"""Distributions of whole numbers, such as tokens or turns, and of times.

Each has an exact mean and is drawn by its quantile function from one uniform random number, so that
a change of its parameters does not shift later draws of the same random stream. A lognormal
distribution is the family behind a mean with a `cv` or a percentile: lengths of prompts and answers
are skewed to the right, and their logarithms are about normal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist, fmean
from typing import Protocol

from helixsim.errors import InputError

MAX_SIGMA = 4.0
"""Largest standard deviation of the logarithm: a `cv` of nearly 3,000."""

_NORMAL = NormalDist()
_P95 = _NORMAL.inv_cdf(0.95)
_EXACT = 256
"""Up to this number, the mean is a sum over whole numbers; above it, rounding has no effect."""
_SMALLEST = 2.0**-54
_BISECTIONS = 60
_MU_DIGITS = 10


class Distribution(Protocol):
    """A distribution of whole numbers, 1 or more."""

    @property
    def mean(self) -> float:
        """The mean of what is drawn."""
        ...

    @property
    def mean_square(self) -> float:
        """The mean of the squares of what is drawn."""
        ...

    def sample(self, rng: random.Random) -> int:
        """Draw one number."""
        ...

    def limited(self, low: int | None, high: int | None) -> Distribution:
        """The distribution of the numbers from `low` to `high`: others are not drawn.

        Raises
        ------
        InputError
            If it has no number within the limits.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same number."""

    value: int

    @property
    def mean(self) -> float:
        """The number."""
        return float(self.value)

    @property
    def mean_square(self) -> float:
        """Its square."""
        return float(self.value**2)

    def sample(self, rng: random.Random) -> int:
        """The number, without a draw."""
        return self.value

    def limited(self, low: int | None, high: int | None) -> Fixed:
        """The same, if it is within the limits."""
        if not (low or 1) <= self.value <= (high or math.inf):
            raise _nothing_left(low, high)
        return self


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each whole number from `low` to `high` is equally likely."""

    low: int
    high: int

    @property
    def mean(self) -> float:
        """The middle."""
        return (self.low + self.high) / 2

    @property
    def mean_square(self) -> float:
        """Square of the mean, and the variance (n^2 - 1) / 12 of n numbers in a row."""
        return self.mean * self.mean + (self._count**2 - 1) / 12

    def sample(self, rng: random.Random) -> int:
        """Draw one number."""
        return self.low + min(int(rng.random() * self._count), self._count - 1)

    @property
    def _count(self) -> int:
        return self.high - self.low + 1

    def limited(self, low: int | None, high: int | None) -> Uniform:
        """The numbers within both ranges."""
        found = Uniform(max(self.low, low or 1), min(self.high, high or self.high))
        if found.low > found.high:
            raise _nothing_left(low, high)
        return found


@dataclass(frozen=True)
class Empirical:
    """Numbers of a list, each equally likely; at least one."""

    values: tuple[int, ...]
    source: str = field(default="values", compare=False)

    @cached_property
    def mean(self) -> float:
        """The mean of the list."""
        return fmean(self.values)

    @cached_property
    def mean_square(self) -> float:
        """The mean of the squares."""
        return fmean(value * value for value in self.values)

    def sample(self, rng: random.Random) -> int:
        """Draw one number."""
        return self.values[min(int(rng.random() * len(self.values)), len(self.values) - 1)]

    def limited(self, low: int | None, high: int | None) -> Empirical:
        """The numbers of the list within the limits."""
        kept = tuple(v for v in self.values if (low or 1) <= v <= (high or math.inf))
        if not kept:
            raise _nothing_left(low, high)
        return Empirical(kept, self.source)


@dataclass(frozen=True)
class LogNormal:
    """A number whose logarithm is normal, rounded; numbers outside of limits are not drawn.

    Attributes
    ----------
    mu, sigma
        Mean and standard deviation of the logarithm, before the limits.
    low, high
        The limits, both included; None for no upper limit.
    """

    mu: float
    sigma: float
    low: int = 1
    high: int | None = None

    @cached_property
    def _shares(self) -> tuple[float, float]:
        """Share of the unlimited distribution below the lower limit, and below the upper."""
        return self._below(self.low - 0.5), self._below((self.high or math.inf) + 0.5)

    def _below(self, value: float) -> float:
        """Share of the unlimited distribution below a value."""
        return _phi(self._standard(value))

    def _standard(self, value: float) -> float:
        if value == math.inf:
            return math.inf
        return (math.log(value) - self.mu) / self.sigma if value > 0 else -math.inf

    @cached_property
    def mean(self) -> float:
        """The mean of the rounded numbers within the limits."""
        return self._moment(1)

    @cached_property
    def mean_square(self) -> float:
        """The mean of the squares of the rounded numbers within the limits."""
        return self._moment(2)

    def _moment(self, order: int) -> float:
        """The mean of a power of the rounded numbers within the limits.

        Whole numbers up to 256 are summed with their shares. Above, rounding does not move the
        mean, and the partial moment of a lognormal distribution is
        exp(n mu + n^2 sigma^2 / 2) (Phi(b - n sigma) - Phi(a - n sigma)), with a and b the
        standardised logarithms of the ends.
        """
        below, above = self._shares
        total, last = 0.0, below
        for number in range(self.low, min(self.high or _EXACT, _EXACT) + 1):
            share = self._below(number + 0.5)
            total += number**order * (share - last)
            last = share
        start, stop = max(self.low, _EXACT + 1) - 0.5, (self.high or math.inf) + 0.5
        if stop > start:
            whole = math.exp(order * self.mu + (order * self.sigma) ** 2 / 2)
            shift = order * self.sigma
            total += whole * (
                _phi(self._standard(stop) - shift) - _phi(self._standard(start) - shift)
            )
        return total / (above - below)

    def sample(self, rng: random.Random) -> int:
        """Draw one number."""
        below, above = self._shares
        share = below + (above - below) * rng.random()
        z = _NORMAL.inv_cdf(min(max(share, _SMALLEST), 1 - _SMALLEST * 2))
        number = math.floor(math.exp(self.mu + self.sigma * z) + 0.5)
        return min(max(number, self.low), self.high or number)

    def limited(self, low: int | None, high: int | None) -> LogNormal:
        """The same parameters with tighter limits, which move the mean."""
        ends = [end for end in (self.high, high) if end is not None]
        found = LogNormal(self.mu, self.sigma, max(self.low, low or 1), min(ends, default=None))
        below, above = found._shares
        if not above - below >= 0.01:
            raise _nothing_left(low, high)
        return found


def lognormal_of_mean(
    mean: float,
    *,
    cv: float | None = None,
    p95: float | None = None,
    low: int = 1,
    high: int | None = None,
) -> Distribution:
    """The lognormal distribution of a mean and a spread, which keeps the mean within its limits.

    Without limits, sigma^2 = ln(1 + cv^2), or sigma is the smaller solution of
    ln(p95 / mean) = 1.645 sigma - sigma^2 / 2; mu = ln(mean) - sigma^2 / 2. Where limits or
    rounding move the mean, mu is shifted until the mean of what is drawn is as asked;
    sigma stays.

    Parameters
    ----------
    mean
        Mean of what is drawn.
    cv, p95
        One of them: standard deviation over mean, or 95th percentile, before the limits.
    low, high
        Smallest and largest number that is drawn.

    Raises
    ------
    InputError
        If no lognormal distribution has these values, or the limits leave no room for the mean.
    """
    if not low <= mean <= (high or math.inf):
        raise InputError(f"a mean of {mean:g} is not within the limits {_range(low, high)}")
    sigma = _sigma_of_p95(mean, p95) if cv is None and p95 is not None else _sigma_of_cv(cv or 0.0)
    if sigma == 0:
        number = math.floor(mean + 0.5)
        if number != mean:
            raise InputError(f"without a spread, all are equal: {mean:g} is not a whole number")
        return Fixed(number)

    def with_mu(mu: float) -> LogNormal:
        return LogNormal(mu, sigma, low, high)

    mu = _rising_root(
        lambda mu: _mean_or_end(with_mu(mu), mu), mean, math.log(mean) - sigma**2 / 2, sigma
    )
    # So that the last bit of a machine's logarithm does not matter.
    found = with_mu(round(mu, _MU_DIGITS))
    below, above = found._shares
    if not above - below >= 0.01:
        raise InputError(
            f"limits of {_range(low, high)} leave less than 1 % of a lognormal distribution with "
            f"the mean {mean:g} within them: give wider limits or a smaller spread"
        )
    return found


def lognormal_of_median(
    median: float, p95: float, *, low: int = 1, high: int | None = None
) -> Distribution:
    """The lognormal distribution of a median and a 95th percentile, before its limits.

    mu = ln(median), sigma = ln(p95 / median) / 1.645. Limits move both, and the mean.

    Raises
    ------
    InputError
        If the percentile is not above the median, or the limits leave too little.
    """
    if not median < p95:
        raise InputError(f"p95 must be above the median of {median:g}, not {p95:g}")
    sigma = math.log(p95 / median) / _P95
    if sigma > MAX_SIGMA:
        raise InputError(f"p95 is {p95 / median:g} times the median: at most 720 times is possible")
    return LogNormal(math.log(median), sigma).limited(low, high)


@dataclass(frozen=True, slots=True)
class Times:
    """Times in seconds: always `mean_s`, or lognormal with this mean and `cv`."""

    mean_s: float
    cv: float = 0.0

    def sample(self, rng: random.Random) -> float:
        """Draw one time; without a spread, nothing is drawn."""
        if not self.cv or not self.mean_s:
            return self.mean_s
        sigma = _sigma_of_cv(self.cv)
        z = _NORMAL.inv_cdf(min(max(rng.random(), _SMALLEST), 1 - _SMALLEST * 2))
        return self.mean_s * math.exp(sigma * z - sigma**2 / 2)


def _sigma_of_cv(cv: float) -> float:
    return math.sqrt(math.log(1 + cv**2))


def _sigma_of_p95(mean: float, p95: float) -> float:
    log_ratio = math.log(p95 / mean)
    root = _P95**2 - 2 * log_ratio
    if not (log_ratio > 0 and root >= 0):
        most = math.exp(_P95**2 / 2)
        raise InputError(
            f"p95 must be above the mean of {mean:g} and at most {most:.2f} times it, "
            f"{math.floor(most * mean)}, not {p95:g}: no lognormal distribution has another; give "
            "the values, or a file"
        )
    return _P95 - math.sqrt(root)


def _mean_or_end(found: LogNormal, mu: float) -> float:
    """The mean, or the limit that it tends to where next to nothing is within the limits."""
    below, above = found._shares
    if above - below > 1e-9:
        return found.mean
    return float(found.low) if mu < math.log(found.low) else float(found.high or math.inf)


def _rising_root(
    value_at: Callable[[float], float], wanted: float, start: float, step: float
) -> float:
    """Where a rising function has a value, by bisection; the start if it is so near already."""
    if abs(value_at(start) - wanted) <= 1e-9 * wanted:
        return start
    low = high = start
    while value_at(low) > wanted and low > start - 64 * step:
        low -= step
    while value_at(high) < wanted and high < start + 64 * step:
        high += step
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if value_at(middle) < wanted:
            low = middle
        else:
            high = middle
    return high


def _phi(z: float) -> float:
    """The standard normal distribution function."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _range(low: int, high: int | None) -> str:
    return f"{low} or more" if high is None else f"{low} to {high}"


def _nothing_left(low: int | None, high: int | None) -> InputError:
    return InputError(f"limits of {_range(low or 1, high)} leave (nearly) nothing of it")

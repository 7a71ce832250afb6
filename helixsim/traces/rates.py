"""Rates of arrival that vary in time, and arrivals that follow them exactly.

A rate is a function of time with a closed integral, the number of arrivals that are expected up to
a time. Arrivals at rate 1 become arrivals at a varying rate by the change of time that inverts this
integral: a Poisson process becomes a Poisson process with that rate, and gaps that are more bursty
or more even than Poisson keep their character. Only sums, products and square roots are used,
which round alike on all machines.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count, pairwise
from typing import Protocol

from helixsim.errors import InputError
from helixsim.traces.arrivals import check_rate

DAY_S = 86_400.0
_STEPS = 60


class Rate(Protocol):
    """A rate of arrival per second, from time 0 on."""

    def expected(self, until_s: float) -> float:
        """Arrivals that are expected up to a time."""
        ...

    def time_of(self, expected: float) -> float:
        """The time up to which this number of arrivals is expected; infinite if they never come."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantRate:
    """The same rate at all times."""

    per_s: float

    def expected(self, until_s: float) -> float:
        """Arrivals that are expected up to a time."""
        return self.per_s * until_s

    def time_of(self, expected: float) -> float:
        """The time up to which this number of arrivals is expected."""
        return expected / self.per_s


@dataclass(frozen=True)
class SteppedRate:
    """A rate that changes at times: `steps` are (time in s, rate per second) from time 0 on.

    The last rate stays, unless the steps repeat every `period_s`.
    """

    steps: tuple[tuple[float, float], ...]
    period_s: float | None = None

    @cached_property
    def _times(self) -> list[float]:
        return [at_s for at_s, _ in self.steps]

    @cached_property
    def _counts(self) -> list[float]:
        """Arrivals that are expected before each step, and at the end of a period."""
        ends = [*self.steps, (self.period_s, 0.0)] if self.period_s else self.steps
        spans = ((after - at) * rate for (at, rate), (after, _) in pairwise(ends))
        return [0.0, *accumulate(spans)]

    def expected(self, until_s: float) -> float:
        """Arrivals that are expected up to a time."""
        whole = 0.0
        if self.period_s:
            periods, until_s = divmod(until_s, self.period_s)
            whole = periods * self._counts[-1]
        number = bisect_right(self._times, until_s) - 1
        at_s, rate = self.steps[number]
        return whole + self._counts[number] + rate * (until_s - at_s)

    def time_of(self, expected: float) -> float:
        """The time up to which this number of arrivals is expected; infinite if they never come."""
        whole_s = 0.0
        if self.period_s:
            periods, expected = divmod(expected, self._counts[-1])
            whole_s = periods * self.period_s
        counts = self._counts[: len(self.steps)]
        number = bisect_right(counts, expected) - 1
        at_s, rate = self.steps[number]
        over = expected - counts[number]
        return whole_s + (at_s + over / rate if rate else math.inf)


@dataclass(frozen=True)
class DailyRate:
    """A rate that rises and falls once a day, smoothly.

    From the lowest rate it rises to the highest in half a period, as x^2 (3 - 2x) for x from 0 to
    1, which is within 1 % of the range of a cosine, and falls in the same way.

    Attributes
    ----------
    mean_per_s
        Mean over a whole period.
    peak_at_s
        When the rate is highest, in seconds from the start of a period (midnight).
    low_share
        The lowest rate over the highest, 0 to 1.
    starts_at_s
        Where in the period time 0 is.
    period_s
        Length of a period.
    """

    mean_per_s: float
    peak_at_s: float
    low_share: float
    starts_at_s: float = 0.0
    period_s: float = DAY_S

    @cached_property
    def _rates(self) -> tuple[float, float]:
        """The lowest and the highest rate; the mean is in their middle."""
        high = 2 * self.mean_per_s / (1 + self.low_share)
        return high * self.low_share, high

    @cached_property
    def _shift_s(self) -> float:
        """Time since the rate was lowest, at time 0."""
        return (self.starts_at_s - self.peak_at_s - self.period_s / 2) % self.period_s

    @cached_property
    def _before(self) -> float:
        return self._since_low(self._shift_s)

    def _since_low(self, after_s: float) -> float:
        """Arrivals that are expected from a lowest rate to a time after it."""
        low, high = self._rates
        half_s = self.period_s / 2
        halves, rest_s = divmod(after_s, half_s)
        x = rest_s / half_s
        rising = x * x * x * (1 - x / 2)  # the integral of x^2 (3 - 2x)
        part = x - rising if halves % 2 else rising
        return half_s * (low * (halves + x) + (high - low) * (halves / 2 + part))

    def rate_at(self, at_s: float) -> float:
        """The rate at a time."""
        low, high = self._rates
        half_s = self.period_s / 2
        halves, rest_s = divmod(at_s + self._shift_s, half_s)
        x = 1 - rest_s / half_s if halves % 2 else rest_s / half_s
        return low + (high - low) * x * x * (3 - 2 * x)

    def expected(self, until_s: float) -> float:
        """Arrivals that are expected up to a time."""
        return self._since_low(self._shift_s + until_s) - self._before

    def time_of(self, expected: float) -> float:
        """The time up to which this number of arrivals is expected.

        Newton's method, within a bracket.
        """
        periods = math.floor(expected / (self.mean_per_s * self.period_s))
        low, high = periods * self.period_s, (periods + 2) * self.period_s
        now = expected / self.mean_per_s
        for _ in range(_STEPS):
            over = self.expected(now) - expected
            if over > 0:
                high = now
            else:
                low = now
            rate = self.rate_at(now)
            after = now - over / rate if rate > 0 else low
            if not low < after < high:
                after = (low + high) / 2
            if abs(after - now) <= 1e-12 * max(1.0, now):
                return after
            now = after
        return now


def bursts(base_per_s: float, every_s: float, length_s: float, factor: float) -> SteppedRate:
    """A base rate with bursts: at the end of each `every_s`, `length_s` at `factor` times it.

    Raises
    ------
    InputError
        If a burst is not shorter than the time from one to the next.
    """
    check_rate(base_per_s)
    if not 0 < length_s < every_s:
        raise InputError(f"a burst must be shorter than {every_s:g} s, not {length_s:g} s")
    steps = ((0.0, base_per_s), (every_s - length_s, base_per_s * factor))
    return SteppedRate(steps, every_s)


def renewals(cv: float, rng: random.Random) -> Iterator[float]:
    """Arrivals at rate 1, endless: gaps with this `cv`, 0 for even ones, 1 for Poisson.

    Even ones begin at a random time within the first gap.
    """
    if not cv:
        offset = rng.random()
        yield from (offset + number for number in count())
    now = 0.0
    shape = 1 / cv**2
    while True:
        now += rng.expovariate(1.0) if cv == 1 else rng.gammavariate(shape, 1 / shape)
        yield now


def at_rate(rate: Rate, cv: float, rng: random.Random, *, scale: float = 1.0) -> Iterator[float]:
    """Arrivals at a rate, in seconds; they end where the rate stays 0, else never.

    Parameters
    ----------
    rate
        The rate.
    cv
        Of the gaps, in a time that runs at the rate.
    rng
        Source of all randomness.
    scale
        Factor on the rate.
    """
    for expected in renewals(cv, rng):
        at_s = rate.time_of(expected / scale)
        if at_s == math.inf:
            return
        yield at_s

"""A confidence interval of a capacity: of the mean of what each seed gives by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from helixsim.studies.student_t import mean_and_interval

CONFIDENCE = 0.95
MIN_SEEDS = 3
"""With two seeds, Student's t is 12.7: the interval would say next to nothing."""
_WIDER = 1.25
"""Factor by which a bracket grows where a seed's own capacity lies beyond the rates tried."""
_MOST_STEPS = 8


@dataclass(frozen=True)
class CapacityInterval:
    """The interval in which the capacity lies with 95 % confidence, in requests per second.

    Attributes
    ----------
    mean
        Mean of the capacities that the seeds give, each by itself.
    low, high
        Ends of Student's interval of this mean, or what the tolerance of the search leaves open
        if that is wider; not below 0.
    by_seed
        What each seed gives.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "confidence": CONFIDENCE,
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "by_seed": list(self.by_seed),
        }


def interval_of(requests_per_s: Sequence[float], tolerance: float) -> CapacityInterval:
    """The interval from the capacities of several seeds.

    Parameters
    ----------
    requests_per_s
        What each seed gives, to within the tolerance.
    tolerance
        Share by which the rates at both ends of a bisection may differ.
    """
    mean, _, low, high = mean_and_interval(requests_per_s)
    low = max(min(low, mean / (1 + tolerance)), 0.0)
    high = max(high, mean * (1 + tolerance))
    return CapacityInterval(mean, low, high, tuple(requests_per_s))


def seed_capacity(
    known: Mapping[float, bool],
    meets: Callable[[float], bool],
    most: float,
    tolerance: float,
    rounded: Callable[[float], float],
) -> float:
    """The highest rate that one seed meets, below every rate that it does not.

    Parameters
    ----------
    known
        Rates that were tried, and whether the seed meets them; at least one.
    meets
        Tries a rate.
    most
        The highest possible rate.
    tolerance
        The bisection ends when both ends differ by no more than this share.
    rounded
        Rounds rates.

    Returns
    -------
    float
        The geometric mean of both ends; 0 if no rate is met that is as high as a few steps below
        all that were tried.
    """
    tried = dict(known)
    low, high = _bracket(tried)
    for _ in range(_MOST_STEPS):
        if low is not None and high is not None:
            break
        if high is None:
            assert low is not None
            if low >= most:
                return most
            rate = min(rounded(low * _WIDER), most)
        else:
            rate = rounded(high / _WIDER)
        tried[rate] = meets(rate)
        low, high = _bracket(tried)
    if low is None:
        return 0.0
    if high is None:
        return low
    while high > low * (1 + tolerance):
        middle = rounded(sqrt(low * high))
        if not low < middle < high:
            break
        tried[middle] = meets(middle)
        low, high = (middle, high) if tried[middle] else (low, middle)
    return sqrt(low * high)


def _bracket(tried: Mapping[float, bool]) -> tuple[float | None, float | None]:
    """The highest rate that is met below the lowest that is not, and that one."""
    high = min((rate for rate, met in tried.items() if not met), default=None)
    low = max(
        (rate for rate, met in tried.items() if met and (high is None or rate < high)), default=None
    )
    return low, high

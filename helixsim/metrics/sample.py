"""Mean and percentiles of a quantity in bounded memory."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from itertools import accumulate
from math import exp, floor, log, nan

PERCENTILES = (5, 25, 50, 75, 95, 99)

EXACT_LIMIT = 1_000_000
"""Up to this number, values are stored (8 MB); beyond it, they are counted in narrow bins."""

_BIN_WIDTH = 0.0005
"""Relative width of a bin: percentiles of long runs are off by at most half of this."""


class Sample:
    """Collects values; exact up to a limit, then to within 0.025 percent.

    Attributes
    ----------
    append, extend
        Add one value, or several. They are bound methods of an array, without a call in between.
    """

    __slots__ = ("_bins", "_count", "_sum", "_values", "_zeros", "append", "extend")

    def __init__(self) -> None:
        self._values = array("d")
        self.append = self._values.append
        self.extend = self._values.extend
        self._bins: dict[int, int] = {}
        self._zeros = 0
        self._count = 0
        self._sum = 0.0

    def __len__(self) -> int:
        """Count the values added."""
        return self._count + len(self._values)

    def compact(self) -> None:
        """Move values into bins if there are too many; called at every sample of the gauges."""
        if len(self._values) <= EXACT_LIMIT and not self._bins:
            return
        bins = self._bins
        for value in self._values:
            if value > 0:
                number = floor(log(value) / _BIN_WIDTH)
                bins[number] = bins.get(number, 0) + 1
            else:
                self._zeros += 1
        self._count += len(self._values)
        self._sum += sum(self._values)
        del self._values[:]

    def merge(self, other: Sample) -> None:
        """Add all values of another sample."""
        self._values.extend(other._values)
        for number, count in other._bins.items():
            self._bins[number] = self._bins.get(number, 0) + count
        self._zeros += other._zeros
        self._count += other._count
        self._sum += other._sum

    def statistics(self) -> dict[str, float | None]:
        """Mean and percentiles; None for each where there are no values.

        Percentile p of n sorted values is the value at index ``int(n * p / 100)``, as in the
        published figures.
        """
        n = len(self)
        if not n:
            return dict.fromkeys(["mean", *(f"p{p}" for p in PERCENTILES)])
        if self._bins:
            self.compact()
        result: dict[str, float | None] = {"mean": (self._sum + sum(self._values)) / n}
        ranks = [int(n * p / 100) for p in PERCENTILES]
        found = self._binned(ranks) if self._bins else _sorted(self._values, ranks)
        return result | {f"p{p}": value for p, value in zip(PERCENTILES, found, strict=True)}

    def _binned(self, ranks: list[int]) -> list[float]:
        numbers = sorted(self._bins)
        ends = list(accumulate((self._bins[number] for number in numbers), initial=self._zeros))
        found = []
        for rank in ranks:
            place = bisect_left(ends, rank + 1)
            found.append(exp((numbers[place - 1] + 0.5) * _BIN_WIDTH) if place else 0.0)
        return found


def _sorted(values: array[float], ranks: list[int]) -> list[float]:
    ordered = sorted(values)
    return [ordered[rank] if ordered else nan for rank in ranks]

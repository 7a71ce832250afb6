"""Grids of measured times: checks, and multilinear interpolation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, prod

from helixsim.errors import ScenarioError


def interpolated(
    axes: Sequence[Sequence[int]], values: Sequence[float], point: Sequence[float]
) -> float:
    """Value at a point of a row-major grid, multilinear.

    Below the first point of an axis, its value holds; beyond the last point, the line through the
    last two is extrapolated, unless it falls: then the last value holds.
    """
    stride = len(values)
    places = []
    for axis, at in zip(axes, point, strict=True):
        stride //= len(axis)
        left, fraction = _place(axis, at)
        places.append((left * stride, stride, fraction))
    return _value(values, 0, places, 0)


def _value(
    values: Sequence[float], start: int, places: Sequence[tuple[int, int, float]], depth: int
) -> float:
    """Value at a point, with the axes before `depth` fixed: their cells begin at `start`."""
    if depth == len(places):
        return values[start]
    offset, stride, fraction = places[depth]
    low = _value(values, start + offset, places, depth + 1)
    if fraction == 0:
        return low
    high = _value(values, start + offset + stride, places, depth + 1)
    if fraction == 1 or (fraction > 1 and high < low):
        return high
    return low + (high - low) * fraction


def _place(axis: Sequence[int], at: float) -> tuple[int, float]:
    """Index of the point to the left on an axis, and the fraction of the way to the next."""
    if at <= axis[0] or len(axis) == 1:
        return 0, 0.0
    left = min(bisect_right(axis, at), len(axis) - 1) - 1
    return left, (at - axis[left]) / (axis[left + 1] - axis[left])


def check_axis(name: str, axis: Sequence[int]) -> None:
    """Refuse points of an axis that do not rise from 0 or more."""
    if not axis:
        raise ScenarioError("give one point at least", where=name)
    if axis[0] < 0:
        raise ScenarioError(f"must be at least 0, not {axis[0]}", where=f"{name}[0]")
    for index, (before, after) in enumerate(pairwise(axis), start=1):
        if after <= before:
            raise ScenarioError(
                f"{name} must rise, but {after} follows {before}", where=f"{name}[{index}]"
            )


def check_cells(axes: Sequence[Sequence[int]], seconds: Sequence[float]) -> None:
    """Refuse a number of times that differs from that of the grid's points."""
    expected = prod(len(axis) for axis in axes)
    if len(seconds) != expected:
        shape = " x ".join(str(len(axis)) for axis in axes)
        raise ScenarioError(
            f"has {len(seconds)} times, but should have {shape} = {expected}", where="seconds"
        )


def check_time(index: int, value: float) -> None:
    """Refuse a time that is not above zero and finite."""
    if not (isfinite(value) and value > 0):
        raise ScenarioError(
            f"must be a finite time above zero, not {value}", where=f"seconds[{index}]"
        )

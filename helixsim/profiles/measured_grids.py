"""Complete grids from measurements in which combinations are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise, product
from math import inf

from helixsim.errors import InputError
from helixsim.profiles.operators import OperatorCurve

Axes = tuple[tuple[int, ...], ...]
Cells = Mapping[tuple[int, ...], float]
"""Point of a grid -> seconds."""
Grid = tuple[Axes, tuple[float, ...]]
"""Axes, and times at all their combinations, the last axis fastest."""

_COMPLETE_SHARE = 0.75
"""A grid of which less was measured holds several sweeps, of which one is used."""


def sum_of_curves(curves: Mapping[str, OperatorCurve], weights: Mapping[str, int]) -> OperatorCurve:
    """The weighted sum, at all points of the curves that none of them ends before."""
    end = min(curve.tokens[-1] for curve in curves.values())
    points = {count for curve in curves.values() for count in curve.tokens if count <= end}
    tokens = tuple(sorted(points))
    return OperatorCurve(
        tokens,
        tuple(
            sum(weights[name] * curve(count) for name, curve in curves.items()) for count in tokens
        ),
    )


def attention_grid(measured: Cells) -> Grid:
    """Complete grid of the attention, by chunk, its context, decodes and their context.

    A grid in which much is missing has points of several sweeps; of these, the powers of two
    are used. A chunk alone and decodes alone are interpolated along their contexts. A chunk
    beside decodes that was not measured takes the sum of both alone.

    Raises
    ------
    InputError
        If chunks alone or decodes alone are missing.
    """
    cells = _normal(measured)
    if _share(cells) < _COMPLETE_SHARE:
        cells = {
            point: seconds
            for point, seconds in cells.items()
            if all(value & (value - 1) == 0 for value in point)
        }
    chunks = _alone(((c, k), s) for (c, k, n, _), s in cells.items() if c and not n)
    decodes = _alone(((n, q), s) for (c, _, n, q), s in cells.items() if n and not c)
    axes = _axes_of(cells)
    for counts, known, what in (
        (axes[0], chunks, "a chunk of {} alone (with n_decode 0)"),
        (axes[2], decodes, "{} decodes alone (with prefill_chunk 0)"),
    ):
        absent = [count for count in counts if count and count not in known]
        if absent or not known:
            raise InputError(f"has no time of {what.format(absent[0] if absent else 'any')}")

    def seconds(chunk: int, context: int, count: int, decode_context: int) -> float:
        found = cells.get((chunk, context, count, decode_context)) if chunk and count else None
        if found is None:
            chunk_s = chunks[chunk](context) if chunk else 0.0
            found = chunk_s + (decodes[count](decode_context) if count else 0.0)
        return found

    return axes, tuple(seconds(*point) for point in product(*axes))


def expert_grid(cells: Cells) -> Grid:
    """Complete grid of the experts, by tokens and distinct experts.

    Few tokens cannot use many experts. Such cells, which only serve interpolation, take the
    time of the next number of tokens that was measured with this number of experts.
    """
    tokens, experts = (tuple(sorted(set(axis))) for axis in zip(*cells, strict=True))
    times = []
    for count, used in product(tokens, experts):
        measured = [other for other in tokens if (other, used) in cells]
        nearest = next((other for other in measured if other >= count), measured[-1])
        times.append(cells[nearest, used])
    return (tokens, experts), tuple(times)


def _normal(measured: Cells) -> dict[tuple[int, ...], float]:
    """The cells without contexts of no chunk or no decodes."""
    cells: dict[tuple[int, ...], float] = {}
    for (chunk, context, decodes, decode_context), seconds in measured.items():
        if chunk or decodes:
            key = (chunk, context if chunk else 0, decodes, decode_context if decodes else 0)
            cells.setdefault(key, seconds)
    return cells


def _axes_of(cells: Cells) -> Axes:
    return (
        tuple(sorted({0, *(chunk for chunk, _, _, _ in cells)})),
        tuple(sorted({context for chunk, context, _, _ in cells if chunk})),
        tuple(sorted({0, *(decodes for _, _, decodes, _ in cells)})),
        tuple(sorted({context for _, _, decodes, context in cells if decodes})),
    )


def _share(cells: Cells) -> float:
    """Share of the meaningful combinations that were measured."""
    chunk, chunk_context, decodes, decode_context = map(len, _axes_of(cells))
    chunks, batches = (chunk - 1) * chunk_context, (decodes - 1) * decode_context
    return len(cells) / max(1, chunks + batches + chunks * batches)


def _alone(
    points: Iterable[tuple[tuple[int, int], float]],
) -> dict[int, OperatorCurve]:
    """Size -> curve over contexts."""
    known: dict[int, dict[int, float]] = {}
    for (size, context), seconds in points:
        known.setdefault(size, {})[context] = seconds
    return {size: curve_of(times) for size, times in known.items()}


def curve_of(times: Mapping[int, float]) -> OperatorCurve:
    """The curve through measured points, in any order."""
    points = sorted(times)
    return OperatorCurve(tuple(points), tuple(times[point] for point in points))


def simplified(curve: OperatorCurve, tolerance: float) -> OperatorCurve:
    """A curve through some of the points that misses none of the others by more than a share.

    From each kept point, it goes on to the last one that a line reaches so.
    """
    points = list(zip(curve.tokens, curve.seconds, strict=True))
    kept = [points[0]]
    lowest, highest = -inf, inf
    for before, (tokens, seconds) in pairwise(points):
        width = tokens - kept[-1][0]
        if not lowest <= (seconds - kept[-1][1]) / width <= highest:
            kept.append(before)
            width = tokens - before[0]
            lowest, highest = -inf, inf
        start_s, allowed_s = kept[-1][1], tolerance * seconds
        lowest = max(lowest, (seconds - allowed_s - start_s) / width)
        highest = min(highest, (seconds + allowed_s - start_s) / width)
    if points[-1] != kept[-1]:
        kept.append(points[-1])
    return curve_of(dict(kept))

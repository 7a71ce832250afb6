"""Least absolute differences by Gauss-Newton steps with damping (Levenberg-Marquardt).

Each round varies every parameter once, which tells how the differences depend on it, and tries
steps with several dampings from there. Differences count by their size, not its square, so that
a latency that no cost can explain does not pull at the others: squares are divided by the size
(iteratively reweighted least squares).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np

_VARIED = 0.5
"""Varying a parameter moves it so far; rounds alternate between up and down."""

_DAMPINGS = (0.01, 0.1, 1.0)
_LENGTHS = (1.0, 0.5)
_FARTHEST = 3.0
_LEAST_SIZE = 0.003

Evaluate = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
"""Differences at each of some points."""


@dataclass
class Search:
    """A search from the origin.

    Attributes
    ----------
    point, loss
        The best point so far, and the sum of its absolute differences.
    start_loss
        The same at the origin.
    tried
        Number of evaluations.
    """

    size: int
    evaluate: Evaluate
    on_progress: Callable[[int, float], None]

    def __post_init__(self) -> None:
        self.point = np.zeros(self.size)
        self._differences = self.evaluate([self.point])[0]
        self.loss = self.start_loss = float(np.abs(self._differences).sum())
        self.tried = 1
        self._upwards = True
        self.on_progress(self.tried, self.loss)

    def run(self, evaluations: int, time_limit_s: float | None) -> None:
        """Search until a round more would take too many evaluations, or the time is over."""
        deadline = None if time_limit_s is None else monotonic() + time_limit_s
        in_round = self.size + len(_DAMPINGS) * len(_LENGTHS)
        while self.tried + in_round <= evaluations:
            if deadline is not None and monotonic() >= deadline:
                break
            self._round()

    def _round(self) -> None:
        varied = _VARIED if self._upwards else -_VARIED
        self._upwards = not self._upwards
        around = self._at(list(self.point + varied * np.eye(self.size)))
        slopes = np.array([(each - self._differences) / varied for each in around]).T
        weights = 1 / np.sqrt(np.abs(self._differences) + _LEAST_SIZE)
        weighted = slopes * weights[:, None]
        normal = weighted.T @ weighted
        gradient = weighted.T @ (self._differences * weights)
        damping = np.eye(self.size) * max(float(np.trace(normal)) / self.size, 1e-12)
        steps = [_shortened(-np.linalg.solve(normal + d * damping, gradient)) for d in _DAMPINGS]
        points = [self.point + length * step for step in steps for length in _LENGTHS]
        for point, differences in zip(points, self._at(points), strict=True):
            loss = float(np.abs(differences).sum())
            if loss < self.loss:
                self.point, self.loss, self._differences = point, loss, differences
        self.on_progress(self.tried, self.loss)

    def _at(self, points: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = self.evaluate(points)
        self.tried += len(points)
        return found


def _shortened(step: np.ndarray) -> np.ndarray:
    longest = float(np.abs(step).max())
    return step * min(1.0, _FARTHEST / longest) if longest else step

"""The search of a calibration."""

from __future__ import annotations

import numpy as np
import pytest

from helixsim.calibration.search import Search

TRUTH = np.array([1.5, -0.7, 0.2])
SLOPES = np.array(
    [[1.0, 0.2, 0.0], [0.3, 1.0, 0.1], [0.0, 0.5, 1.0], [1.0, 1.0, 1.0], [0.4, 0.0, 0.9]]
)


def differences(points):
    """What differs is linear in the point, but for one element that no point explains."""
    return [np.append(SLOPES @ (point - TRUTH), 5.0) for point in points]


def test_the_point_is_found_despite_a_difference_that_stays():
    search = Search(3, differences, lambda tried, loss: None)
    search.run(100, None)
    assert search.point == pytest.approx(TRUTH, abs=0.01)
    assert search.loss == pytest.approx(5.0, abs=0.05)
    assert search.start_loss > 7


def test_no_more_evaluations_than_allowed():
    told = []
    search = Search(3, differences, lambda tried, loss: told.append(tried))
    search.run(20, None)
    assert told == [1, 10, 19]
    search.run(1000, 0.0)
    assert search.tried == 19


def test_what_has_no_influence_stays():
    search = Search(2, lambda points: [np.array([p[0] - 1.0]) for p in points], lambda *_: None)
    search.run(100, None)
    assert search.point == pytest.approx([1.0, 0.0], abs=0.01)

"""Confidence intervals of few values."""

from __future__ import annotations

from math import isnan

import pytest
from scipy import stats

from helixsim.studies.student_t import mean_and_interval, t_quantile


@pytest.mark.parametrize("degrees", [*range(1, 40), 99, 100, 1000, 10_000])
def test_quantiles_are_those_of_scipy(degrees):
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_published_quantiles():
    # Any table of Student's t, two-sided 5 %.
    assert [round(t_quantile(n), 3) for n in (1, 2, 5, 30)] == [12.706, 4.303, 2.571, 2.042]


def test_an_interval_is_that_of_scipy():
    values = [3.0, 5.5, 4.0, 7.25]
    mean, deviation, low, high = mean_and_interval(values)
    assert mean == 4.9375
    assert deviation == pytest.approx(stats.tstd(values), rel=1e-12)
    expected = stats.t.interval(0.95, 3, loc=mean, scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected, rel=1e-9)


def test_too_few_values():
    assert all(isnan(part) for part in mean_and_interval([]))
    mean, *rest = mean_and_interval([2.0])
    assert mean == 2.0
    assert all(isnan(part) for part in rest)
    assert mean_and_interval([2.0, 2.0]) == (2.0, 0.0, 2.0, 2.0)

"""Distributions of lengths: what is drawn has the mean and the percentiles that were asked for."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean, pstdev

import pytest

from helixsim.errors import InputError, TraceError
from helixsim.traces.distributions import (
    Empirical,
    Fixed,
    LogNormal,
    Times,
    Uniform,
    lognormal_of_mean,
    lognormal_of_median,
)
from helixsim.traces.number_files import read_numbers

DRAWS = 20_000


def drawn(distribution, count=DRAWS, seed=1):
    rng = Random(seed)
    return sorted(distribution.sample(rng) for _ in range(count))


@pytest.mark.parametrize(
    "distribution",
    [
        lognormal_of_mean(1200, cv=1.0),
        lognormal_of_mean(350, p95=900),
        lognormal_of_mean(3, cv=1.0),
        lognormal_of_mean(1.5, cv=0.5),
        lognormal_of_mean(1200, cv=1.0, low=100, high=4000),
        lognormal_of_mean(350, p95=900, high=600),
        lognormal_of_median(200, 900),
        lognormal_of_median(200, 900, low=50, high=1000),
        Uniform(3, 40),
        Fixed(7),
        Empirical((1, 2, 30, 400)),
    ],
)
def test_the_mean_that_is_drawn_is_the_mean_that_is_told(distribution):
    numbers = drawn(distribution)
    assert fmean(numbers) == pytest.approx(distribution.mean, rel=0.015)
    squares = fmean(number * number for number in numbers)
    assert squares == pytest.approx(distribution.mean_square, rel=0.05)


@pytest.mark.parametrize(
    ("mean", "limits"),
    [(1200, {}), (1200, {"high": 2048}), (1200, {"low": 300, "high": 3000}), (2.5, {}), (40, {})],
)
def test_a_mean_that_is_asked_for_is_kept_within_limits(mean, limits):
    found = lognormal_of_mean(mean, cv=1.0, **limits)
    assert found.mean == pytest.approx(mean, rel=1e-8)
    numbers = drawn(found)
    assert numbers[0] >= limits.get("low", 1)
    assert numbers[-1] <= limits.get("high", math.inf)


def test_the_spread_is_as_asked():
    by_cv = drawn(lognormal_of_mean(1000, cv=0.5))
    assert pstdev(by_cv) / fmean(by_cv) == pytest.approx(0.5, rel=0.03)
    by_p95 = drawn(lognormal_of_mean(350, p95=900))
    assert by_p95[DRAWS * 95 // 100] == pytest.approx(900, rel=0.03)
    by_median = drawn(lognormal_of_median(200, 900))
    assert by_median[DRAWS // 2] == pytest.approx(200, rel=0.03)
    assert by_median[DRAWS * 95 // 100] == pytest.approx(900, rel=0.03)


def test_parameters_are_those_of_the_formulas():
    found = lognormal_of_mean(1200, cv=1.0)
    assert found.sigma == pytest.approx(math.sqrt(math.log(2)))
    assert found.mu == pytest.approx(math.log(1200) - math.log(2) / 2, abs=1e-6)
    found = lognormal_of_mean(350, p95=900)
    assert math.exp(found.mu + 1.6448536 * found.sigma) == pytest.approx(900, rel=1e-6)
    assert math.exp(found.mu + found.sigma**2 / 2) == pytest.approx(350, rel=1e-6)


def test_numbers_of_a_small_distribution_by_hand():
    # Uniform 2 to 5: mean 3.5, squares (4 + 9 + 16 + 25) / 4.
    assert (Uniform(2, 5).mean, Uniform(2, 5).mean_square) == (3.5, 13.5)
    assert set(drawn(Uniform(2, 5), 200)) == {2, 3, 4, 5}
    # Rounded to 1 or 2: the share of 1 is Phi(ln 1.5) within Phi(ln 2.5) - Phi(ln 0.5).
    found = LogNormal(0.0, 1.0, low=1, high=2)
    phi = [0.5 * math.erfc(-math.log(end) / math.sqrt(2)) for end in (0.5, 1.5, 2.5)]
    ones = (phi[1] - phi[0]) / (phi[2] - phi[0])
    assert found.mean == pytest.approx(2 - ones)
    assert found.mean_square == pytest.approx(4 - 3 * ones)


def test_draws_are_repeatable():
    found = lognormal_of_mean(1200, cv=1.0)
    assert [found.sample(Random(5)) for _ in range(2)] == [found.sample(Random(5))] * 2
    rng = Random(0)
    assert [found.sample(rng) for _ in range(5)] == [1972, 1519, 718, 495, 869]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lognormal_of_mean(100, p95=90), "p95 must be above the mean of 100"),
        (lambda: lognormal_of_mean(100, p95=500), "at most 3.87 times it"),
        (lambda: lognormal_of_mean(100, cv=1, high=50), "not within the limits 1 to 50"),
        (lambda: lognormal_of_mean(100.5, cv=0), "not a whole number"),
        (lambda: lognormal_of_median(100, 100), "p95 must be above the median"),
        (lambda: lognormal_of_median(100, 200, high=5), "nothing"),
        (lambda: Empirical((5, 6)).limited(7, None), "nothing"),
        (lambda: Uniform(1, 5).limited(6, 9), "nothing"),
        (lambda: Fixed(5).limited(None, 4), "nothing"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_without_a_spread_all_are_equal():
    assert lognormal_of_mean(100, cv=0) == Fixed(100)


def test_times():
    rng, fixed = Random(1), Random(1)
    times = [Times(20.0, 1.5).sample(rng) for _ in range(DRAWS)]
    assert fmean(times) == pytest.approx(20.0, rel=0.04)
    assert Times(3.0).sample(fixed) == 3.0
    assert fixed.random() == Random(1).random()  # nothing was drawn


def test_numbers_from_a_file(tmp_path):
    file = tmp_path / "lengths.csv"
    file.write_text("prompt, answer\n10,3\n\n20,5\n")
    assert read_numbers(file, "answer") == (3, 5)
    assert read_numbers(file, "prompt") == (10, 20)
    one = tmp_path / "one.csv"
    one.write_text("n\n4\n")
    assert read_numbers(one) == (4,)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a,b\n1,2\n", None, "has 2 columns; name one of them with `column`: a, b"),
        ("a,b\n1,2\n", "aa", "has no column 'aa'; did you mean 'a'"),
        ("a,b\n1\n", "b", "row 2: has 1 fields"),
        ("a\n0\n", "a", "row 2: 0 tokens"),
        ("a\n1.5\n", "a", "row 2: '1.5' is not a whole number"),
        ("a\n", "a", "a header but no rows"),
        ("", None, "the file is empty"),
    ],
)
def test_a_file_of_numbers_that_cannot_be_used(tmp_path, text, column, message):
    file = tmp_path / "lengths.csv"
    file.write_text(text)
    with pytest.raises(TraceError, match=message):
        read_numbers(file, column)

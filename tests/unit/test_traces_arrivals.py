"""Arrivals: rates and burstiness against theory, and how near the patterns are to the data."""

from __future__ import annotations

import math
import random
from itertools import islice, pairwise, takewhile
from statistics import fmean, pstdev

import pytest
from tools.trace_nearness import arrivals_table

from helixsim.errors import InputError
from helixsim.traces import (
    ARRIVAL_PATTERNS,
    SLOT_S,
    arrival_pattern,
    gamma,
    in_slots,
    patterns,
    poisson,
)


def gaps(times, num):
    return [later - earlier for earlier, later in pairwise([0.0, *islice(times, num)])]


def test_poisson_gaps_are_exponential():
    drawn = gaps(poisson(4.0, random.Random(0)), 40_000)
    # Mean 1/4, standard deviation 1/4, and e^-1 of the gaps longer than the mean; the bounds
    # are four standard errors.
    assert fmean(drawn) == pytest.approx(0.25, rel=0.02)
    assert pstdev(drawn) == pytest.approx(0.25, rel=0.03)
    assert sum(gap > 0.25 for gap in drawn) / 40_000 == pytest.approx(math.exp(-1), rel=0.03)


@pytest.mark.parametrize("cv", [0.1, 0.5, 1.0, 2.0])
def test_gamma_gaps_have_the_mean_and_the_cv(cv):
    drawn = gaps(gamma(4.0, cv, random.Random(0)), 40_000)
    assert fmean(drawn) == pytest.approx(0.25, rel=0.02 * max(cv, 1))
    assert pstdev(drawn) / fmean(drawn) == pytest.approx(cv, rel=0.06)


def test_in_slots_keeps_the_counts_and_ends():
    times = list(in_slots((2, 0, 3), random.Random(0), slot_s=10.0))
    assert times == sorted(times)
    assert [int(time // 10) for time in times] == [0, 0, 2, 2, 2]
    assert list(in_slots((), random.Random(0))) == []


@pytest.mark.parametrize("name", ARRIVAL_PATTERNS)
def test_patterns_keep_the_mean_rate_in_the_long_run(name):
    end_s = 60 * 3600.0
    rates = [
        sum(1 for _ in takewhile(lambda t: t < end_s, arrival_pattern(name).arrivals(rng, 0.5)))
        / end_s
        for rng in map(random.Random, range(3))
    ]
    # The rate of one hour has a standard deviation of up to 14 %, that of 180 hours of 1 %.
    assert fmean(rates) == pytest.approx(0.5, rel=0.04)


@pytest.mark.parametrize("name", ARRIVAL_PATTERNS)
def test_patterns_come_in_order_and_repeat(name):
    times = list(islice(arrival_pattern(name).arrivals(random.Random(7)), 5000))
    assert times == sorted(times)
    assert times == list(islice(arrival_pattern(name).arrivals(random.Random(7)), 5000))
    assert times != list(islice(arrival_pattern(name).arrivals(random.Random(8)), 5000))


def empty_slots(name, rate_per_s):
    times = arrival_pattern(name).arrivals(random.Random(0), rate_per_s)
    busy = {int(time // SLOT_S) for time in takewhile(lambda t: t < 3600 * SLOT_S, times)}
    return 1 - len(busy) / 3600


def test_a_higher_rate_leaves_the_lulls_as_long_as_they_are():
    # Lulls are 13.21 / (13.21 + 6.05) of the time.
    assert empty_slots("azure-code", 50.0) == pytest.approx(0.686, abs=0.05)
    assert empty_slots("azure-conversation", 50.0) == 0


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, 1e7])
def test_rates_that_are_refused(rate):
    rng = random.Random(0)
    with pytest.raises(InputError, match="a rate must be above 0"):
        poisson(rate, rng)
    with pytest.raises(InputError, match="a rate must be above 0"):
        gamma(rate, 1.0, rng)
    with pytest.raises(InputError, match="a rate must be above 0"):
        arrival_pattern("azure-code").arrivals(rng, rate)


@pytest.mark.parametrize("cv", [0, -1, math.nan, math.inf, 21])
def test_cvs_that_are_refused(cv):
    with pytest.raises(InputError, match="cv of the gaps"):
        gamma(1.0, cv, random.Random(0))


@pytest.mark.parametrize("slot_s", [0, -1, math.nan, math.inf])
def test_slots_that_are_refused(slot_s):
    with pytest.raises(InputError, match="a slot must last"):
        in_slots((1,), random.Random(0), slot_s=slot_s)


def test_names():
    assert list(ARRIVAL_PATTERNS) == ["azure-conversation", "azure-code"]
    with pytest.raises(InputError, match="no arrival pattern 'code'; there are: azure-conv"):
        arrival_pattern("code")


@pytest.mark.reference
def test_the_documented_nearness_is_what_is_measured(reference):
    documented = [line.strip() for line in patterns.__doc__.splitlines()]
    for line in arrivals_table(reference / "traces").splitlines():
        assert line.strip() in documented

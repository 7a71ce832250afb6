"""Rates that vary: their integrals, and arrivals that follow them."""

from __future__ import annotations

from itertools import pairwise, takewhile
from random import Random
from statistics import fmean, pstdev

import pytest

from helixsim.errors import InputError
from helixsim.traces.rates import (
    ConstantRate,
    DailyRate,
    SteppedRate,
    at_rate,
    bursts,
    renewals,
)

HOUR = 3600.0
DAY = DailyRate(6.0, peak_at_s=14 * HOUR, low_share=0.2)
STEPS = SteppedRate(((0.0, 2.0), (300.0, 6.0), (400.0, 0.0), (500.0, 1.0)))
BURSTS = bursts(4.0, every_s=300.0, length_s=30.0, factor=5.0)
RATES = [ConstantRate(3.0), DAY, STEPS, BURSTS, DailyRate(1.0, 0.0, 0.0, 5.0, 100.0)]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("count", [0.0, 0.25, 7.0, 599.0, 601.0, 1300.0, 123_456.7])
def test_the_time_of_a_count_has_that_count(rate, count):
    at_s = rate.time_of(count)
    assert rate.expected(at_s) == pytest.approx(count, rel=1e-9, abs=1e-9)


def test_counts_by_hand():
    assert [STEPS.expected(t) for t in (0, 100, 300, 350, 400, 450, 510)] == [
        *(0, 200, 600, 900, 1200, 1200),
        1210,
    ]
    assert [STEPS.time_of(n) for n in (200, 900, 1210)] == [100, 350, 510]
    # 270 s at 4 and 30 s at 20 are 1,680 in each 300 s.
    assert [BURSTS.expected(t) for t in (270, 280, 300, 570)] == [1080, 1280, 1680, 2760]
    assert [BURSTS.time_of(n) for n in (1080, 1280, 1680, 2760)] == [270, 280, 300, 570]


def test_a_day_by_hand():
    # A mean of 6 and a fifth at night: 10 at 14 h, 2 at 2 h, and the mean in between.
    assert [DAY.rate_at(hour * HOUR) for hour in (14, 2, 8, 20)] == [10, 2, 6, 6]
    assert DAY.expected(24 * HOUR) == pytest.approx(6 * 24 * HOUR)
    # A run that starts at 8 h: half a day around the peak has 6 + 4 x (1 - 2 x 3/16), as the
    # integral of x^2 (3 - 2x) from 0 to 1/2 is 3/32.
    morning = DailyRate(6.0, 14 * HOUR, 0.2, starts_at_s=8 * HOUR)
    assert morning.rate_at(6 * HOUR) == 10
    rising = 8 - (8 * 2 * 3 / 32)
    assert morning.expected(12 * HOUR) == pytest.approx((2 + rising) * 12 * HOUR)


def test_rates_end():
    ends = SteppedRate(((0.0, 2.0), (10.0, 0.0)))
    times = list(at_rate(ends, 0.0, Random(1)))
    assert len(times) == 20
    assert times[-1] < 10


@pytest.mark.parametrize(("cv", "tolerance"), [(0.0, 1e-9), (1.0, 0.02), (0.5, 0.02), (2.0, 0.06)])
def test_gaps_have_mean_one_and_the_cv(cv, tolerance):
    stream = renewals(cv, Random(4))
    times = [next(stream) for _ in range(20_000)]
    gaps = [after - before for before, after in pairwise(times)]
    assert fmean(gaps) == pytest.approx(1.0, rel=max(tolerance, 0.01))
    assert pstdev(gaps) == pytest.approx(cv, rel=tolerance, abs=1e-9)


def test_arrivals_follow_the_rate():
    times = list(takewhile(lambda at: at < 3000, at_rate(BURSTS, 1.0, Random(2))))
    in_bursts = sum(at % 300 >= 270 for at in times)
    # 10 bursts of 600 expected, and 10,800 between them; 4 standard deviations.
    assert in_bursts == pytest.approx(6000, abs=4 * 6000**0.5)
    assert len(times) - in_bursts == pytest.approx(10_800, abs=4 * 10_800**0.5)
    assert times == sorted(times)


def test_a_scale_and_repeatability():
    def first(scale, seed=3):
        stream = at_rate(DAY, 1.0, Random(seed), scale=scale)
        return [next(stream) for _ in range(2000)]

    assert first(1.0) == first(1.0)
    assert first(2.0)[-1] < first(1.0)[-1] < first(0.5)[-1]
    stream = at_rate(ConstantRate(4.0), 0.0, Random(1))
    assert next(stream) == Random(1).random() / 4


def test_a_burst_is_shorter_than_its_period():
    with pytest.raises(InputError, match="shorter than 30 s, not 30 s"):
        bursts(4.0, 30.0, 30.0, 2.0)

"""Means and percentiles, exact and in bins."""

from __future__ import annotations

from random import Random

import pytest

from helixsim.metrics import sample as module
from helixsim.metrics.sample import PERCENTILES, Sample

KEYS = ["mean", "p5", "p25", "p50", "p75", "p95", "p99"]


def sample_of(values):
    sample = Sample()
    for value in values:
        sample.append(value)
    return sample


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(module, "EXACT_LIMIT", 100)


def test_nothing_has_no_statistics():
    assert Sample().statistics() == dict.fromkeys(KEYS)
    assert len(Sample()) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 19, 20, 21, 100, 101])
def test_percentiles_are_the_value_at_index_int_of_n_p_over_100(n):
    values = [float(value * value) for value in range(n)]
    shuffled = values[:]
    Random(n).shuffle(shuffled)
    found = sample_of(shuffled).statistics()
    assert list(found) == KEYS
    assert found["mean"] == pytest.approx(sum(values) / n, rel=1e-15)
    assert [found[f"p{p}"] for p in PERCENTILES] == [values[int(n * p / 100)] for p in PERCENTILES]


def test_up_to_the_limit_values_are_exact(small_limit):
    sample = sample_of([0.1] * 100)
    sample.compact()
    assert sample.statistics()["p50"] == 0.1


def test_beyond_the_limit_percentiles_are_within_a_fortieth_of_a_percent(small_limit):
    rng = Random(4)
    values = [rng.lognormvariate(-1, 2) for _ in range(5000)]
    exact = sample_of(values).statistics()
    binned = Sample()
    for number, value in enumerate(values, 1):
        binned.append(value)
        if number % 700 == 0:
            binned.compact()
    assert len(binned) == 5000
    found = binned.statistics()
    assert found["mean"] == pytest.approx(exact["mean"], rel=1e-12)
    for key in KEYS[1:]:
        assert found[key] == pytest.approx(exact[key], rel=0.00025)
    assert any(found[key] != exact[key] for key in KEYS[1:])


def test_zeros_are_counted_in_bins_too(small_limit):
    sample = sample_of([0.0] * 60 + [2.0] * 60)
    sample.compact()
    found = sample.statistics()
    assert (found["p5"], found["p25"]) == (0.0, 0.0)
    assert found["p75"] == pytest.approx(2.0, rel=0.00025)
    assert found["mean"] == 1.0


@pytest.mark.parametrize("compacted", ["neither", "first", "second", "both"])
def test_merging_is_as_if_all_had_gone_into_one(small_limit, compacted):
    rng = Random(9)
    values = [rng.expovariate(3) for _ in range(400)]
    first, second = sample_of(values[:150]), sample_of(values[150:])
    if compacted in ("first", "both"):
        first.compact()
    if compacted in ("second", "both"):
        second.compact()
    first.merge(second)
    exact, found = sample_of(values).statistics(), first.statistics()
    assert len(first) == 400
    tolerance = 1e-12 if compacted == "neither" else 0.00025
    assert found == pytest.approx(exact, rel=tolerance)
    assert len(second) == 250  # it is only read


def test_append_keeps_working_after_compacting(small_limit):
    sample = sample_of([1.0] * 101)
    sample.compact()
    sample.append(3.0)
    assert len(sample) == 102
    assert sample.statistics()["mean"] == pytest.approx(104 / 102)

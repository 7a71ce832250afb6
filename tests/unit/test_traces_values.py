"""Trace and Lengths: what holds for every workload, and the ways to change one."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter

import pytest

from helixsim.errors import InputError
from helixsim.requests import SharedPrefix, TraceRequest
from helixsim.traces import Lengths, Trace

TRACE = Trace(
    (TraceRequest(1.0, 10, 2), TraceRequest(2.0, 3000, 5), TraceRequest(5.0, 20, 2000)),
    source="three",
    num_skipped=4,
)


def rows(trace):
    return [dataclasses.astuple(request)[:3] for request in trace.requests]


def test_rate_is_gaps_over_the_time_they_take():
    assert (len(TRACE), TRACE.span_s, TRACE.rate_per_s) == (3, 4.0, 0.5)
    assert Trace(TRACE.requests[:1]).rate_per_s == math.inf


def test_scaling_divides_every_time():
    scaled = TRACE.scaled(2)
    assert rows(scaled) == [(0.5, 10, 2), (1.0, 3000, 5), (2.5, 20, 2000)]
    assert (scaled.source, scaled.num_skipped) == ("three", 4)


def test_scaling_to_a_rate():
    assert rows(TRACE.scaled_to(0.25)) == [(2.0, 10, 2), (4.0, 3000, 5), (10.0, 20, 2000)]


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf, 1e-320])
def test_factors_that_are_refused(factor):
    with pytest.raises(InputError):
        TRACE.scaled(factor)
    with pytest.raises(InputError):
        TRACE.scaled_to(factor)


def test_requests_that_arrive_at_once_have_no_rate_to_scale():
    with pytest.raises(InputError, match="all requests arrive at once"):
        Trace(TRACE.requests[:1]).scaled_to(1.0)


def test_between_takes_the_start_and_leaves_the_end():
    assert rows(TRACE.between(1.0, 5.0)) == [(0.0, 10, 2), (1.0, 3000, 5)]
    with pytest.raises(InputError, match="three: a trace needs at least one request"):
        TRACE.between(6.0, 7.0)


def test_what_prompts_share_and_priorities_are_kept():
    shared = SharedPrefix((1,), 16), 4
    trace = Trace((TraceRequest(1.0, 20, 2, *shared), TraceRequest(3.0, 30, 2)))
    for changed in (trace.scaled(2), trace.scaled_to(7), trace.between(1, 9), trace.limited()):
        first, second = changed.requests
        assert (first.prefix, first.priority) == shared
        assert (second.prefix, second.priority) == (None, 0)


def test_limits_leave_out_longer_requests():
    assert rows(TRACE.limited(max_prompt_tokens=3000)) == rows(TRACE)
    assert rows(TRACE.limited(max_prompt_tokens=2999)) == [(1.0, 10, 2), (5.0, 20, 2000)]
    assert TRACE.limited(max_output_tokens=2).lengths.pairs == ((10, 2),)
    assert TRACE.lengths.limited(max_prompt_tokens=2048, max_output_tokens=1024).pairs == ((10, 2),)
    with pytest.raises(InputError, match="three"):
        TRACE.limited(max_prompt_tokens=9)


def test_means_of_lengths():
    lengths = Lengths(((1, 10), (2, 30)))
    assert (len(lengths), lengths.mean_prompt_tokens, lengths.mean_output_tokens) == (2, 1.5, 20)


def test_lengths_are_drawn_evenly():
    lengths = Lengths(((1, 10), (2, 30)))
    rng = random.Random(0)
    drawn = Counter(lengths.sample(rng) for _ in range(1000))
    assert drawn.keys() == {(1, 10), (2, 30)}
    assert abs(drawn[1, 10] - 500) < 80


@pytest.mark.parametrize("times", [(), (2.0, 1.0), (-1.0, 1.0), (0.0, math.inf), (0.0, math.nan)])
def test_traces_that_are_refused(times):
    with pytest.raises(InputError):
        Trace(tuple(TraceRequest(time, 1, 1) for time in times))


@pytest.mark.parametrize("pairs", [(), ((1, 0),), ((1, 1), (-1, 5))])
def test_lengths_that_are_refused(pairs):
    with pytest.raises(InputError):
        Lengths(pairs)

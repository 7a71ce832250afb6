"""Traces: what holds for any workload and any file."""

from __future__ import annotations

import gzip
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helixsim.errors import TraceError
from helixsim.requests import SessionTurn, SharedPrefix, TraceRequest
from helixsim.traces import (
    Lengths,
    Trace,
    read_lengths,
    read_slot_arrivals,
    read_trace,
    write_lengths,
    write_trace,
)
from helixsim.traces.fields import wall_clock_ns

TOKENS = st.integers(1, 10**8)
KEYS = st.integers(0, 10**18).map(lambda key: (key,))
PREFIXES = st.none() | st.builds(SharedPrefix, KEYS, st.just(1))
PRIORITIES = st.integers(-9, 9)
TURNS = st.builds(SessionTurn, st.floats(0, 1e9), TOKENS, TOKENS, PREFIXES, PRIORITIES)
REQUESTS = st.lists(
    st.builds(
        TraceRequest,
        st.floats(0, 1e9),
        TOKENS,
        TOKENS,
        PREFIXES,
        PRIORITIES,
        later_turns=st.lists(TURNS, max_size=3).map(tuple),
    ),
    min_size=1,
)
TRACES = REQUESTS.map(lambda r: Trace(tuple(sorted(r, key=lambda request: request.arrival_s))))
HEADERS = st.sampled_from(
    [
        b"",
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
        b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n",
        b"arrived_at,num_prefill_tokens,num_decode_tokens\n",
        b"input_tokens,output_tokens\n",
        b"arrivals\n",
        b'{"timestamp": 0, "input_length": 1, "output_length": 1}\n',
        b'{"timestamp": 0, "input_length": 1, "output_length": 1, "session_id": 1}\n'
        b'{"session_id": 1, "delay": 1, "input_length": 1, "output_length": 1, "x": ',
        b'{"request_throughput": 1, "input_lens": ',
        b"[",
    ]
)
ROWS = st.text(st.sampled_from('0123456789.,-+eE"\n\r {}[]:naifT'), max_size=60).map(str.encode)


@given(TRACES, st.sampled_from([".csv", ".csv.gz"]))
def test_traces_read_back_exactly(trace, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"trace{suffix}"
        write_trace(trace, path)
        assert read_trace(path) == trace


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1).map(tuple).map(Lengths))
def test_lengths_read_back_exactly(lengths):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lengths.csv.gz"
        write_lengths(lengths, path)
        assert read_lengths(path) == lengths


@given(TRACES, st.floats(1e-6, 1e6))
def test_scaling_the_rate_scales_the_gaps(trace, factor):
    scaled = trace.scaled(factor)
    assert scaled.lengths == trace.lengths
    for (a, b), (c, d) in zip(pairwise(trace.requests), pairwise(scaled.requests), strict=True):
        gap = (b.arrival_s - a.arrival_s) / factor
        # Absolute, because the difference of two late times is no more exact than they are, nor
        # are numbers near the smallest.
        inexact = 1e-15 * b.arrival_s / factor + 1e-300
        assert d.arrival_s - c.arrival_s == pytest.approx(gap, abs=inexact)


@given(TRACES, st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_cut_loses_nothing(trace, cut, width):
    parts = []
    for start, end in ((0.0, cut), (cut, cut + width), (cut + width, 2e9 + 1)):
        inside = [r for r in trace.requests if start <= r.arrival_s < end]
        if inside:
            part = trace.between(start, end)
            assert [r.arrival_s for r in part.requests] == [r.arrival_s - start for r in inside]
            parts += part.lengths.pairs
    assert tuple(parts) == trace.lengths.pairs


@given(st.datetimes(), st.integers(0, 9_999_999))
def test_wall_clock_is_exact_to_the_last_digit(routing_point, ticks):
    whole = routing_point.replace(microsecond=0)
    text = f"{whole.isoformat(sep=' ')}.{ticks:07d}"
    start = wall_clock_ns(whole.isoformat(sep=" "))
    assert wall_clock_ns(text) - start == ticks * 100
    assert wall_clock_ns(text + "+01:00") - start == ticks * 100 - 3600 * 10**9


@given(HEADERS, st.binary(max_size=60) | ROWS, st.booleans())
def test_any_file_reads_or_gives_a_trace_error(header, rest, packed):
    data = header + rest
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(gzip.compress(data) if packed else data)
        for read in (read_trace, read_lengths, read_slot_arrivals):
            try:
                read(path)
            except TraceError as error:
                assert error.file == str(path)

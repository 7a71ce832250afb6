"""Generated traces: which request gets which length, and what does not depend on what."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from helixsim.errors import InputError
from helixsim.requests import TraceRequest
from helixsim.traces import (
    Lengths,
    arrival_pattern,
    generate_trace,
    length_model,
    poisson,
    read_trace,
    write_trace,
)

ONE = Lengths(((5, 7),))


def test_arrivals_before_the_end_are_taken():
    trace = generate_trace([0.0, 1.5, 3.0, 3.5], ONE, 3.0, random.Random(0), source="few")
    assert trace.requests == (TraceRequest(0.0, 5, 7), TraceRequest(1.5, 5, 7))
    assert trace.source == "few"


def test_other_lengths_leave_the_arrivals_as_they_are():
    traces = []
    for lengths in (ONE, length_model("alpaca"), length_model("azure-code")):
        rng = random.Random(3)
        traces.append(generate_trace(poisson(2.0, rng), lengths, 100.0, rng))
    times = [[request.arrival_s for request in trace.requests] for trace in traces]
    assert times[0] == times[1] == times[2]


def test_a_generated_trace_reads_back_as_it_is(tmp_path):
    rng = random.Random(0)
    lengths = length_model("azure-code").limited(max_prompt_tokens=2048)
    trace = generate_trace(arrival_pattern("azure-code").arrivals(rng), lengths, 900.0, rng)
    assert len(trace) > 100
    assert max(request.prompt_tokens for request in trace.requests) <= 2048
    write_trace(trace, tmp_path / "trace.csv.gz")
    assert read_trace(tmp_path / "trace.csv.gz") == trace


@pytest.mark.parametrize("duration_s", [0, -1, float("nan"), float("inf")])
def test_durations_that_are_refused(duration_s):
    with pytest.raises(InputError, match="a trace must last"):
        generate_trace([0.0], ONE, duration_s, random.Random(0))


def test_a_trace_with_nothing_in_it_is_refused():
    with pytest.raises(InputError, match="nothing arrives within 1 s"):
        generate_trace([2.0], ONE, 1.0, random.Random(0))


def test_importing_traces_leaves_heavy_packages_alone():
    code = "import helixsim.traces, sys; print({'numpy', 'pandas', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

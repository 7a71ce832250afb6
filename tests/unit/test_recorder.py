"""What is kept of a run, request by request."""

from __future__ import annotations

from math import isnan, nan

import pytest
from builders import prompt

from helixsim.control.routing.policy import Rejection
from helixsim.metrics.recorder import Columns, RunRecorder
from helixsim.requests import Route, Stage


def make_recorder(*, keep_iterations=True):
    return RunRecorder(10.0, 20.0, ("a", "b"), keep_iterations=keep_iterations)


def serve(recorder, arrival_s, returns, *, tokens=5, output=2, end=True, index=0):
    """Let a request arrive and come back at the times given."""
    request = prompt(tokens, index, output=output)
    request.arrival_s = request.dispatched_s = request.first_dispatch_s = arrival_s
    request.route = Route([Stage(0, 0, 2), Stage(1, 2, 4)])
    recorder.arrived(request)
    for number, now in enumerate(returns):
        request.num_output_tokens = number
        if number == 0:
            recorder.prompt_ended(request, now)
            request.first_token_s = now
        else:
            recorder.decodes_ended([request], [now])
        request.dispatched_s = now
    if end:
        recorder.ended(request, returns[-1])
    else:
        request.num_output_tokens = len(returns)
    return request


def only_row(recorder):
    (row,) = zip(*recorder.requests.values, strict=True)
    return dict(zip(recorder.requests.names, row, strict=True))


def test_a_completed_request():
    recorder = make_recorder()
    serve(recorder, 11.0, [12.5, 13.0, 14.5])
    assert only_row(recorder) == {
        "request": 0,
        "status": "completed",
        "arrival_s": 11.0,
        "dispatch_s": 11.0,
        "first_token_s": 12.5,
        "end_s": 14.5,
        "prompt_tokens": 5,
        "output_tokens": 2,
        "decode_tokens": 2,
        "ttft_s": 1.5,
        "tpot_s": 1.0,
        "e2e_s": 3.5,
        "restarts": 0,
        "cached_tokens": 0,
        "preemptions": 0,
        "route": "a[0:2] b[2:4]",
    }
    assert list(zip(*recorder.iterations.values, strict=True)) == [
        (0, 0, "prompt", 11.0, 12.5),
        (0, 1, "decode", 12.5, 13.0),
        (0, 2, "decode", 13.0, 14.5),
    ]
    assert list(recorder.prompt_latency_s._values) == [1.5]
    assert list(recorder.decode_latency_s._values) == [0.5, 1.5]
    assert list(recorder.ttft_s._values) == [1.5]
    assert list(recorder.tpot_s._values) == [1.0]
    assert list(recorder.e2e_s._values) == [3.5]
    assert (recorder.num_arrived, recorder.num_completed, recorder.num_rejected) == (1, 1, 0)
    assert (recorder.num_prompt_tokens, recorder.num_decode_tokens) == (5, 2)
    assert recorder.window_prompt_tokens == 5


@pytest.mark.parametrize(
    ("returns", "prompts", "decodes", "ends"),
    [
        ([9.9, 9.99, 9.999], 0, 0, 0),
        ([9.9, 9.99, 10.0], 0, 1, 1),
        ([9.9, 10.0, 20.0], 0, 2, 1),  # both ends of the window are in it
        ([10.0, 20.1, 20.2], 1, 0, 0),
    ],
)
def test_only_what_ends_in_the_window_is_measured(returns, prompts, decodes, ends):
    recorder = make_recorder()
    serve(recorder, 9.0, returns)
    assert len(recorder.prompt_latency_s) == len(recorder.ttft_s) == prompts
    assert recorder.window_prompt_tokens == 5 * prompts
    assert len(recorder.decode_latency_s) == decodes
    assert len(recorder.e2e_s) == len(recorder.tpot_s) == ends
    # The tables have everything.
    assert len(recorder.iterations) == 3
    assert only_row(recorder)["status"] == "completed"


def test_a_rejected_request():
    recorder = make_recorder()
    request = prompt(5, 3, output=2)
    request.arrival_s = 11.0
    recorder.arrived(request)
    recorder.rejected(request, Rejection.KV)
    row = only_row(recorder)
    assert (row["request"], row["status"], row["route"]) == (3, "rejected: kv", None)
    assert (row["arrival_s"], row["decode_tokens"]) == (11.0, 0)
    assert all(isnan(row[key]) for key in ("dispatch_s", "first_token_s", "end_s", "ttft_s"))
    assert all(isnan(row[key]) for key in ("tpot_s", "e2e_s"))
    assert recorder.rejected_for == dict.fromkeys(Rejection, 0) | {Rejection.KV: 1}
    assert recorder.num_rejected == 1


@pytest.mark.parametrize(("returns", "decodes"), [([12.0], 0), ([12.0, 13.0, 14.0], 2)])
def test_a_request_in_flight(returns, decodes):
    recorder = make_recorder()
    request = serve(recorder, 11.0, returns, output=9, end=False)
    recorder.finish([request])
    row = only_row(recorder)
    assert (row["status"], row["decode_tokens"], row["ttft_s"]) == ("in flight", decodes, 1.0)
    assert isnan(row["end_s"])
    assert isnan(row["e2e_s"])
    assert isnan(row["tpot_s"])


def test_iterations_are_kept_only_if_asked_for():
    recorder = make_recorder(keep_iterations=False)
    serve(recorder, 11.0, [12.5, 13.0])
    assert recorder.iterations is None
    assert len(recorder.decode_latency_s) == 1


def test_columns_grow_by_rows():
    columns = Columns(("a", "b", "c"), "qds")
    columns.add(1, 2.5, "x")
    columns.add(2, nan, None)
    assert len(columns) == 2
    assert list(columns.as_dict()["a"]) == [1, 2]
    assert columns.as_dict()["c"] == ["x", None]
    with pytest.raises(ValueError, match="shorter"):
        columns.add(1, 2.0)

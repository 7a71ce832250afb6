"""Requests whose first token cannot come in time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import capacity, make_scenario

from helixsim.control.lateness import Lateness
from helixsim.models.simulation import simulate
from helixsim.requests import Request
from helixsim.scenario.resolved import Slo

pytestmark = pytest.mark.usefixtures("checked_runs")


def test_the_forecast_is_the_wait_and_the_usual_time_of_a_prefill():
    lateness = Lateness(5.0, "refuse")
    request = Request(0, 10.0, 3, 1, 1)
    assert not lateness.is_late(request, 15.0)  # nothing is known yet
    request.first_dispatch_s = 10.0
    lateness.prompt_ended(request, 12.0)
    assert not lateness.is_late(request, 13.0)
    assert lateness.is_late(request, 13.1)
    assert not Lateness().is_late(request, 1e9)


def served(late):
    """One request at a time has room; each takes 14 s, they come every 5 s."""
    scenario = make_scenario(
        {"a": (0, 1)},
        requests=[(5.0 * n, 10, 2) for n in range(8)],
        room=capacity(kv_token_layers=20),
        drain=True,
    )
    scheduler = replace(scenario.scheduler, max_waiting=100, late_requests=late)
    slos = (Slo(name="chat", ttft_s=20.0),)
    return simulate(replace(scenario, scheduler=scheduler, slos=slos))


def test_late_requests_are_served_in_their_turn():
    result = served("serve")
    assert result.summary["requests"]["completed"] == 8
    tokens = list(result.requests["first_token_s"])
    assert tokens == sorted(tokens)


def test_late_requests_are_refused():
    result = served("refuse")
    counts = result.summary["requests"]
    assert counts["completed"] + counts["rejected"] == 8
    assert 0 < counts["rejected"] < 8
    done = result.requests[result.requests["status"] == "completed"]
    assert max(done["ttft_s"]) <= 20.0 + 0.1
    assert any("late" in status for status in result.requests["status"])


def test_late_requests_wait_until_no_other_one_does():
    result = served("wait")
    assert result.summary["requests"]["completed"] == 8
    tokens = list(result.requests["first_token_s"])
    assert tokens != sorted(tokens)  # others went first
    in_time = sum(result.requests["ttft_s"] <= 20.0)
    assert in_time > sum(served("serve").requests["ttft_s"] <= 20.0)


def test_a_forecast_that_is_too_high_does_not_lock_all_requests_out():
    """A prompt of 30 s is served, then short ones come that take a second each."""
    requests = [(0.0, 30, 2), *((40.0 + 0.3 * n, 1, 1) for n in range(150))]
    scenario = make_scenario({"a": (0, 1)}, requests=requests, drain=True)
    scheduler = replace(scenario.scheduler, max_waiting=100, late_requests="refuse")
    slos = (Slo(name="chat", ttft_s=20.0),)
    counts = simulate(replace(scenario, scheduler=scheduler, slos=slos)).summary["requests"]
    assert counts["completed"] + counts["rejected"] == counts["arrived"] == 151
    assert counts["rejected"] < 40

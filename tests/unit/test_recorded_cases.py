"""Recordings that once were replayed wrongly: an emulated run of three requests on two nodes.

The events are of `helixreal run` with the paper's physics, which runs one decode more than the
answer needs: 6, 2 and 4 passes for answers of 5, 1 and 3 tokens.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from builders import make_scenario
from test_recorded import route, write_run

from helixsim.calibration.latencies import cut, residuals
from helixsim.physics.engine import EngineCosts
from helixsim.profiles.machine import LatencyProfile
from helixsim.recorded.figures import comparison_text, inspection_text
from helixsim.recorded.inspection import inspect_run
from helixsim.recorded.recording import load_recorded_run
from helixsim.recorded.replay import replay

LAYERS = {"n0": (0, 5), "n1": (5, 10)}
NAMES = {"0": "coordinator", "1": "n0", "2": "n1"}
REQUESTS = [(0.0, 100, 5), (1.0, 1000, 1), (2.0, 500, 3)]


def scenario(**changes):
    """Two nodes: for each layer, 10 us for a prompt token, 1 ms for a decode; 5 ms a link."""
    settings = {
        "requests": REQUESTS,
        "prefill": LatencyProfile((0, 1000), (0.0, 0.01)),
        "decode": LatencyProfile((0, 2, 10), (0.0, 0.001, 0.005)),
        "link": (1e12, 0.005),
    }
    return make_scenario(LAYERS, **(settings | changes))


def events(beyond):
    """Events of a run in which a prompt token takes 0.1 ms, a decode 10 ms, and the links 15 ms."""
    lines = []
    for query, (arrival, prompt, answer) in enumerate(REQUESTS):
        at = arrival
        for number in range(answer + beyond):
            phase, tokens = ("decode", 1) if number else ("prompt", prompt)
            context = prompt + number - 1 if number else 0
            end = at + 0.015 + (0.01 if number else prompt * 1e-4)
            lines += [
                f"{time:.6f},{query},{way},{phase},{context},{tokens}"
                for time, way in ((at, "out"), (end, "in"))
            ]
            at = end
    return lines


def recorded(folder, *, beyond=1, routed=(0, 1, 2)):
    routes = [
        route(
            query,
            output_tokens=REQUESTS[query][2],
            start_layers=[0, 5, -1],
            end_layers=[5, 10, -1],
        )
        for query in routed
    ]
    write_run(folder, events(beyond), routes)
    (folder / "nodes.json").write_text(json.dumps(NAMES))
    return load_recorded_run(folder)


@pytest.mark.parametrize("until_s", [None, 2.1, 30.0])
def test_the_window_is_the_same_on_both_sides(tmp_path, until_s):
    run = recorded(tmp_path / "run")
    result = replay(run, scenario(), warmup_s=0.0, until_s=until_s)
    # Decodes that came back by 2.14 s, the end of the recording; by 2.1 s, two are missing.
    end = run.length_s if until_s is None else until_s
    decodes = 7 if until_s == 2.1 else 9
    assert result.recorded["decode_tokens_per_s"] == pytest.approx(decodes / end)
    assert result.simulated["decode_tokens_per_s"] == pytest.approx(decodes / end)
    assert result.error["decode_latency_s"]["mean"] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("physics", ["paper", "calibrated"])
@pytest.mark.parametrize("beyond", [0, 1])
def test_a_replay_has_as_many_passes_as_the_recording(tmp_path, physics, beyond):
    run = recorded(tmp_path / "run", beyond=beyond)
    result = replay(run, replace(scenario(), physics=physics), warmup_s=0.0)
    passes = result.results[0].iterations.groupby("request").size()
    assert passes.tolist() == [5 + beyond, 1 + beyond, 3 + beyond]
    assert [request.output_tokens for request in run.requests] == [5, 1, 3]
    assert run.has_drained


def test_an_answer_that_stopped_early_is_as_long_as_recorded(tmp_path):
    run = recorded(tmp_path / "run", beyond=0)
    longer = [route(0, output_tokens=9), route(1, output_tokens=1), route(2, output_tokens=3)]
    run = load_recorded_run(write_run(tmp_path / "run", events(0), longer))
    assert [request.num_passes for request in run.requests] == [5, 1, 3]


def test_a_request_in_flight_goes_on(tmp_path):
    cut_off = events(0)[:7]  # the fourth pass of request 0 has left
    run = load_recorded_run(write_run(tmp_path / "run", cut_off, [route(0, output_tokens=5)]))
    assert [request.num_passes for request in run.requests] == [5]
    assert not run.has_drained


@pytest.mark.parametrize(
    "policy", ["maxflow", "swarm", "random", "shortest_queue", "least_kv", "prefix_aware"]
)
def test_requests_without_a_route_are_routed_by_the_scheduler(tmp_path, policy):
    run = recorded(tmp_path / "run", routed=(0, 1))
    assert run.num_without_route == 1
    assert (run.requests[2].output_tokens, run.requests[2].num_passes) == (3, 4)
    result = replay(run, scenario(policy=policy), warmup_s=0.0)
    note = f"1 of 3 requests have no recorded route; the policy {policy} routed them"
    assert result.notes == [note]
    assert comparison_text(result.as_dict()).endswith(f"\nnote: {note}")
    frame = result.results[0].requests
    assert frame["status"].tolist() == ["completed"] * 3
    assert frame["route"].tolist() == ["n0[0:5] n1[5:10]"] * 3
    assert result.error["decode_tokens_per_s"] == pytest.approx(0.0, abs=1e-9)
    assert replay(run, scenario(policy=policy), warmup_s=0.0, reroute=True).notes == []


def test_requests_without_a_route_are_inspected_and_calibrated(tmp_path):
    run = recorded(tmp_path / "run", routed=(0, 1))
    found = inspect_run(run, 0.0, 2.0)
    assert (found["without_route"], found["completed"], found["routes"]) == (1, 3, 1)
    assert inspection_text(found).endswith("    1  requests without a recorded route")
    part = cut(run, scenario(), 60.0, 0.0)
    assert np.isfinite(residuals(part, EngineCosts(scheduler="prototype"))).all()

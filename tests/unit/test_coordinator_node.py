"""The coordinator's machine in whole runs: which passes leave and return when."""

from __future__ import annotations

import pytest
from builders import capacity, iterations, make_scenario, offline

from helixsim.models.simulation import Simulation, simulate


def run(layers, **scenario):
    """The log of a run, rounded: times are whole eighths."""
    scenario = {"link": (16.0, 0.125), "activation_bytes": 0.0} | scenario
    return iterations(simulate(make_scenario(layers, **scenario), record_iterations=True))


def test_one_request_alone():
    # 3 tokens of 2 bytes at 16 bytes/s: 0.375 s and 0.125 s of latency there, 3 s for the layer,
    # the same back; a decode is 0.25 s on each link and 2 s on the layer.
    assert run({"a": (0, 1)}, requests=[(0, 3, 2)], drain=True) == [
        (0, 0, 2.0, 6.0),
        (0, 1, 6.0, 8.5),
        (0, 2, 8.5, 11.0),
    ]


def test_requests_share_links_and_batches():
    log = run({"a": (0, 1)}, requests=[(0, 4, 1), (0, 4, 1)], drain=True)
    # Prompt 0 is there at 2.625, prompt 1 at 3.125: each runs alone, 4 s, till 6.625 and
    # 10.625. Back at 7.25 and 11.25; decode 0 is there at 7.5, joins no batch, and waits till
    # 10.625; runs 2 s; decode 1 is there at 11.5, runs from 12.625 till 14.625.
    assert log == [
        (0, 0, 2.0, 7.25),
        (1, 0, 2.0, 11.25),
        (0, 1, 7.25, 12.875),
        (1, 1, 11.25, 14.875),
    ]


def test_a_run_ends_with_its_last_instant():
    whole = run({"a": (0, 1)}, requests=[(0, 3, 2)], drain=True)
    scenario = {"layers": {"a": (0, 1)}, "requests": [(0, 3, 2)]}
    assert run(**scenario, duration_s=9.0) == whole  # 11.0 - 2.0
    assert run(**scenario, duration_s=8.875) == whole[:2]


def test_offline_feeding_follows_prompts_and_ends():
    workload = offline([(4, 1)], initial_requests=1, spacing_s=0.5)
    simulation = Simulation(
        make_scenario(
            {"a": (0, 1)},
            workload=workload,
            link=(16.0, 0.125),
            activation_bytes=0.0,
            duration_s=12.0,
        ),
        record_iterations=True,
    )
    result = simulation.run()
    log = iterations(result)
    # The prompt of 0 is back at 7.25 and its decode at 9.75: 1 and 2 come 0.5 s later.
    assert log[:2] == [(0, 0, 2.0, 7.25), (0, 1, 7.25, 9.75)]
    arrivals = sorted(request.arrival_s for request in simulation.coordinator.active)
    assert arrivals[:2] == [7.75, 10.25]


def test_offline_feeding_stops_above_the_mark():
    # A request is expected to hold 4 + 4 tokens of 100: 8, 16, 24 percent, with one layer.
    def num_arrived(mark):
        scenario = make_scenario(
            {"a": (0, 1)},
            workload=offline([(4, 50)], initial_requests=1, spacing_s=0.5),
            feed_high_water_mark=mark,
            duration_s=60.0,
            room=capacity(kv_token_layers=100),
        )
        return simulate(scenario).summary["requests"]["arrived"]

    # Each prompt that is through brings one more while the share is not above the mark; the
    # answers are too long to end.
    assert [num_arrived(mark) for mark in (0.07, 0.08, 0.15, 0.16)] == [1, 2, 2, 3]


@pytest.mark.parametrize("policy", ["swarm", "random", "shortest_queue"])
def test_offline_without_a_count_keeps_the_number_in_flight(policy):
    scenario = make_scenario(
        {"a": (0, 1)},
        workload=offline([(4, 2)], initial_requests=3, spacing_s=0.5),
        policy=policy,
        duration_s=60.0,
    )
    requests = simulate(scenario).summary["requests"]
    # Now and then one has ended and the next is still to come.
    assert requests["arrived"] - requests["completed"] in (2, 3)
    assert requests["completed"] > 3


def test_arrivals_at_the_instant_of_a_return_go_first():
    # The prompt of 0 is back at 6.0; 1 arrives at 6.0 and takes the link first.
    log = run({"a": (0, 1)}, requests=[(0, 3, 1), (4.0, 2, 1)], drain=True)
    # 1: sent 6.0 - 6.25, there 6.375, runs 2 s; the decode of 0: sent 6.25 - 6.375, there 6.5.
    assert log[:2] == [(0, 0, 2.0, 6.0), (1, 0, 6.0, 8.75)]

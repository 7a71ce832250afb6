"""What routing policies may know of the cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import capacity, make_scenario, prompt

from helixsim.control.cluster_view import FIRST_TRANSIT_S, ClusterView
from helixsim.models.simulation import Simulation, Watcher
from helixsim.physics.engine import EngineCosts

NODE_FIGURES = ("queue_length", "waiting_tokens", "num_running", "free_kv_tokens", "step_s")


def passed(link, sent_s):
    request = prompt(5)
    request.via_link, request.sent_s = link, sent_s
    return request


def test_a_link_starts_from_the_first_transit_time():
    view = ClusterView(3)
    assert view.transit_s == [FIRST_TRANSIT_S] * 3
    assert len(view.nodes) == 0


def test_transit_times_are_smoothed_link_by_link():
    view = ClusterView(2)
    view.passed([passed(1, 10.0)], 10.5)
    assert view.transit_s == [0.05, pytest.approx(0.8 * 0.5 + 0.2 * 0.05)]
    view.measured(1, 2.0)
    assert view.transit_s == [0.05, pytest.approx(0.8 * 2.0 + 0.2 * 0.41)]


def test_requests_that_leave_together_count_in_order():
    together, one_by_one = ClusterView(1), ClusterView(1)
    requests = [passed(0, 1.0), passed(0, 3.0)]
    together.passed(requests, 4.0)
    for request in requests:
        one_by_one.passed([request], 4.0)
    backwards = ClusterView(1)
    backwards.passed(reversed(requests), 4.0)
    assert together.transit_s == one_by_one.transit_s != backwards.transit_s


@pytest.mark.parametrize("physics", ["paper", "calibrated"])
def test_a_simulated_cluster_shows_its_nodes(physics):
    scenario = make_scenario(
        {"a": (0, 2)},
        requests=[(0, 5, 2), (0, 6, 2), (0, 7, 2)],
        room=capacity(kv_token_layers=160, max_prompts=1),
        link=(1e9, 0.0),
        policy="least_kv",
        drain=True,
    )
    engine = EngineCosts(max_num_batched_tokens=6)  # one prompt a step here, too
    simulation = Simulation(replace(scenario, physics=physics, engine=engine))
    (node,) = simulation.policy._view.nodes
    assert node is simulation.nodes[0]
    seen = {figure: [] for figure in NODE_FIGURES}

    def look(running):
        for figure in NODE_FIGURES:
            seen[figure].append(getattr(node, figure))

    before = {figure: getattr(node, figure) for figure in NODE_FIGURES}
    assert before == dict.fromkeys(NODE_FIGURES, 0) | {"free_kv_tokens": 80}
    simulation.run((Watcher(1.0, look),))
    for figure in ("queue_length", "waiting_tokens", "num_running", "step_s"):
        assert max(seen[figure]) > 0, figure
    assert min(seen["free_kv_tokens"]) < 80
    after = {figure: getattr(node, figure) for figure in NODE_FIGURES}
    assert after == before | {"step_s": after["step_s"]}

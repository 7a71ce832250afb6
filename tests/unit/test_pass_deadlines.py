"""How long a pass may take before it counts as lost."""

from __future__ import annotations

import pytest
from builders import make_scenario, make_topology

from helixsim.control.pass_deadlines import DeadlineSettings, PassDeadlines, expected_pass_s
from helixsim.requests import Route, Stage

SETTINGS = DeadlineSettings(floor_s=30.0, multiple=10.0, busy_multiple=5.0, forget_s=100.0)


def allowed(found, expected_s=0.0, *, is_first=True, is_busy=False, num_stalls=0):
    return found.allowed_s(expected_s, is_first=is_first, is_busy=is_busy, num_stalls=num_stalls)


def test_a_deadline_is_a_floor_and_a_multiple_of_what_is_expected_or_was_measured():
    found = PassDeadlines(SETTINGS)
    assert allowed(found) == 30.0
    assert allowed(found, 2.0) == 50.0
    found.took(4.0, is_first=True)
    found.took(1.0, is_first=True)
    assert allowed(found, 2.0) == 70.0
    assert allowed(found, 2.0, is_first=False) == 50.0
    assert allowed(found, is_busy=True) == 350.0
    assert allowed(found, num_stalls=2) == 280.0


def test_measurements_are_forgotten_by_and_by():
    found = PassDeadlines(SETTINGS)
    found.forget(5.0)
    found.took(4.0, is_first=False)
    found.forget(105.0)
    assert allowed(found, is_first=False) == pytest.approx(50.0)


def test_the_expected_time_is_that_of_the_profiles_of_the_route():
    topology = make_topology(make_scenario({"a": (0, 2), "b": (1, 4)}, requests=[(0, 1, 1)]))
    route = Route([Stage(0, 0, 2), Stage(1, 2, 4)])
    # One second per token and layer.
    assert expected_pass_s(route, topology.nodes, 3) == 12.0

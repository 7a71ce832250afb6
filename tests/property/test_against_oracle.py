"""Every pass of every request against a slow simulator of the same physics, bit for bit."""

from __future__ import annotations

from builders import iterations
from hypothesis import HealthCheck, given, settings
from oracle import Oracle
from toy_scenarios import chains, fans, scenarios

from helixsim.models.simulation import Simulation
from helixsim.scenario.resolved import Scenario

SETTINGS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(scenario: Scenario) -> None:
    simulation = Simulation(scenario, record_iterations=True)
    oracle = Oracle(scenario, simulation.topology, simulation.flow, simulation.start_s)
    expected = oracle.run()
    result = simulation.run()
    assert iterations(result) == expected
    assert result.summary["requests"]["rejected"] == oracle.num_rejected


@SETTINGS
@given(scenarios(policies=("maxflow",)))
def test_any_cluster(scenario):
    check(scenario)


@SETTINGS
@given(chains())
def test_a_chain_where_very_much_happens_at_once(scenario):
    check(scenario)


@SETTINGS
@given(fans())
def test_nodes_that_wait_for_what_is_coming_back(scenario):
    check(scenario)

"""A scenario with its coordinator as the only front end, as real clusters have it."""

from __future__ import annotations

from dataclasses import replace

from helixsim.scenario.resolved import Scenario


def with_coordinator_alone(scenario: Scenario) -> Scenario:
    """The scenario with its first front end only: all requests enter there, and return there.

    In a real cluster, tokens pass the coordinator's process, whatever the site of the front end to
    which they go on; what is recorded begins and ends there.
    """
    cluster, placement = scenario.cluster, scenario.placement
    if len(cluster.front_ends) == 1:
        return scenario
    others = frozenset(cluster.front_end_names[1:])
    if placement is not None and placement.links is not None:
        links = tuple(pair for pair in placement.links if others.isdisjoint(pair))
        placement = replace(placement, links=links)
    return replace(scenario, cluster=cluster.with_coordinator_alone(), placement=placement)

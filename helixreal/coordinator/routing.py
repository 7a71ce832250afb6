"""Whole routes from every policy, before a prompt leaves the coordinator.

In the simulator, some policies choose the next node only when a prompt leaves the one before.
Here they are asked hop by hop too, but all at once, at the coordinator, with what it knows then:
workers report how long passes took and how many wait.
"""

from __future__ import annotations

from typing import cast

from helixsim.control.routing import Policy
from helixsim.control.routing.policy import HopPolicy, LinkPolicy, RoutingPoint
from helixsim.placement.topology import PlacedLink, Topology
from helixsim.requests import Request, Route, Stage


def complete_route(policy: Policy, topology: Topology, request: Request) -> Route:
    """The route of an admitted request, set if its policy has not set it."""
    route = request.route
    assert route is not None
    if policy.routing_point is RoutingPoint.ADMISSION or route.stages:
        return route
    machine = topology.coordinator
    while True:
        link = _next(policy, topology, machine, request)
        machine = link.target
        if machine == topology.coordinator:
            return route
        route.stages.append(Stage(machine, link.entry_layer, topology.nodes[machine].end_layer))


def _next(
    policy: Policy,
    topology: Topology,
    machine: int,
    request: Request,
) -> PlacedLink:
    if policy.routing_point is RoutingPoint.HOP:
        return cast(HopPolicy, policy).choose(machine, request)
    choose = cast(LinkPolicy, policy).candidates(machine, topology.outgoing[machine])
    link = choose(request, ())
    assert link is not None, "with all links free there is one to take"
    return link

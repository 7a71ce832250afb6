"""The models of the paper's physics, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from helixsim.control.routing.policy import HopPolicy, LinkPolicy, RoutingPoint
from helixsim.errors import ScenarioError
from helixsim.models.coordinator_node import CoordinatorNode
from helixsim.models.egress import (
    LEAST_BANDWIDTH_BYTES_PER_S,
    ContendedEgress,
    Egress,
    HopEgress,
    RoutedEgress,
    SharedNic,
)
from helixsim.models.links import DeliveryQueue, Link
from helixsim.models.paper_node import PaperNode
from helixsim.models.parts import Models, Parts, RouteFollower, start_empty
from helixsim.models.tracing import traced_link, traced_paper_node
from helixsim.physics.paper import PaperStepTimer
from helixsim.placement.topology import Topology


def paper_models(parts: Parts) -> Models:
    """Make the models of a run under the paper's physics.

    Raises
    ------
    ScenarioError
        If the policy waits for bandwidth that a link can never have.
    """
    topology, environment, policy = parts.topology, parts.environment, parts.policy
    inboxes = [DeliveryQueue() for _ in range(len(topology.nodes) + 1)]
    number = environment.next_number
    make_link = Link if parts.tracer is None else traced_link(parts.tracer)
    make_gpu = PaperNode if parts.tracer is None else traced_paper_node(parts.tracer)
    links = [
        make_link(placed, policy.link_bandwidth(placed), inboxes[placed.target], number)
        for placed in topology.links
    ]
    gpus = [
        make_gpu(
            environment,
            node,
            {link.entry_layer for link in topology.incoming[node.index]},
            PaperStepTimer(topology.llm, node),
            inboxes[node.index],
            parts.coordinator.contexts,
        )
        for node in topology.nodes
    ]
    routing_point = policy.routing_point
    eager = routing_point is RoutingPoint.LINK
    if eager:
        _check_usable(topology)
    host = CoordinatorNode(environment, parts.coordinator, inboxes[-1], eager=eager)
    make_egress = _egress_maker(parts, links, gpus)
    first = {link.target for link in topology.outgoing[topology.coordinator]}
    for index, gpu in enumerate(gpus):
        num_sources = len(topology.incoming[index])
        if index in first and not eager:
            gpu.connect(
                make_egress(index), host.catch_up, host.arm_if_needed, num_sources=num_sources
            )
        else:
            gpu.connect(make_egress(index), num_sources=num_sources)
    prepare = RouteFollower(links) if routing_point is RoutingPoint.ADMISSION else start_empty
    host.connect(make_egress(topology.coordinator), [gpus[i] for i in sorted(first)], prepare)
    return Models(host, gpus, links)


def _egress_maker(
    parts: Parts, all_links: Sequence[Link], gpus: Sequence[PaperNode]
) -> Callable[[int], Egress]:
    topology, environment, routing_point = (
        parts.topology,
        parts.environment,
        parts.policy.routing_point,
    )
    home = topology.coordinator
    outgoing = [[all_links[link.index] for link in links] for links in topology.outgoing]

    def end_layer(machine: int) -> int:
        return 0 if machine == home else topology.nodes[machine].end_layer

    if routing_point is RoutingPoint.ADMISSION:
        return lambda machine: RoutedEgress(machine, outgoing[machine])
    if routing_point is RoutingPoint.HOP:
        learning = cast(HopPolicy, parts.policy)
        return lambda machine: HopEgress(machine, outgoing[machine], learning, end_layer, home)
    nics = [
        SharedNic(nic.inbound_bytes_per_s, nic.outbound_bytes_per_s)
        for nic in (topology.nic(machine) for machine in range(home + 1))
    ]
    choosing = cast(LinkPolicy, parts.policy)

    def waiting(machine: int) -> int:
        return gpus[machine].waiting_at_first_layer(environment.now)

    return lambda machine: ContendedEgress(
        environment, machine, outgoing[machine], nics, choosing, end_layer, waiting
    )


def _check_usable(topology: Topology) -> None:
    """Refuse links over which a policy that waits for bandwidth would wait for ever."""
    for link in topology.links:
        fair = topology.nic(link.source).outbound_bytes_per_s / len(topology.outgoing[link.source])
        most = min(fair, link.bandwidth_bytes_per_s, topology.nic(link.target).inbound_bytes_per_s)
        if most <= LEAST_BANDWIDTH_BYTES_PER_S:
            raise ScenarioError(
                f"the link from {topology.name(link.source)} to {topology.name(link.target)} can "
                f"have {most:g} bytes/s at most; this policy uses none of "
                f"{LEAST_BANDWIDTH_BYTES_PER_S:g} bytes/s or less",
                where="cluster",
            )

"""The models of the calibrated physics, put together."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from helixsim.control.routing.policy import RoutingPoint
from helixsim.models.coordinator_node import CoordinatorNode
from helixsim.models.engine_node import EngineNode
from helixsim.models.links import DeliveryQueue
from helixsim.models.messages import MessageEgress, MessageLink, ReceivingNic
from helixsim.models.parts import Models, NodeModel, Parts, RouteFollower, start_empty
from helixsim.models.tracing import traced_engine_node, traced_message_link
from helixsim.physics.calibrated import PassTimes
from helixsim.requests import Request


def calibrated_models(parts: Parts) -> Models:
    """Make the models of a run under the calibrated physics."""
    topology, environment, policy = parts.topology, parts.environment, parts.policy
    engine, home = parts.scenario.engine, parts.topology.coordinator
    inboxes = [DeliveryQueue() for _ in range(home + 1)]
    receivers = [
        ReceivingNic(topology.nic(machine).inbound_bytes_per_s) for machine in range(home + 1)
    ]
    tracer = parts.tracer
    make_link = MessageLink if tracer is None else traced_message_link(tracer)
    make_node = EngineNode if tracer is None else traced_engine_node(tracer)
    links = [
        make_link(
            placed,
            inboxes[placed.target],
            receivers[placed.target],
            environment.next_number,
            leads_home=placed.target == home,
        )
        for placed in topology.links
    ]
    nodes = [
        make_node(
            environment,
            node,
            {link.entry_layer for link in topology.incoming[node.index]},
            PassTimes(topology.llm, node, engine),
            engine,
            inboxes[node.index],
            is_last=node.end_layer == topology.llm.num_layers,
        )
        for node in topology.nodes
    ]
    host = CoordinatorNode(environment, parts.coordinator, inboxes[-1], eager=False)
    # A stream of its own, so that delays do not change which requests come.
    jitter = Random(f"jitter {parts.seed}")

    def make_egress(machine: int) -> MessageEgress:
        return MessageEgress(
            machine,
            [links[link.index] for link in topology.outgoing[machine]],
            policy,
            lambda index: 0 if index == home else topology.nodes[index].end_layer,
            lambda index: nodes[index].waiting_at_first_layer(environment.now),
            engine,
            topology.nic(machine).outbound_bytes_per_s,
            jitter,
            is_home=machine == home,
        )

    evictor = Eviction(parts, host, nodes)
    first = {link.target for link in topology.outgoing[home]}
    for index, node in enumerate(nodes):
        catch_up = host.catch_up if index in first else None
        when_idle = host.arm_if_needed if index in first else None
        num_sources = len(topology.incoming[index])
        node.connect(make_egress(index), evictor, catch_up, when_idle, num_sources=num_sources)
    whole_routes = policy.routing_point is RoutingPoint.ADMISSION
    prepare = RouteFollower(links) if whole_routes else start_empty
    host.connect(make_egress(home), [nodes[index] for index in sorted(first)], prepare)
    host.when_ended = _releaser(nodes)
    return Models(host, nodes, links)


def _releaser(nodes: list[EngineNode]) -> Callable[[Request], None]:
    def release(request: Request) -> None:
        assert request.route is not None
        for stage in request.route.stages:
            nodes[stage.node].ended(request)

    return release


class Eviction:
    """Takes requests out of nodes and network, as a KV cache without room demands."""

    def __init__(
        self, parts: Parts, host: CoordinatorNode, nodes: list[NodeModel] | list[EngineNode]
    ) -> None:
        self._environment = parts.environment
        self._coordinator = parts.coordinator
        self._host = host
        self._nodes = nodes

    def preempt(self, request: Request) -> None:
        """Let a request be begun again when others have made room."""
        now = self._environment.now
        self._host.catch_up(now)
        disruption = self._coordinator.preempt(request, now)
        self._drop(request)
        self._host.send(disruption.restarted, now)

    def fail(self, request: Request, reason: str) -> None:
        """End a request that a node can never run."""
        now = self._environment.now
        self._host.catch_up(now)
        sent = self._coordinator.fail(request, reason, now)
        self._drop(request)
        self._host.send(sent, now)

    def _drop(self, gone: Request) -> None:
        self._host.keep(lambda request: request is not gone)
        for node in self._nodes:
            node.keep(lambda request: request is not gone)

"""The models of a run, put together: nodes, links and the coordinator's machine.

What kind of links there are follows from the performance model: with sending costs, a machine sends
a message for each request and hop; without, links are the published simulator's. What kind of
nodes: batches under the paper's scheduler and performance model have a fast node of their own,
everything else runs on an :class:`~helixsim.models.engine_node.EngineNode`, or, where decodes loop,
on a :class:`~helixsim.models.looping_node.LoopingNode`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, cast

from helixsim.control.cluster_view import ClusterView
from helixsim.control.kv_cache import KvCache, held_token_layers
from helixsim.control.node_schedulers import (
    NODE_SCHEDULERS,
    NodeScheduler,
    NodeSchedulerInputs,
    decodes_loop,
)
from helixsim.control.node_schedulers.composition import StepComposer, StepLimits
from helixsim.control.node_schedulers.paper import PaperScheduler
from helixsim.control.node_schedulers.paper_composed import ComposedPaperScheduler
from helixsim.control.node_schedulers.scheduler import ContextBound
from helixsim.control.routing import Policy
from helixsim.control.routing.policy import HopPolicy, LinkPolicy, RoutingPoint
from helixsim.errors import ScenarioError
from helixsim.metrics.gauges import LinkGauges
from helixsim.models.coordinator_node import CoordinatorNode, Decider
from helixsim.models.egress import (
    LEAST_BANDWIDTH_BYTES_PER_S,
    ContendedEgress,
    Egress,
    HopEgress,
    SharedNic,
    egress_of_front_ends,
    routed_egress,
)
from helixsim.models.engine_node import EngineNode
from helixsim.models.event_loop import ExactEnvironment
from helixsim.models.links import DeliveryQueue, SerialLink
from helixsim.models.looping_node import LoopingNode
from helixsim.models.messages import MessageEgress, MessageLink, ReceivingNic
from helixsim.models.node import SimulatedNode
from helixsim.models.paper_node import PaperNode
from helixsim.models.token_stream import Carrier, ReturnPaths, TokenStream
from helixsim.models.tracing import (
    traced_engine_node,
    traced_link,
    traced_looping_node,
    traced_message_link,
    traced_paper_node,
)
from helixsim.physics.paper import PaperModel
from helixsim.physics.performance_model import PerformanceModel, SendingCosts
from helixsim.placement.topology import PlacedNode, Topology
from helixsim.requests import Request
from helixsim.scenario.resolved import Scenario

if TYPE_CHECKING:
    from helixsim.models.tracing import Tracer


class SimulatedLink(LinkGauges, Protocol):
    """A link as faults and the driver see it."""

    def use_bandwidth(self, bandwidth_bytes_per_s: float) -> None:
        """Take note of another plan of flow, and of the bandwidth that it gives this link."""
        ...


class CoordinatorView(Decider, Protocol):
    """The coordinator as models see it."""

    contexts: ContextBound

    @property
    def active(self) -> Mapping[Request, None]:
        """Requests that have been admitted and have not ended."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What models are made of: a scenario laid out, what decides, and where time passes.

    With a tracer, they tell it what they do.
    """

    scenario: Scenario
    environment: ExactEnvironment
    topology: Topology
    policy: Policy
    coordinator: CoordinatorView
    performance: PerformanceModel
    view: ClusterView
    seed: int
    composition: StepLimits | None = None
    num_stages: float = 1.0
    tracer: Tracer | None = None


@dataclass(frozen=True, slots=True)
class Models:
    """The models of a run: the coordinator's machine, and nodes and links in order."""

    coordinator_node: CoordinatorNode
    nodes: Sequence[SimulatedNode]
    links: Sequence[SimulatedLink]


def build_models(parts: Parts) -> Models:
    """Make the models of a run.

    Raises
    ------
    ScenarioError
        If the policy waits for bandwidth that a link can never have.
    """
    topology = parts.topology
    # All front ends report to one coordinator, at once: what returns to any is in one queue.
    returned = DeliveryQueue()
    inboxes = [
        *(DeliveryQueue() for _ in topology.nodes),
        *(returned for _ in topology.front_end_machines),
    ]
    point, sending = parts.policy.routing_point, parts.performance.sending
    eager = sending is None and point is RoutingPoint.LINK
    coordinator_node = CoordinatorNode(parts.environment, parts.coordinator, returned, eager=eager)
    links: Sequence[SimulatedLink]
    if sending is None:
        paper_links = _links(parts, inboxes)
        links, make_egress = paper_links, _egress_maker(parts, paper_links)
    else:
        message_links = _message_links(parts, inboxes)
        links, make_egress = message_links, _message_egress_maker(parts, message_links, sending)
    nodes = [_node(parts, node, inboxes, coordinator_node, links) for node in topology.nodes]
    parts.view.nodes = nodes
    first = sorted(
        {link.target for home in topology.front_end_machines for link in topology.outgoing[home]}
    )
    for index, node in enumerate(nodes):
        looks_back = index in first and not eager and not isinstance(node, LoopingNode)
        node.connect(
            make_egress(index),
            coordinator_node.catch_up if looks_back else None,
            coordinator_node.arm_if_needed if looks_back else None,
            num_sources=len(topology.incoming[index]),
        )
    coordinator_node.connect(
        egress_of_front_ends([make_egress(home) for home in topology.front_end_machines]),
        nodes,
        [nodes[index] for index in first],
        RouteFollower(topology, links) if point is RoutingPoint.ADMISSION else start_empty,
        releases=parts.composition is not None
        or any(node.scheduler.kv is not None for node in nodes),
    )
    return Models(coordinator_node, nodes, links)


# -- nodes ---------------------------------------------------------------------------------------


def _node(
    parts: Parts,
    placed: PlacedNode,
    inboxes: Sequence[DeliveryQueue],
    coordinator_node: CoordinatorNode,
    links: Sequence[SimulatedLink],
) -> SimulatedNode:
    inbox = inboxes[placed.index]
    scheduler = make_node_scheduler(parts, placed)
    timer = parts.performance.step_timer(placed)
    environment, tracer = parts.environment, parts.tracer
    is_paper = (
        type(scheduler) in (PaperScheduler, ComposedPaperScheduler)
        and type(parts.performance) is PaperModel
    )
    if is_paper and scheduler.kv is None:
        assert isinstance(scheduler, PaperScheduler)
        make_paper_node = PaperNode if tracer is None else traced_paper_node(tracer)
        node: SimulatedNode = make_paper_node(environment, placed, scheduler, timer, inbox)
    elif decodes_loop(NODE_SCHEDULERS.get(_scheduler_name(parts))):
        make_looping_node = LoopingNode if tracer is None else traced_looping_node(tracer)
        stream, ways_back = _ways_of_tokens(parts, placed, inboxes, coordinator_node, links)
        node = make_looping_node(
            environment, placed, scheduler, timer, inbox, coordinator_node, stream, ways_back
        )
    else:
        make_node = EngineNode if tracer is None else traced_engine_node(tracer)
        node = make_node(environment, placed, scheduler, timer, inbox, coordinator_node)
    active, num_nodes = parts.coordinator.active, len(parts.topology.nodes)
    node.held_kv_tokens = lambda index: held_token_layers(active, num_nodes)[index]
    return node


def make_node_scheduler(parts: Parts, placed: PlacedNode) -> NodeScheduler:
    """The scheduler of a node, as the scenario names it or its performance model has it."""
    scenario, name = parts.scenario, _scheduler_name(parts)
    kv = KvCache.by_layer(placed.capacity.kv_token_layers, placed.end_layer)
    inputs = NodeSchedulerInputs(
        name=placed.name,
        start_layer=placed.start_layer,
        end_layer=placed.end_layer,
        entry_layers={link.entry_layer for link in parts.topology.incoming[placed.index]},
        limits=placed.capacity,
        kv=kv if NODE_SCHEDULERS.get(name).counts_kv else None,
        engine=scenario.engine,
        contexts=parts.coordinator.contexts,
        num_llm_layers=parts.topology.llm.num_layers,
        composer=None
        if parts.composition is None
        else StepComposer(parts.composition, parts.num_stages),
    )
    return cast("NodeScheduler", NODE_SCHEDULERS.make(name, inputs))


def _scheduler_name(parts: Parts) -> str:
    return parts.scenario.scheduler.node or parts.performance.node_scheduler


def _ways_of_tokens(
    parts: Parts,
    placed: PlacedNode,
    inboxes: Sequence[DeliveryQueue],
    coordinator_node: CoordinatorNode,
    links: Sequence[SimulatedLink],
) -> tuple[TokenStream | None, ReturnPaths | None]:
    """Where the tokens of a node go, if it holds the last layer."""
    topology, index = parts.topology, placed.index
    if placed.end_layer < topology.llm.num_layers:
        return None, None
    stream = TokenStream(
        index,
        {
            link.target - topology.coordinator: cast(Carrier, links[link.index])
            for link in topology.outgoing[index]
        },
        coordinator_node.tokens,
        coordinator_node.expect_tokens,
    )
    network = parts.scenario.cluster.network
    number = parts.environment.next_number
    return stream, ReturnPaths(topology, network, index, list(inboxes), number)


# -- links of the published simulator --------------------------------------------------------------


def _links(parts: Parts, inboxes: Sequence[DeliveryQueue]) -> list[SerialLink]:
    make_link = SerialLink if parts.tracer is None else traced_link(parts.tracer)
    number = parts.environment.next_number
    return [
        make_link(placed, parts.policy.link_bandwidth(placed), inboxes[placed.target], number)
        for placed in parts.topology.links
    ]


def _egress_maker(parts: Parts, all_links: Sequence[SerialLink]) -> Callable[[int], Egress]:
    topology, environment, point = parts.topology, parts.environment, parts.policy.routing_point
    outgoing = [[all_links[link.index] for link in links] for links in topology.outgoing]

    def end_layer(machine: int) -> int:
        return _end_layer(topology, machine)

    if point is RoutingPoint.ADMISSION:
        return lambda machine: routed_egress(machine, outgoing[machine])
    if point is RoutingPoint.HOP:
        choosing = cast(HopPolicy, parts.policy)
        return lambda machine: HopEgress(
            machine, outgoing[machine], choosing, end_layer, _transit_view(parts, machine)
        )
    _check_usable(topology)
    nics = [
        SharedNic(nic.inbound_bytes_per_s, nic.outbound_bytes_per_s)
        for nic in (topology.nic(machine) for machine in range(topology.num_machines))
    ]
    waiting_for_links = cast(LinkPolicy, parts.policy)
    return lambda machine: ContendedEgress(
        environment, machine, outgoing[machine], nics, waiting_for_links, end_layer
    )


def _transit_view(parts: Parts, machine: int) -> ClusterView | None:
    """Where a machine's egress keeps transit times, if it is a node and the policy needs them."""
    is_node = not parts.topology.is_front_end(machine)
    return parts.view if is_node and parts.policy.needs_transits else None


def _end_layer(topology: Topology, machine: int) -> int:
    """Where a node's layers end; 0 for a front end."""
    return 0 if topology.is_front_end(machine) else topology.nodes[machine].end_layer


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


# -- links that carry messages ---------------------------------------------------------------------


def _message_links(parts: Parts, inboxes: Sequence[DeliveryQueue]) -> list[MessageLink]:
    topology = parts.topology
    make_link = MessageLink if parts.tracer is None else traced_message_link(parts.tracer)
    receivers = [
        ReceivingNic(topology.nic(machine).inbound_bytes_per_s)
        for machine in range(topology.num_machines)
    ]
    return [
        make_link(
            placed,
            inboxes[placed.target],
            receivers[placed.target],
            parts.environment.next_number,
            to_coordinator=topology.is_front_end(placed.target),
        )
        for placed in topology.links
    ]


def _message_egress_maker(
    parts: Parts, links: Sequence[MessageLink], sending: SendingCosts
) -> Callable[[int], Egress]:
    topology = parts.topology
    # A stream of its own, so that delays do not change which requests come.
    jitter = Random(f"jitter {parts.seed}")
    return lambda machine: MessageEgress(
        machine,
        [links[link.index] for link in topology.outgoing[machine]],
        parts.policy,
        lambda index: _end_layer(topology, index),
        sending,
        topology.nic(machine).outbound_bytes_per_s,
        jitter,
        _transit_view(parts, machine),
    )


# -- ways of requests ------------------------------------------------------------------------------


class RouteFollower:
    """Readies requests whose whole route is known: where they leave each machine to.

    Requests on the same path share the answer.
    """

    def __init__(self, topology: Topology, links: Sequence[Any]) -> None:
        self._home = topology.front_end_machine
        self._links = {(link.source, link.target): links[link.index] for link in topology.links}
        self._onward: dict[tuple[int, ...], Mapping[int, Any]] = {}

    def __call__(self, request: Request) -> None:
        """Ready one request."""
        assert request.route is not None
        home = self._home(request.front_end)
        machines = (home, *[stage.node for stage in request.route.stages], home)
        onward = self._onward.get(machines)
        if onward is None:
            hops = pairwise(machines)
            onward = {source: self._links[source, target] for source, target in hops}
            self._onward[machines] = onward
        request.onward = onward


def start_empty(request: Request) -> None:
    """Ready a request whose route is found hop by hop."""
    request.onward = {}

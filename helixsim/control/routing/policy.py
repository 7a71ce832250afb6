"""What every routing policy answers, and what it is made of.

A policy chooses the next node of a prompt at one of three routing points; decodes follow their
prompt.

``ADMISSION``
    The whole route is fixed before the prompt leaves the coordinator.
``HOP``
    The next node is chosen when the prompt leaves a machine.
``LINK``
    The next node is chosen among the links that are free, when one is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Protocol, cast

from helixsim.control.cluster_view import ClusterView
from helixsim.placement.topology import PlacedLink, PlacedNode, Topology
from helixsim.requests import Request, Route, Stage

if TYPE_CHECKING:
    from random import Random

    from helixsim.placement.flow import Flow  # imports networkx, which commands start without


class RoutingPoint(Enum):
    """When a policy decides about the next node of a prompt."""

    ADMISSION = "admission"
    HOP = "hop"
    LINK = "link"


class Rejection(StrEnum):
    """Why a request is rejected."""

    FLOW = "flow"
    """No successor on the way has any share of the flow."""
    LENGTH = "length"
    """Its prompt or its context is longer than a batch of the nodes on the way may be."""
    KV = "kv"
    """The KV caches on the way are expected to be too full for it."""
    NODES = "nodes"
    """No route leads through all layers without the nodes that are down."""
    LATE = "late"
    """Its first token would come later than its SLO allows."""


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """What policies are made of.

    Attributes
    ----------
    topology, flow
        Nodes, links, and the maximum flow over them.
    high_water_mark
        Share of a node's KV capacity that admitted requests may be expected to fill.
    expected_output_tokens
        Output that is reserved for a request of unknown length: mean x expected ratio.
    min_flow_share
        A successor with less than this share of a node's flow is not used.
    rng
        The run's random stream.
    half_of_equal_is_enough
        Whether half of an equal share is enough for a successor in any case.
    admits_by_held_kv
        Whether requests count with what they hold, not with what they are expected to hold at
        their end.
    ttft_limit_s, tpot_limit_s
        The strictest limits of the scenario's SLOs; None where there is none.
    view
        Queues, free KV blocks and measured times of the nodes, for policies that look.
    """

    topology: Topology
    flow: Flow
    high_water_mark: float
    expected_output_tokens: float
    min_flow_share: float
    rng: Random
    half_of_equal_is_enough: bool = False
    admits_by_held_kv: bool = False
    ttft_limit_s: float | None = None
    tpot_limit_s: float | None = None
    view: ClusterView = field(default_factory=lambda: ClusterView(0))


class Policy(Protocol):
    """Decides about routes.

    Attributes
    ----------
    routing_point
        When it decides.
    needs_transits
        Whether the executor keeps the transit times of the cluster view up to date for it.
    """

    routing_point: RoutingPoint
    needs_transits: bool

    def link_bandwidth(self, link: PlacedLink) -> int:
        """What a link may use by itself, in whole bytes per second.

        It is the same until :meth:`reroute` is called.
        """
        ...

    def reroute(
        self,
        flow: Flow,
        down: frozenset[int],
        cut: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        """From now on, route by another flow, over nothing that is down or cut.

        A link that is cut is (source, target), by number of the machines.
        """
        ...

    def is_stranded(self, request: Request) -> bool:
        """Whether a request that has been admitted finds no way on from where it is."""
        ...

    def admit(self, request: Request) -> Rejection | None:
        """Take a request in, or say why not.

        Policies that decide at admission set its whole route; others an empty one.
        """
        ...

    def decodes_dispatched(self, requests: Iterable[Request]) -> None:
        """Take note that decodes leave the coordinator on their requests' routes."""
        ...

    def finished(self, request: Request) -> None:
        """Take note that a request has ended and its KV cache is free."""
        ...

    def bottleneck_share(self) -> float | None:
        """Expected KV use of the fullest layer, 0 to 1; None if the policy keeps no count."""
        ...

    def expected_tokens(self, node: int) -> int | None:
        """KV use that is expected of a node, in tokens x layers; None if not counted."""
        ...

    def validate(self, active: Collection[Request]) -> None:
        """Check the invariant ``kv-conserved``: what is booked is what active requests hold.

        Raises
        ------
        AssertionError
            If it is not.
        """
        ...


class PreemptingPolicy(Policy, Protocol):
    """A policy that knows what requests hold, and when that is more than there is room for.

    Attributes
    ----------
    preempts
        Whether it does; a policy without this attribute does not.
    """

    preempts: bool

    def overfull_node(self) -> int | None:
        """The number of a node on which requests hold more than its KV cache has room for."""
        ...

    def preempted(self) -> None:
        """Take note that requests were preempted for want of room."""
        ...


class HopPolicy(Policy, Protocol):
    """A policy that decides when a prompt leaves a machine."""

    def choose(self, machine: int, request: Request) -> PlacedLink:
        """The link that a prompt takes from here."""
        ...


class LinkPolicy(Policy, Protocol):
    """A policy that decides when links are free."""

    def candidates(self, machine: int, usable: Sequence[PlacedLink]) -> Chooser:
        """Begin one attempt to send from a machine.

        Parameters
        ----------
        machine
            Number of the machine that sends.
        usable
            The links that could carry something now, in link order.
        """
        ...


Chooser = Callable[[Request, Container[int]], "PlacedLink | None"]
"""Given a prompt and the numbers of the links already taken in this attempt: its link, if any."""


class RouteFilter:
    """Over which links a request can go and still find a way to the end.

    A prompt (or the first chunk of one) or a context that is longer than a node's batches may
    be can never run there; following a link into such a dead end would leave the request stuck.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._leading_on: dict[tuple[int, ...], frozenset[int]] = {}
        self._cut: frozenset[tuple[int, int]] = frozenset()
        # With several front ends, a node may lead back to some of them only; and a node may have
        # no way on at all.
        self._goes_everywhere = len(topology.front_ends) == 1 and len(topology.links) == len(
            self._open_links(frozenset(), topology.coordinator)
        )
        self.close(frozenset())

    def close(self, down: frozenset[int], cut: frozenset[tuple[int, int]] = frozenset()) -> None:
        """Let no request go over nodes that are down, or links, (source, target), that are cut."""
        self._down, self._cut = down, cut
        self._leading_on.clear()
        # Nearly all requests fit everywhere; for them, two comparisons settle it.
        nodes = self._topology.nodes
        self._new_tokens = min(node.capacity.max_prompt_tokens for node in nodes)
        self._context = min(node.capacity.max_decode_context for node in nodes)
        if down or cut or not self._goes_everywhere:
            self._new_tokens = 0  # no request fits everywhere

    def fits(self, link: PlacedLink, request: Request) -> bool:
        """Whether a request can go over a link and on to the end."""
        if self._fits_everywhere(request):
            return True
        return link.index in self._links_for(request)

    def admits(self, request: Request) -> bool:
        """Whether any route takes a request."""
        if self._fits_everywhere(request):
            return True
        return self._leads_out(request, self._links_for(request))

    def has_route(self, request: Request) -> bool:
        """Whether any route takes requests of this one's front end, if they are short enough."""
        if not (self._down or self._cut):
            return True
        home = self._topology.front_end_machine(request.front_end)
        return self._leads_out(request, self._open_links(self._down, home))

    def _leads_out(self, request: Request, links: frozenset[int]) -> bool:
        first = self._topology.outgoing[self._topology.front_end_machine(request.front_end)]
        return any(link.index in links for link in first)

    def _fits_everywhere(self, request: Request) -> bool:
        return (
            request.longest_pass_tokens <= self._new_tokens
            and request.longest_context <= self._context
        )

    def _links_for(self, request: Request) -> frozenset[int]:
        down = self._down
        closed = tuple(
            node.index
            for node in self._topology.nodes
            if node.index in down or not can_run(node, request)
        )
        home = self._topology.front_end_machine(request.front_end)
        key = (home, *closed)
        links = self._leading_on.get(key)
        if links is None:
            links = self._leading_on[key] = self._open_links(frozenset(closed), home)
        return links

    def _open_links(self, closed: frozenset[int], home: int) -> frozenset[int]:
        """The links that lead on, and at last to a front end; links out of this one included."""
        topology = self._topology
        reaches_end = {home}
        links: set[int] = set()
        # Links lead to higher layers, so a node is settled once all nodes that end later are.
        for node in sorted(topology.nodes, key=lambda node: -node.end_layer):
            onward = [
                link.index
                for link in topology.outgoing[node.index]
                if link.target in reaches_end and (link.source, link.target) not in self._cut
            ]
            if onward and node.index not in closed:
                reaches_end.add(node.index)
                links.update(onward)
        links.update(
            link.index
            for link in topology.outgoing[home]
            if link.target in reaches_end and (home, link.target) not in self._cut
        )
        return frozenset(links)


def can_run(node: PlacedNode, request: Request) -> bool:
    """Whether a request can ever be in a batch of a node."""
    capacity = node.capacity
    return (
        request.longest_pass_tokens <= capacity.max_prompt_tokens
        and request.longest_context <= capacity.max_decode_context
        and capacity.max_prompts > 0
        and capacity.max_decode_tokens > 0
    )


def complete_route(policy: Policy, topology: Topology, request: Request) -> Route:
    """The route of an admitted request, set if its policy has not set it."""
    route = request.route
    assert route is not None
    if policy.routing_point is RoutingPoint.ADMISSION or route.stages:
        return route
    machine = topology.front_end_machine(request.front_end)
    while True:
        link = _next(policy, topology, machine, request)
        machine = link.target
        if topology.is_front_end(machine):
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

"""Max-flow scheduling: every prompt gets its whole route at once, following the flow.

At every machine the successors take turns in proportion to the flow that leads to them, by
interleaved weighted round robin: the one whose load after taking the request would be least
gets it. Loads count prompts by their tokens and decodes by one each. Successors are passed over
if they carry too small a share of the flow, take no prompt so long, or are expected to run out
of KV cache. Source: the Helix paper (arXiv 2406.01566), section 5.

With several front ends, requests take turns over the links only by which they get back to their
own, and from the last node they go there, whatever the flow says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from helixsim.control.routing.kv_expectation import KvExpectation
from helixsim.control.routing.kv_held import KvHeld
from helixsim.control.routing.policy import PolicyInputs, Rejection, RoutingPoint, can_run
from helixsim.errors import NoRouteError
from helixsim.placement.flow import Flow, used_links
from helixsim.placement.front_end_shares import links_back
from helixsim.placement.topology import PlacedLink, Topology, without
from helixsim.requests import Request, Route, Stage


class FlowRoute(Route):
    """A route that all requests on the same path share.

    Attributes
    ----------
    links
        The links it takes, from a front end back to it.
    chosen
        The links to which there was an alternative. Loads matter only on these.
    unbilled_decodes
        Decodes that went over it since their load was last added to its links.
    """

    __slots__ = ("chosen", "links", "unbilled_decodes")

    def __init__(
        self, stages: list[Stage], links: tuple[PlacedLink, ...], chosen: tuple[PlacedLink, ...]
    ) -> None:
        super().__init__(stages)
        self.links = links
        self.chosen = chosen
        self.unbilled_decodes = 0


class MaxFlowPolicy:
    """Routes by interleaved weighted round robin over the maximum flow.

    Attributes
    ----------
    preempts
        Whether it knows what requests hold, and says when that is too much: see
        :class:`.policy.PreemptingPolicy`.
    """

    routing_point = RoutingPoint.ADMISSION
    needs_transits = False

    def __init__(self, inputs: PolicyInputs) -> None:
        topology, flow = inputs.topology, inputs.flow.link_tokens_per_s
        self._topology = topology
        account = KvHeld if inputs.admits_by_held_kv else KvExpectation
        self._kv: KvExpectation | KvHeld = account(
            topology, inputs.high_water_mark, inputs.expected_output_tokens
        )
        self._held = self._kv if isinstance(self._kv, KvHeld) else None
        self.preempts = self._held is not None
        self._decodes_until_look = 0
        self._min_share = inputs.min_flow_share
        self._flow = flow
        self._load = [0.0] * len(topology.links)
        self._open = _open_links(
            topology, flow, self._min_share, half_of_equal_is_enough=inputs.half_of_equal_is_enough
        )
        self._routes: dict[tuple[int, ...], FlowRoute] = {}
        self._unbilled: list[FlowRoute] = []
        self._bandwidth = _flow_share_bandwidths(topology, flow)
        _check_open(topology, self._open, inputs)

    def link_bandwidth(self, link: PlacedLink) -> int:
        """What a link may use, in bytes per second.

        The least of its own bandwidth and of its share of the sender's and the receiver's
        network interface, by the shares of the flow; a whole number, at least 1.
        """
        return self._bandwidth[link.index]

    def reroute(
        self,
        flow: Flow,
        down: frozenset[int],
        cut: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        """Share requests out anew; nothing flows over what is down or cut.

        Loads start from nothing. A link without any flow keeps its bandwidth, for requests whose
        route leads over it already.
        """
        topology, by_link = self._topology, flow.link_tokens_per_s
        self._bill_decodes()
        self._flow = by_link
        self._load = [0.0] * len(topology.links)
        rest = topology
        if len(topology.front_ends) > 1 and (down or cut):
            rest = without(topology, down, cut)
        self._open = _open_links(rest, by_link, self._min_share, half_of_equal_is_enough=True)
        self._routes.clear()
        self._bandwidth = [
            new or old
            for new, old in zip(
                _flow_share_bandwidths(topology, by_link), self._bandwidth, strict=True
            )
        ]

    def is_stranded(self, request: Request) -> bool:
        """Never: the whole of its route is fixed."""
        return False

    def admit(self, request: Request) -> Rejection | None:
        """Give a request its whole route, or say why it gets none."""
        self._bill_decodes()
        links: list[PlacedLink] = []
        machine = home = self._topology.front_end_machine(request.front_end)
        tokens = self._kv.tokens(request)
        while not links or machine != home:
            link = self._next(machine, request, tokens)
            if link is None:
                for taken in links:
                    self._load[taken.index] -= request.num_tokens / self._flow[taken.index]
                return self._reason(machine, request)
            self._load[link.index] += request.num_tokens / self._flow[link.index]
            links.append(link)
            machine = link.target
        route = self._route(links)
        request.route = route
        self._kv.book(request, route)
        self._decodes_until_look = 0
        return None

    def decodes_dispatched(self, requests: Iterable[Request]) -> None:
        """Count decodes against their routes; the load is added before the next decision."""
        for request in requests:
            route = request.route
            assert isinstance(route, FlowRoute)
            if not route.unbilled_decodes:
                self._unbilled.append(route)
            route.unbilled_decodes += 1
            self._decodes_until_look -= 1

    def overfull_node(self) -> int | None:
        """The number of a node on which requests hold more than its KV cache has room for."""
        if self._held is None or self._decodes_until_look > 0:
            return None
        self._bill_decodes()
        self._decodes_until_look = self._held.headroom_tokens() + 1
        return self._held.fullest()

    def preempted(self) -> None:
        """Take note that requests were preempted for want of room."""
        if self._held is not None:
            self._held.preempted()

    def finished(self, request: Request) -> None:
        """Release what was expected of the request's KV cache."""
        if self._held is not None:
            self._bill_decodes()
            self._decodes_until_look = 0
        self._kv.release(request)

    def bottleneck_share(self) -> float:
        """Expected KV use of the fullest layer."""
        if self._held is not None:
            self._bill_decodes()
        return self._kv.bottleneck_share()

    def expected_tokens(self, node: int) -> int:
        """KV use that is expected of a node, in tokens x layers."""
        if self._held is not None:
            self._bill_decodes()
        return self._kv.expected_tokens[node]

    def validate(self, active: Collection[Request]) -> None:
        """Check that exactly the active requests are booked, each on its own route."""
        self._bill_decodes()
        self._kv.validate(active)

    def _next(self, machine: int, request: Request, tokens: int) -> PlacedLink | None:
        topology, nodes = self._topology, self._topology.nodes
        fitting = [
            link
            for link in self._open[request.front_end][machine]
            if topology.is_front_end(link.target)
            or (can_run(nodes[link.target], request) and self._kv.fits(link.target, tokens))
        ]
        return self._pick(fitting, request) if fitting else None

    def _pick(self, links: Sequence[PlacedLink], request: Request) -> PlacedLink:
        """The link whose load would be least with the request; among equals, the first."""
        return min(links, key=lambda link: self._load_after(link, request))

    def _load_after(self, link: PlacedLink, request: Request) -> float:
        return self._load[link.index] + request.num_tokens / self._flow[link.index]

    def _reason(self, machine: int, request: Request) -> Rejection:
        nodes, is_front_end = self._topology.nodes, self._topology.is_front_end
        targets = [link.target for link in self._open[request.front_end][machine]]
        if not targets:
            # A front end may have lost its routes while others have theirs.
            return Rejection.NODES if is_front_end(machine) else Rejection.FLOW
        if not any(is_front_end(target) or can_run(nodes[target], request) for target in targets):
            return Rejection.LENGTH
        return Rejection.KV

    def _route(self, links: list[PlacedLink]) -> FlowRoute:
        key = tuple(link.index for link in links)
        route = self._routes.get(key)
        if route is None:
            nodes = self._topology.nodes
            stages = [
                Stage(link.target, link.entry_layer, nodes[link.target].end_layer)
                for link in links[:-1]
            ]
            open_links = self._open[links[0].source - self._topology.coordinator]
            route = self._routes[key] = FlowRoute(
                stages,
                tuple(links),
                tuple(link for link in links if len(open_links[link.source]) > 1),
            )
        return route

    def _bill_decodes(self) -> None:
        """Add the load of the decodes since the last decision.

        One decode at a time, so that sums round as if each had been added when it left: that
        it is the same number each time makes their order immaterial.
        """
        if not self._unbilled:
            return
        counts: dict[int, int] = {}
        for route in self._unbilled:
            if self._held is not None:
                self._held.grow(route, route.unbilled_decodes)
            for link in route.chosen:
                counts[link.index] = counts.get(link.index, 0) + route.unbilled_decodes
            route.unbilled_decodes = 0
        self._unbilled.clear()
        for index, count in counts.items():
            if not self._flow[index]:
                continue  # routes of before lead over it, new ones do not
            load, each = self._load[index], 1 / self._flow[index]
            for _ in range(count):
                load += each
            self._load[index] = load


def _open_links(
    topology: Topology, flow: tuple[float, ...], min_share: float, *, half_of_equal_is_enough: bool
) -> list[list[tuple[PlacedLink, ...]]]:
    """For every front end and every machine, the links that its requests use.

    They carry enough of the machine's flow, of the links by which these requests get back, or lead
    to a node that holds the whole LLM, unless small shares are left out even where there are no
    others.
    """
    replicas = topology.replicas if half_of_equal_is_enough else ()
    return [
        [
            used_links(
                links,
                flow,
                min_share,
                half_of_equal_is_enough=half_of_equal_is_enough,
                replicas=replicas,
            )
            for links in links_back(topology, home)
        ]
        for home in topology.front_end_machines
    ]


def _check_open(
    topology: Topology, open_links: list[list[tuple[PlacedLink, ...]]], inputs: PolicyInputs
) -> None:
    """See that the filter of small shares leaves a way out of every machine."""
    if inputs.flow.tokens_per_s <= 0:
        raise NoRouteError("the maximum flow is zero: no tokens get through this placement")
    by_link = inputs.flow.link_tokens_per_s
    for home, of_home in zip(topology.front_end_machines, open_links, strict=True):
        for machine, links in enumerate(links_back(topology, home)):
            carrying = used_links(links, by_link, 0.0, half_of_equal_is_enough=False)
            if not carrying or of_home[machine]:
                continue
            raise NoRouteError(
                f"the flow of {topology.name(machine)} is shared by {len(carrying)} nodes, each of "
                f"which has less than scheduler.min_flow_share = {inputs.min_flow_share:g} of it, "
                f"so none is used; set it lower, for example to {0.5 / len(carrying):.2g}"
            )


def _flow_share_bandwidths(topology: Topology, flow: tuple[float, ...]) -> list[int]:
    outflow = [sum(flow[link.index] for link in links) for links in topology.outgoing]
    inflow = [sum(flow[link.index] for link in links) for links in topology.incoming]
    bandwidths = []
    for link in topology.links:
        share = flow[link.index]
        if share <= 0:
            bandwidths.append(0)
            continue
        sender = topology.nic(link.source).outbound_bytes_per_s
        receiver = topology.nic(link.target).inbound_bytes_per_s
        bandwidths.append(
            max(
                1,
                int(
                    min(
                        link.bandwidth_bytes_per_s,
                        sender * (share / outflow[link.source]),
                        receiver * (share / inflow[link.target]),
                    )
                ),
            )
        )
    return bandwidths

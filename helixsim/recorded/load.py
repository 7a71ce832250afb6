"""The load and the routes of a recorded run, for its replay."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise

from helixsim.control.load import Arrival
from helixsim.control.routing import Policy
from helixsim.control.routing.maxflow import FlowRoute
from helixsim.control.routing.policy import Rejection, RoutingPoint, complete_route
from helixsim.errors import InputError
from helixsim.placement.flow import Flow
from helixsim.placement.topology import PlacedLink, Topology
from helixsim.recorded.recording import RecordedRequest, RecordedRun, Trigger
from helixsim.requests import Request, Stage


class RecordedLoad:
    """Generates the requests of a recorded run.

    In an open loop, requests arrive at their recorded times. In a closed loop, a request that left
    at the instant at which another came back follows that one in the replay too.

    Parameters
    ----------
    run
        The recorded run.
    start_s
        Simulated time of the start of the recording.
    passes_beyond_answer
        Decodes that the simulation runs beyond the answer. Answers are set such that each request
        has as many passes as in the recording.
    closed_loop
        Whether requests follow the completions that they followed in the recording.

    Attributes
    ----------
    sent
        The requests in the order of their creation in the replay.
    """

    def __init__(
        self,
        run: RecordedRun,
        *,
        start_s: float,
        passes_beyond_answer: int,
        closed_loop: bool,
    ) -> None:
        self._run = run
        self._start_s = start_s
        self._beyond = passes_beyond_answer
        self._following: dict[Trigger, RecordedRequest] = {}
        if closed_loop:
            self._following = {
                request.trigger: request for request in run.requests if request.trigger is not None
            }
        self._numbers: list[int] = []
        self._number = {request.query: n for n, request in enumerate(run.requests)}
        self.sent: list[RecordedRequest] = []

    def opening(self) -> Iterator[Arrival]:
        """No request arrives before its recorded time."""
        return iter(())

    def later(self) -> Iterator[Arrival]:
        """Requests that arrive at their recorded times."""
        following = {request.query for request in self._following.values()}
        for request in self._run.requests:
            if request.query not in following:
                yield self._arrival(request, self._start_s + request.dispatched_s)

    def after_prompt(self, now: float, share: float | None, index: int) -> Arrival | None:
        """The request that followed the end of this prompt, if any."""
        return self._follow(now, index, is_end=False)

    def after_end(self, now: float, share: float | None, index: int | None) -> Arrival | None:
        """The request that followed the end of this request, if any."""
        return None if index is None else self._follow(now, index, is_end=True)

    def _follow(self, now: float, index: int, *, is_end: bool) -> Arrival | None:
        if not self._following:
            return None
        number = self._number[self.sent[index].query]
        request = self._following.get(Trigger(number, is_end))
        return None if request is None else self._arrival(request, now)

    def _arrival(self, request: RecordedRequest, at_s: float) -> Arrival:
        self.sent.append(request)
        output_tokens = request.num_passes - self._beyond
        return Arrival(at_s, request.prompt_tokens, max(output_tokens, 0))


class RecordedRoutes:
    """A policy that gives every request its recorded route.

    A request without a recorded route takes the route that the scenario's policy chooses at its
    admission.

    Parameters
    ----------
    run
        The recorded run.
    load_generator
        Sends its requests.
    topology
        Nodes and links of the replay.
    inner
        The scenario's policy, which limits the bandwidth of links, and routes requests without
        a recorded route.

    Raises
    ------
    InputError
        If a route does not fit the topology.
    """

    routing_point = RoutingPoint.ADMISSION
    needs_transits = False

    def __init__(
        self, run: RecordedRun, load_generator: RecordedLoad, topology: Topology, inner: Policy
    ) -> None:
        self._load_generator = load_generator
        self._inner = inner
        self._topology = topology
        self._maker = RouteMaker(run, topology)
        self._routes = {
            request.query: self._maker.route(request) for request in run.requests if request.stages
        }
        self._routed_by_inner: set[Request] = set()
        if run.num_without_route:
            self.needs_transits = inner.needs_transits

    def link_bandwidth(self, link: PlacedLink) -> int:
        """Bandwidth that the scenario's policy allows; all of a link that it does not use."""
        return self._inner.link_bandwidth(link) or max(int(link.bandwidth_bytes_per_s), 1)

    def reroute(
        self,
        flow: Flow,
        down: frozenset[int],
        cut: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        """Recorded routes do not change."""

    def is_stranded(self, request: Request) -> bool:
        """Never: recorded routes are fixed."""
        return False

    def admit(self, request: Request) -> Rejection | None:
        """Give a request its route."""
        route = self._routes.get(self._load_generator.sent[request.index].query)
        if route is not None:
            request.route = route
            return None
        rejection = self._inner.admit(request)
        if rejection is None:
            chosen = complete_route(self._inner, self._topology, request)
            if not isinstance(chosen, FlowRoute):
                request.route = self._maker.over(chosen.stages)
            self._routed_by_inner.add(request)
        return rejection

    def decodes_dispatched(self, requests: Iterable[Request]) -> None:
        """Tell the scenario's policy, if it chose their routes."""
        if self._routed_by_inner:
            self._inner.decodes_dispatched(
                [request for request in requests if request in self._routed_by_inner]
            )

    def finished(self, request: Request) -> None:
        """Tell the scenario's policy, if it chose its route."""
        if request in self._routed_by_inner:
            self._routed_by_inner.remove(request)
            self._inner.finished(request)

    def bottleneck_share(self) -> float | None:
        """None: KV use is not tracked."""
        return None

    def expected_tokens(self, node: int) -> int | None:
        """None: KV use is not tracked."""
        return None

    def validate(self, active: Collection[Request]) -> None:
        """Nothing is booked."""


class RouteMaker:
    """Turns recorded routes into routes over the links of a topology."""

    def __init__(self, run: RecordedRun, topology: Topology) -> None:
        self._file = run.folder
        self._topology = topology
        self._numbers = {node.name: node.index for node in topology.nodes}
        self._names = run.node_names
        self._links = {(link.source, link.target): link for link in topology.links}
        self._made: dict[tuple[int, ...], FlowRoute] = {}

    def route(self, request: RecordedRequest) -> FlowRoute:
        """The route of a request; raises InputError if it does not fit."""
        topology = self._topology
        machines = [self._node(request, stage.node) for stage in request.stages]
        links: list[PlacedLink] = []
        layer = 0
        coordinator = topology.coordinator
        for source, target in zip([coordinator, *machines], [*machines, coordinator], strict=True):
            link = self._links.get((source, target))
            if link is None:
                raise self._mistake(
                    request,
                    f"goes from {topology.name(source)} to {topology.name(target)}, but "
                    "the scenario's placement has no link between them",
                )
            links.append(link)
        for stage, machine in zip(request.stages, machines, strict=True):
            node = topology.nodes[machine]
            if stage.start_layer != layer or stage.end_layer != node.end_layer:
                raise self._mistake(
                    request,
                    f"runs layers {stage.start_layer} to {stage.end_layer} on {node.name}, which "
                    f"would run {layer} to {node.end_layer} in the scenario",
                )
            layer = node.end_layer
        if layer != topology.llm.num_layers:
            raise self._mistake(request, f"ends at layer {layer} of {topology.llm.num_layers}")
        key = tuple(machines)
        if key not in self._made:
            self._made[key] = FlowRoute(_stages(request, machines), tuple(links), ())
        return self._made[key]

    def over(self, stages: Sequence[Stage]) -> FlowRoute:
        """The route over stages that a policy chose, which are numbered as in the topology."""
        coordinator = self._topology.coordinator
        machines = [coordinator, *(stage.node for stage in stages), coordinator]
        return FlowRoute(list(stages), tuple(self._links[pair] for pair in pairwise(machines)), ())

    def _node(self, request: RecordedRequest, number: int) -> int:
        name = self._names[number]
        if name not in self._numbers:
            raise self._mistake(request, f"uses {name}, which holds no layers in the scenario")
        return self._numbers[name]

    def _mistake(self, request: RecordedRequest, text: str) -> InputError:
        return InputError(
            f"its route {text}; use the scenario of the recorded cluster, or add --reroute",
            file=self._file,
            where=f"request {request.query}",
        )


def _stages(request: RecordedRequest, machines: Sequence[int]) -> list[Stage]:
    return [
        Stage(machine, stage.start_layer, stage.end_layer)
        for machine, stage in zip(machines, request.stages, strict=True)
    ]

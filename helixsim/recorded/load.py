"""The load and the routes of a recorded run, for its replay."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from helixsim.control.load import Arrival
from helixsim.control.routing import Policy
from helixsim.control.routing.maxflow import FlowRoute
from helixsim.control.routing.policy import Rejection, RoutingPoint
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
        Decodes that the simulation runs beyond the answer; answers are shortened by as many.
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
        output_tokens = max(request.output_tokens - self._beyond, 1)
        return Arrival(at_s, request.prompt_tokens, output_tokens)


class RecordedRoutes:
    """A policy that gives every request its recorded route.

    Parameters
    ----------
    run
        The recorded run.
    load_generator
        Sends its requests.
    topology
        Nodes and links of the replay.
    inner
        The scenario's policy, which limits the bandwidth of links.

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
        maker = RouteMaker(run, topology)
        self._routes = {request.query: maker.route(request) for request in run.requests}

    def link_bandwidth(self, link: PlacedLink) -> int:
        """Bandwidth that the scenario's policy allows; all of a link that it does not use."""
        return self._inner.link_bandwidth(link) or max(int(link.bandwidth_bytes_per_s), 1)

    def reroute(self, flow: Flow, down: frozenset[int]) -> None:
        """Recorded routes do not change."""

    def is_stranded(self, request: Request) -> bool:
        """Never: recorded routes are fixed."""
        return False

    def admit(self, request: Request) -> Rejection | None:
        """Give a request its route."""
        request.route = self._routes[self._load_generator.sent[request.index].query]
        return None

    def decodes_dispatched(self, requests: Iterable[Request]) -> None:
        """Recorded routes do not depend on it."""

    def finished(self, request: Request) -> None:
        """Recorded routes do not depend on it."""

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

"""What metrics read of a run, simulated or real: its nodes, its links, its KV caches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from helixsim.requests import Request, Route

if TYPE_CHECKING:
    from helixsim.control.coordinator import Coordinator
    from helixsim.control.routing import Policy
    from helixsim.metrics.recorder import RunRecorder
    from helixsim.placement.flow import Flow
    from helixsim.placement.topology import PlacedLink, Topology
    from helixsim.scenario.resolved import Scenario


class NodeGauges(Protocol):
    """What is read off a node."""

    @property
    def num_tokens(self) -> int:
        """Tokens that left its last layer so far."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches run so far."""
        ...

    @property
    def num_running(self) -> int:
        """Requests in the batch under way."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests waiting for a batch."""
        ...

    def busy_s(self, now: float) -> float:
        """Seconds spent computing so far."""
        ...


class LinkGauges(Protocol):
    """What is read off a link."""

    @property
    def placed(self) -> PlacedLink:
        """The link itself."""
        ...

    @property
    def num_bytes(self) -> float:
        """Bytes carried so far."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests carried so far."""
        ...

    def busy_s(self, now: float) -> float:
        """Seconds spent sending so far."""
        ...

    def backlog_s(self, now: float) -> float:
        """Seconds needed to send what is queued."""
        ...


class MeasuredRun(Protocol):
    """A run that is under way or has ended."""

    scenario: Scenario
    seed: int
    start_s: float
    end_s: float

    @property
    def topology(self) -> Topology:
        """Nodes and links."""
        ...

    @property
    def flow(self) -> Flow:
        """The maximum flow over the topology."""
        ...

    @property
    def policy(self) -> Policy:
        """The policy that finds routes."""
        ...

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator."""
        ...

    @property
    def recorder(self) -> RunRecorder:
        """The records of requests and passes."""
        ...

    @property
    def gpus(self) -> Sequence[NodeGauges]:
        """The gauges of every node, in order."""
        ...

    @property
    def links(self) -> Sequence[LinkGauges]:
        """The gauges of every link, in order."""
        ...

    @property
    def now(self) -> float:
        """The time, in seconds."""
        ...


def kv_use(requests: Iterable[Request], num_nodes: int) -> list[int]:
    """KV cache in use on every node, in tokens x layers.

    A request holds, on each layer of its route, its context and the tokens of the pass that is
    under way, from when the pass leaves the coordinator. The paper's physics does not
    depend on it (admission goes by expectation), so it is computed when it is sampled rather than
    updated with every token.
    """
    tokens: dict[Route, int] = {}
    for request in requests:
        route = request.route
        if route is not None:
            held = request.context_tokens + request.step_tokens
            tokens[route] = tokens.get(route, 0) + held
    use = [0] * num_nodes
    for route, held in tokens.items():
        for stage in route.stages:
            use[stage.node] += held * stage.num_layers
    return use

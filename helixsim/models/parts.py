"""What the models of either physics are made of, and what making them yields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from helixsim.control.coordinator import Coordinator
from helixsim.control.routing import Policy
from helixsim.control.routing.maxflow import FlowRoute
from helixsim.metrics.gauges import LinkGauges, NodeGauges
from helixsim.models.coordinator_node import CoordinatorNode
from helixsim.models.event_loop import ExactEnvironment
from helixsim.placement.topology import Topology
from helixsim.requests import Request
from helixsim.scenario.resolved import Scenario

if TYPE_CHECKING:
    from helixsim.models.tracing import Tracer


class NodeModel(NodeGauges, Protocol):
    """A node as faults and the driver see it."""

    def keep(self, wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more."""
        ...

    def die(self, now: float) -> None:
        """Stop, forget everybody, and take no notice of those who come."""
        ...

    def revive(self, now: float) -> None:
        """Start again; those who have come by now are lost."""
        ...


class LinkModel(LinkGauges, Protocol):
    """A link as faults and the driver see it."""

    def use_bandwidth(self, bandwidth_bytes_per_s: float) -> None:
        """Take note of another plan of flow, and of the bandwidth that it gives this link."""
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
    coordinator: Coordinator
    seed: int
    tracer: Tracer | None = None


@dataclass(frozen=True, slots=True)
class Models:
    """The models of a run: the coordinator's machine, and nodes and links in order."""

    host: CoordinatorNode
    nodes: Sequence[NodeModel]
    links: Sequence[LinkModel]


class RouteFollower:
    """Readies requests whose whole route is known: where they leave each machine to.

    Requests on the same path share the answer.
    """

    def __init__(self, links: Sequence[Any]) -> None:
        self._links = links
        self._onward: dict[FlowRoute, Mapping[int, Any]] = {}

    def __call__(self, request: Request) -> None:
        """Ready one request."""
        route = cast(FlowRoute, request.route)
        onward = self._onward.get(route)
        if onward is None:
            onward = {link.source: self._links[link.index] for link in route.links}
            self._onward[route] = onward
        request.onward = onward


def start_empty(request: Request) -> None:
    """Ready a request whose route is found hop by hop."""
    request.onward = {}

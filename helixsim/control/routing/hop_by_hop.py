"""What the policies that choose one hop at a time have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from helixsim.control.routing.policy import PolicyInputs, Rejection, RouteFilter
from helixsim.placement.flow import Flow
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request, Route


class HopByHopPolicy:
    """Admits every prompt that some route takes, and keeps no count of KV caches."""

    needs_transits = False

    def __init__(self, inputs: PolicyInputs) -> None:
        self._topology = inputs.topology
        self._view = inputs.view
        self._room = RouteFilter(inputs.topology)

    def link_bandwidth(self, link: PlacedLink) -> int:
        """All of the link's own bandwidth, as a whole number, at least 1."""
        return max(int(link.bandwidth_bytes_per_s), 1)

    def reroute(
        self,
        flow: Flow,
        down: frozenset[int],
        cut: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        """Choose no nodes that are down and no links that are cut; the flow does not matter."""
        self._room.close(down, cut)

    def is_stranded(self, request: Request) -> bool:
        """Whether all ways on from the end of its route lead over nodes that are down."""
        assert request.route is not None
        stages = request.route.stages
        machine = stages[-1].node if stages else self._topology.front_end_machine(request.front_end)
        return not any(self._room.fits(link, request) for link in self._topology.outgoing[machine])

    def admit(self, request: Request) -> Rejection | None:
        """Give a request an empty route, or say that no route takes one so long."""
        if not self._room.admits(request):
            return Rejection.LENGTH if self._room.has_route(request) else Rejection.NODES
        request.route = Route([])
        return None

    def decodes_dispatched(self, requests: Iterable[Request]) -> None:
        """Decodes follow their prompt; there is nothing to note."""

    def finished(self, request: Request) -> None:
        """No count of KV caches is kept; there is nothing to release."""

    def bottleneck_share(self) -> float | None:
        """Not counted."""
        return None

    def expected_tokens(self, node: int) -> int | None:
        """Not counted."""
        return None

    def validate(self, active: Collection[Request]) -> None:
        """Nothing is booked; every active request has a route, be it empty."""
        assert all(request.route is not None for request in active), "kv-conserved: no route"

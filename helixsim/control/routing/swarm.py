"""Swarm scheduling: the next node is the one that has been quickest, each taking its turn.

Every machine keeps a priority for each link. A prompt takes the link with the least priority,
to which the link's smoothed transit time is then added, so that links are used in inverse
proportion to their times. Transit runs from the start of sending to leaving the node behind
the link. Source: the SWARM paper (arXiv 2301.11913) as the Helix paper applies it.
"""

from __future__ import annotations

from collections.abc import Iterable

from helixsim.control.routing.hop_by_hop import HopByHopPolicy
from helixsim.control.routing.policy import PolicyInputs, RoutingPoint
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request

_START_S = 0.05
_NEW_WEIGHT = 0.8
_OLD_WEIGHT = 0.2


class SwarmPolicy(HopByHopPolicy):
    """Chooses by smoothed transit times when a prompt leaves a machine."""

    routing_point = RoutingPoint.HOP

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        topology = inputs.topology
        self._priority = [_START_S] * len(topology.links)
        self._transit_s = [_START_S] * len(topology.links)

    def transited(self, requests: Iterable[Request], now: float) -> None:
        """Learn how long requests took over their link and through the node behind it."""
        transit_s = self._transit_s
        for request in requests:
            index = request.via_link
            transit_s[index] = _NEW_WEIGHT * (now - request.sent_s) + _OLD_WEIGHT * transit_s[index]

    def choose(self, machine: int, request: Request) -> PlacedLink:
        """The link with the least priority; among equals, the first."""
        best = min(
            (link for link in self._topology.outgoing[machine] if self._room.fits(link, request)),
            key=lambda link: self._priority[link.index],
        )
        self._priority[best.index] += self._transit_s[best.index]
        return best

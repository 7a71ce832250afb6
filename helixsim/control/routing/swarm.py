"""Swarm scheduling: the next node is the one that has been quickest, each taking its turn.

Every machine keeps a priority for each link. A prompt takes the link with the least priority,
to which the link's smoothed transit time is then added, so that links are used in inverse
proportion to their times. Transit runs from the start of sending to leaving the node behind
the link. Source: the SWARM paper (arXiv 2301.11913) as the Helix paper applies it.
"""

from __future__ import annotations

from helixsim.control.cluster_view import FIRST_TRANSIT_S
from helixsim.control.routing.hop_by_hop import HopByHopPolicy
from helixsim.control.routing.policy import PolicyInputs, RoutingPoint
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request


class SwarmPolicy(HopByHopPolicy):
    """Chooses by smoothed transit times when a prompt leaves a machine."""

    routing_point = RoutingPoint.HOP
    needs_transits = True

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self._priority = [FIRST_TRANSIT_S] * len(inputs.topology.links)

    def choose(self, machine: int, request: Request) -> PlacedLink:
        """The link with the least priority; among equals, the first."""
        best = min(
            (link for link in self._topology.outgoing[machine] if self._room.fits(link, request)),
            key=lambda link: self._priority[link.index],
        )
        self._priority[best.index] += self._view.transit_s[best.index]
        return best

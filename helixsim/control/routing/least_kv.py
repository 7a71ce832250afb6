"""Least-KV scheduling: a prompt goes on to the node with the most free room in its KV cache.

Among the links that fit, when a prompt leaves a machine; of equally free nodes the first link
wins. Reads free KV tokens from the :class:`~helixsim.control.cluster_view.ClusterView`.
"""

from __future__ import annotations

from helixsim.control.routing.hop_by_hop import HopByHopPolicy
from helixsim.control.routing.policy import RoutingPoint
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request


class LeastKvPolicy(HopByHopPolicy):
    """Chooses the successor with the most free KV cache."""

    routing_point = RoutingPoint.HOP

    def choose(self, machine: int, request: Request) -> PlacedLink:
        """The link to the node with the most free KV tokens; among equals, the first."""
        links = self._topology.outgoing[machine]
        fitting = [link for link in links if self._room.fits(link, request)]
        if len(fitting) == 1 or self._topology.is_front_end(fitting[0].target):
            return fitting[0]
        nodes = self._view.nodes
        return max(fitting, key=lambda link: nodes[link.target].free_kv_tokens)

"""Shortest-queue scheduling: a prompt takes a free link to a node with the fewest waiting."""

from __future__ import annotations

from collections.abc import Container, Sequence

from helixsim.control.routing.policy import Chooser
from helixsim.control.routing.random_choice import RandomPolicy
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request


class ShortestQueuePolicy(RandomPolicy):
    """Chooses at random among the free links whose node has the fewest waiting of all."""

    def candidates(self, machine: int, usable: Sequence[PlacedLink]) -> Chooser:
        """Begin an attempt to send; a front end counts as the shortest queue."""
        is_front_end, nodes = self._topology.is_front_end, self._view.nodes
        queued = {
            link.index: -1 if is_front_end(link.target) else nodes[link.target].queue_length
            for link in self._topology.outgoing[machine]
        }
        outgoing = self._topology.outgoing[machine]

        def choose(request: Request, taken: Container[int]) -> PlacedLink | None:
            shortest = min(
                queued[link.index] for link in outgoing if self._room.fits(link, request)
            )
            order = list(usable)
            self._rng.shuffle(order)
            for link in order:
                if (
                    queued[link.index] == shortest
                    and link.index not in taken
                    and self._room.fits(link, request)
                ):
                    return link
            return None

        return choose

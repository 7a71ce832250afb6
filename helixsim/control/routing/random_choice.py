"""Random scheduling: a prompt takes any link that is free."""

from __future__ import annotations

from collections.abc import Container, Sequence

from helixsim.control.routing.hop_by_hop import HopByHopPolicy
from helixsim.control.routing.policy import Chooser, PolicyInputs, RoutingPoint
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request


class RandomPolicy(HopByHopPolicy):
    """Chooses at random among the links that are free."""

    routing_point = RoutingPoint.LINK

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self._rng = inputs.rng

    def candidates(self, machine: int, usable: Sequence[PlacedLink]) -> Chooser:
        """Begin an attempt to send; any usable link will do."""

        def choose(request: Request, taken: Container[int]) -> PlacedLink | None:
            # All usable links are shuffled, taken ones included, as published: it decides how
            # much of the random stream is used up.
            order = list(usable)
            self._rng.shuffle(order)
            for link in order:
                if link.index not in taken and self._room.fits(link, request):
                    return link
            return None

        return choose

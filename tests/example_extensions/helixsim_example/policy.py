"""A routing policy: every machine deals prompts out to its successors in turn."""

from helixsim.control.routing.hop_by_hop import HopByHopPolicy
from helixsim.control.routing.policy import RoutingPoint


class SpreadPolicy(HopByHopPolicy):
    """Takes the links that fit one after another."""

    routing_point = RoutingPoint.HOP

    def __init__(self, inputs):
        super().__init__(inputs)
        self._turn = [0] * (len(inputs.topology.nodes) + 1)

    def choose(self, machine, request):
        """The next link, in turn, over which the request finds a way to the end."""
        links = self._topology.outgoing[machine]
        fitting = [link for link in links if self._room.fits(link, request)]
        self._turn[machine] += 1
        return fitting[self._turn[machine] % len(fitting)]

"""How a token gets from the last node of a route back to the first, where decodes loop."""

from __future__ import annotations

from dataclasses import dataclass

from helixsim.cluster import Network
from helixsim.placement.topology import Topology


@dataclass(frozen=True, slots=True)
class WayBack:
    """What connects a last node with a first one, taken as one link.

    Attributes
    ----------
    bandwidth_bytes_per_s, latency_s
        The least bandwidth and the sum of the latencies.
    bytes_per_token
        What is sent for each request.
    """

    bandwidth_bytes_per_s: float
    latency_s: float
    bytes_per_token: float


def way_back(
    topology: Topology, network: Network, last: int, first: int, front_end: int = 0
) -> WayBack:
    """The network's own link between two nodes, or the way over a front end without one.

    Parameters
    ----------
    topology, network
        Nodes, and what connects them.
    last, first
        Numbers of the nodes.
    front_end
        Number of the request's front end, among the front ends.
    """
    names = [topology.name(last), topology.name(first)]
    hops = [network.link(*names)]
    if hops[0] is None:
        home = topology.name(topology.front_end_machine(front_end))
        hops = [network.link(names[0], home), network.link(home, names[1])]
    links = [link for link in hops if link is not None]
    assert links, "a route begins and ends at a front end"
    return WayBack(
        min(link.bandwidth_bytes_per_s for link in links),
        sum(link.latency_s for link in links),
        topology.llm.token_bytes,
    )

"""How a token gets from the last node of a route back to the first, where decodes loop."""

from __future__ import annotations

from dataclasses import dataclass

from helixsim.cluster import COORDINATOR, Network
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


def way_back(topology: Topology, network: Network, last: int, first: int) -> WayBack:
    """The network's own link between two nodes, or the way over the coordinator without one."""
    names = [topology.name(last), topology.name(first)]
    hops = [network.link(*names)]
    if hops[0] is None:
        hops = [network.link(names[0], COORDINATOR), network.link(COORDINATOR, names[1])]
    links = [link for link in hops if link is not None]
    assert links, "a route begins and ends at the coordinator"
    return WayBack(
        min(link.bandwidth_bytes_per_s for link in links),
        sum(link.latency_s for link in links),
        topology.llm.token_bytes,
    )

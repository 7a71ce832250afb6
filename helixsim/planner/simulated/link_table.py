"""Links as the surrogate knows them: between nodes, and between nodes and front ends."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt

from helixsim.cluster import Network, RuleNetwork
from helixsim.planner.problem import PlanningProblem

Matrix = npt.NDArray[np.float64]


class LinkTable:
    """Bandwidths in bytes/s (0 without a link) and latencies in seconds between all machines.

    Attributes
    ----------
    each_bandwidth, each_latency_s
        Shape (n + f, n + f), from the row's to the column's machine: n nodes, then f front ends.
    bandwidth, latency_s
        Shape (n + 1, n + 1): all front ends are one machine, the last; the nearest one counts.
    """

    def __init__(self, problem: PlanningProblem) -> None:
        cluster, nodes = problem.cluster, len(problem)
        names = [*problem.names, *cluster.front_end_names]
        network = cluster.network
        if isinstance(network, RuleNetwork):
            bandwidth, latency_s = network.bandwidths(names), network.latencies_s(names)
        else:
            bandwidth, latency_s = _listed(network, names)
        nics = [node.nic for node in cluster.nodes]
        nics += [front_end.nic for front_end in cluster.front_ends]
        outbound = np.array([nic.outbound_bytes_per_s for nic in nics])
        inbound = np.array([nic.inbound_bytes_per_s for nic in nics])
        narrowest = np.minimum(bandwidth, np.minimum(outbound[:, None], inbound[None, :]))
        number = np.minimum(np.arange(len(names)), nodes)
        is_allowed = problem.link_tokens_per_s[np.ix_(number, number)] > 0
        self.each_bandwidth = np.where(is_allowed, narrowest, 0.0)
        self.each_latency_s = latency_s
        self.bandwidth, self.latency_s = _nearest(self.each_bandwidth, latency_s, nodes)


def _nearest(bandwidth: Matrix, latency_s: Matrix, nodes: int) -> tuple[Matrix, Matrix]:
    """The tables with the links of each node with its nearest front end alone."""
    if len(bandwidth) == nodes + 1:
        return bandwidth, latency_s
    away_s = np.where(bandwidth > 0, latency_s, np.inf)
    every = np.arange(nodes)
    outwards = (nodes + away_s[nodes:, :nodes].argmin(axis=0), every)
    returning = (every, nodes + away_s[:nodes, nodes:].argmin(axis=1))
    found = []
    for table in (bandwidth, latency_s):
        joined = table[: nodes + 1, : nodes + 1].copy()
        joined[nodes, :nodes], joined[:nodes, nodes] = table[outwards], table[returning]
        found.append(joined)
    return found[0], found[1]


def _listed(network: Network, names: list[str]) -> tuple[Matrix, Matrix]:
    bandwidth, latency_s = np.zeros((2, len(names), len(names)))
    for a, b in permutations(range(len(names)), 2):
        if (link := network.link(names[a], names[b])) is not None:
            bandwidth[a, b], latency_s[a, b] = link.bandwidth_bytes_per_s, link.latency_s
    return bandwidth, latency_s

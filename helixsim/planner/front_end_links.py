"""The links between front ends and nodes, as the planner knows them: in tokens per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from helixsim.cluster import Cluster, FrontEnd
from helixsim.profiles.machine import LLM


@dataclass(frozen=True, eq=False)
class FrontEndLinks:
    """What joins each of f front ends to the n nodes, in tokens per second.

    Attributes
    ----------
    out, into
        Shape (f, n): capacity of the link from the front end to the node, and back; 0 for no link.
    outbound, inbound
        Shape (f,): capacity of the network interfaces.
    """

    out: npt.NDArray[np.float64]
    into: npt.NDArray[np.float64]
    outbound: npt.NDArray[np.float64]
    inbound: npt.NDArray[np.float64]

    def never_bind(self, at_node: float, total: float) -> bool:
        """Whether each link carries so much, and each interface a total."""
        return bool(
            min(self.out.min(), self.into.min()) >= at_node
            and min(self.outbound.min(), self.inbound.min()) >= total
        )

    def joined_to(
        self, nodes: Sequence[int], front_ends: Sequence[FrontEnd]
    ) -> tuple[FrontEnd, ...]:
        """The front ends with links to and from some nodes; all of them if there is none."""
        at = list(nodes)
        joined = (self.out[:, at] > 0).any(axis=1) & (self.into[:, at] > 0).any(axis=1)
        if not joined.any():
            return tuple(front_ends)
        return tuple(front_ends[number] for number in np.flatnonzero(joined).tolist())

    def pairs(self, pairs: Sequence[tuple[int, int]], first: int) -> list[tuple[int, int]]:
        """Links of all front ends taken as one machine, as links of each of them.

        Parameters
        ----------
        pairs
            (source, target) of links; the number `first` stands for all front ends.
        first
            The number of the first front end; the others follow.
        """
        found: list[tuple[int, int]] = []
        for number, row in enumerate((self.out > 0).tolist()):
            found += [(first + number, b) for a, b in pairs if a == first and row[b]]
        returns = (self.into > 0).T.tolist()
        for a, b in pairs:
            if b == first:
                found += [(a, first + number) for number, joins in enumerate(returns[a]) if joins]
            elif a != first:
                found.append((a, b))
        return found


def front_end_links(cluster: Cluster, llm: LLM) -> FrontEndLinks:
    """The links between the front ends and the nodes of a cluster."""

    def rate(source: str, target: str) -> float:
        link = cluster.network.link(source, target)
        return 0.0 if link is None else link.bandwidth_bytes_per_s / llm.token_bytes

    front_ends = cluster.front_ends
    return FrontEndLinks(
        out=np.array([[rate(each.name, node.name) for node in cluster] for each in front_ends]),
        into=np.array([[rate(node.name, each.name) for node in cluster] for each in front_ends]),
        outbound=np.array([each.nic.outbound_bytes_per_s for each in front_ends]) / llm.token_bytes,
        inbound=np.array([each.nic.inbound_bytes_per_s for each in front_ends]) / llm.token_bytes,
    )

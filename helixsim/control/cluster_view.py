"""What a routing policy may know of the cluster: queues, free KV blocks, measured times.

The simulator answers exactly, a real cluster from the latest heartbeats of its workers. Nothing is
computed until a policy asks, so a policy that does not look costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from helixsim.requests import Request

FIRST_TRANSIT_S = 0.05
"""Transit time of a link over which no request has come yet, as the SWARM policy starts from."""
_NEW_WEIGHT = 0.8
_OLD_WEIGHT = 0.2


class NodeView(Protocol):
    """What an executor tells of one node."""

    @property
    def queue_length(self) -> int:
        """Requests that a new one would wait behind; :class:`.NodeScheduler` says which."""
        ...

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a step."""
        ...

    @property
    def num_running(self) -> int:
        """Requests in the step that runs."""
        ...

    @property
    def free_kv_tokens(self) -> int:
        """Tokens for which all layers of the node still have room in the KV cache."""
        ...

    @property
    def step_s(self) -> float:
        """Mean time of a step so far, seconds; 0 before the first."""
        ...


class ClusterView:
    """The cluster as routing policies see it.

    Parameters
    ----------
    num_links
        Links of the topology, by whose numbers transit times are kept.

    Attributes
    ----------
    nodes
        A view for each node, by its number; filled by the executor before the run begins.
    transit_s
        For each link, the smoothed time from the start of sending over it to leaving the node
        behind it: 0.8 x the latest + 0.2 x before, starting at :data:`FIRST_TRANSIT_S`. Kept only
        for policies with ``needs_transits``. Source: the SWARM paper (arXiv 2301.11913) as the
        Helix paper applies it.
    """

    __slots__ = ("nodes", "transit_s")

    def __init__(self, num_links: int) -> None:
        self.nodes: Sequence[NodeView] = ()
        self.transit_s = [FIRST_TRANSIT_S] * num_links

    def passed(self, requests: Iterable[Request], now: float) -> None:
        """Take note that requests leave the node behind the link that they came over, in order."""
        transit_s = self.transit_s
        for request in requests:
            index = request.via_link
            transit_s[index] = _NEW_WEIGHT * (now - request.sent_s) + _OLD_WEIGHT * transit_s[index]

    def measured(self, link: int, seconds: float) -> None:
        """Take one measured transit over a link and through the node behind it."""
        self.transit_s[link] = _NEW_WEIGHT * seconds + _OLD_WEIGHT * self.transit_s[link]

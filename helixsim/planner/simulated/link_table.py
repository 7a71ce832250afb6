"""Links as the surrogate knows them: between nodes, and between nodes and all front ends."""

from __future__ import annotations

from collections.abc import Sequence

from helixsim.cluster import FrontEnd, Node
from helixsim.planner.problem import PlanningProblem


class LinkTable:
    """Bandwidth and latency of links, each looked up once; the nearest front end counts."""

    def __init__(self, problem: PlanningProblem) -> None:
        self._network = problem.cluster.network
        self._machines: list[Sequence[Node | FrontEnd]] = [
            *((node,) for node in problem.cluster),
            problem.cluster.front_ends,
        ]
        self._allowed = problem.link_tokens_per_s
        self._known: dict[tuple[int, int], tuple[float, float]] = {}

    def link(self, source: int, target: int) -> tuple[float, float]:
        """Bandwidth in bytes/s, 0 where there is no link, and latency in seconds."""
        found = self._known.get((source, target))
        if found is None:
            found = self._known[source, target] = self._nearest(source, target)
        return found

    def _nearest(self, source: int, target: int) -> tuple[float, float]:
        joins = [
            (sender, receiver, link)
            for sender in self._machines[source]
            for receiver in self._machines[target]
            if (link := self._network.link(sender.name, receiver.name)) is not None
        ]
        if not joins or self._allowed[source, target] <= 0:
            return 0.0, 0.0
        sender, receiver, link = min(joins, key=lambda join: join[2].latency_s)
        bandwidth = min(
            link.bandwidth_bytes_per_s,
            sender.nic.outbound_bytes_per_s,
            receiver.nic.inbound_bytes_per_s,
        )
        return bandwidth, link.latency_s

"""Alike nodes: placements in which they are exchanged are one placement.

Two nodes are alike if they have the same machine type, KV capacity and network interface, equal
links with every other machine, and the same constraints. Simulations of placements that differ by
an exchange of alike nodes differ by noise only, so that a search keeps one of them: the *canonical*
one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.simulated.link_table import LinkTable

SIMILAR = 1.6
"""Ratio of bandwidths, and of latencies, up to which links count as similar: rules for links
spread by 20 % around their mean, which is a ratio of 1.5 at most."""

Key = tuple[tuple[int, int, int], ...]
"""Class, first layer and layer after the last of every node in use, in order."""


@dataclass(frozen=True, eq=False)
class AlikeNodes:
    """Classes of alike nodes, numbered in the order of their first nodes.

    Attributes
    ----------
    class_of
        For every node, the number of its class.
    members
        For every class, its nodes in order.
    """

    class_of: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]

    def key(self, ranges: Ranges) -> Key:
        """A key that is equal for placements that differ by exchanges of alike nodes only."""
        class_of = self.class_of
        return tuple(sorted([(class_of[node], *span) for node, span in ranges.items()]))

    def canonical(self, ranges: Ranges) -> dict[int, tuple[int, int]]:
        """The canonical placement: of alike nodes, the first hold the first layers."""
        found: dict[int, tuple[int, int]] = {}
        used = [0] * len(self.members)
        for kind, start, end in self.key(ranges):
            found[self.members[kind][used[kind]]] = (start, end)
            used[kind] += 1
        return found


def alike_nodes(problem: PlanningProblem, tolerance: float = 1.0) -> AlikeNodes:
    """Find the classes of alike nodes.

    Parameters
    ----------
    problem
        The planning problem.
    tolerance
        Ratio up to which bandwidths and latencies of links count as equal: 1 for equal ones,
        :data:`SIMILAR` for links that a rule spreads around one mean.
    """
    links = LinkTable(problem)
    class_of: list[int] = []
    members: list[list[int]] = []
    for node in range(len(problem)):
        number = next(
            (
                number
                for number, others in enumerate(members)
                if _are_alike(problem, links, others[0], node, tolerance)
            ),
            len(members),
        )
        if number == len(members):
            members.append([])
        members[number].append(node)
        class_of.append(number)
    return AlikeNodes(tuple(class_of), tuple(map(tuple, members)))


def _are_alike(
    problem: PlanningProblem, links: LinkTable, a: int, b: int, tolerance: float
) -> bool:
    nodes = problem.cluster.nodes
    if problem.kind_of[a] != problem.kind_of[b] or nodes[a].nic != nodes[b].nic:
        return False
    if not problem.constraints.treat_alike(a, b):
        return False
    exchanged = list(range(len(links.each_bandwidth)))
    exchanged[a], exchanged[b] = b, a
    for table in (links.each_bandwidth, links.each_latency_s):
        for matrix in (table, table.T):
            low = np.minimum(matrix[a], matrix[b, exchanged])
            high = np.maximum(matrix[a], matrix[b, exchanged])
            if not bool(np.all(high <= low * tolerance)):
                return False
    return True

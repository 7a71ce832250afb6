"""Which links routes avoid while some connections between nodes are cut."""

from __future__ import annotations

from helixsim.errors import NoRouteError
from helixsim.placement.topology import Topology, without


def links_to_avoid(
    topology: Topology, down: frozenset[int], cut: frozenset[tuple[int, int]]
) -> frozenset[tuple[int, int]]:
    """The links of the topology that no route may use.

    A connection that is cut may be a link, or the way of tokens from a last node back to a first
    one. No route may then begin at the one and end at the other: either no route begins at the
    first node or, if there is no other, none ends at the last.

    Parameters
    ----------
    topology
        Nodes and links.
    down
        Nodes that are down.
    cut
        Connections that are cut, (source, target), by number.
    """
    links = {(link.source, link.target) for link in topology.links}
    avoided = cut & links
    coordinator = topology.coordinator
    for last, first in sorted(cut - links):
        begins, ends = (coordinator, first), (last, coordinator)
        if _has_route(topology, down, avoided | {begins}):
            avoided |= {begins}
        else:
            avoided |= {ends}
    return avoided


def _has_route(topology: Topology, down: frozenset[int], cut: frozenset[tuple[int, int]]) -> bool:
    try:
        without(topology, down, cut)
    except NoRouteError:
        return False
    return True

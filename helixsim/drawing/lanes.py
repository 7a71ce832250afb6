"""Lanes of a picture: one for each node, or one for all equal nodes of a large cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_SINGLE_LANES = 80
"""With more nodes than this, equal nodes share a lane."""

COORDINATOR_LANE = -1
"""The number that stands for the front ends as an end of a flow edge."""


@dataclass(frozen=True, slots=True)
class DrawnNode:
    """A node that holds the layers ``[start_layer, end_layer)``, with its capacity and flow.

    Attributes
    ----------
    capacity_tokens_per_s, flow_tokens_per_s
        Tokens per second that it can compute, and computes in the maximum flow.
    kv_tokens
        Tokens that fit its KV cache, on all its layers.
    bounds
        Its capacities in the minimum cut: ``compute``, ``inbound``, ``outbound``.
    bounds_too
        Whether one of its capacities is in another minimum cut.
    """

    name: str
    start_layer: int
    end_layer: int
    machine_type: str = ""
    region: str = ""
    capacity_tokens_per_s: float = 0.0
    flow_tokens_per_s: float = 0.0
    kv_tokens: float = 0.0
    bounds: tuple[str, ...] = ()
    bounds_too: bool = False


@dataclass(frozen=True, slots=True)
class Lane:
    """One or more nodes of the same type, region and layers."""

    nodes: tuple[DrawnNode, ...]

    @property
    def first(self) -> DrawnNode:
        """The first node; all share its type, region and layers."""
        return self.nodes[0]

    @property
    def num_layers(self) -> int:
        """Number of layers that each node holds."""
        return self.first.end_layer - self.first.start_layer

    @property
    def capacity_tokens_per_s(self) -> float:
        """Tokens per second that all nodes together can compute."""
        return sum(node.capacity_tokens_per_s for node in self.nodes)

    @property
    def flow_tokens_per_s(self) -> float:
        """Tokens per second that all nodes together compute in the maximum flow."""
        return sum(node.flow_tokens_per_s for node in self.nodes)

    @property
    def used(self) -> float:
        """Share of the capacity in use, 0 to 1."""
        capacity = self.capacity_tokens_per_s
        return min(1.0, self.flow_tokens_per_s / capacity) if capacity > 0 else 0.0

    @property
    def bounds(self) -> frozenset[str]:
        """Capacities of its nodes in the minimum cut."""
        return frozenset(role for node in self.nodes for role in node.bounds)

    @property
    def bounds_too(self) -> bool:
        """Whether a capacity of its nodes is in another minimum cut."""
        return any(node.bounds_too for node in self.nodes)


@dataclass(frozen=True, slots=True)
class DrawnLink:
    """A link into a node at `layer`; either end may be a front end."""

    source: int
    target: int
    names: tuple[str, str]
    layer: int
    flow_tokens_per_s: float
    capacity_tokens_per_s: float
    latency_s: float
    crosses_regions: bool
    bounds: bool


@dataclass(frozen=True, slots=True)
class FlowEdge:
    """The flow between two lanes over all links between them.

    An end may be :data:`COORDINATOR_LANE`.
    """

    source: int
    target: int
    links: tuple[DrawnLink, ...]

    @property
    def layer(self) -> int:
        """The layer at which requests enter the target, where the edge is drawn."""
        return self.links[0].layer

    @property
    def flow_tokens_per_s(self) -> float:
        """The flow over all its links."""
        return sum(link.flow_tokens_per_s for link in self.links)

    @property
    def crosses_regions(self) -> bool:
        """Whether its ends are in different regions; with several front ends, the most flow's."""
        return max(self.links, key=lambda link: link.flow_tokens_per_s).crosses_regions

    @property
    def bounds(self) -> bool:
        """Whether one of its links is in the minimum cut."""
        return any(link.bounds for link in self.links)


def lanes_of(nodes: Sequence[DrawnNode]) -> tuple[tuple[Lane, ...], list[int]]:
    """Arrange nodes in lanes, by first layer, then last.

    Returns
    -------
    tuple
        The lanes, and for every node the number of its lane.
    """
    together = len(nodes) > MAX_SINGLE_LANES
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, node in enumerate(nodes):
        alone = -1 if together else index
        key = (node.start_layer, node.end_layer, node.region, node.machine_type, alone)
        groups.setdefault(key, []).append(index)

    def order(members: list[int]) -> tuple[int, int, int]:
        node = nodes[members[0]]
        return node.start_layer, node.end_layer, members[0]

    lanes, lane_of = [], [0] * len(nodes)
    for number, members in enumerate(sorted(groups.values(), key=order)):
        for index in members:
            lane_of[index] = number
        lanes.append(Lane(tuple(nodes[index] for index in members)))
    return tuple(lanes), lane_of


def merge_links(links: Sequence[DrawnLink], lane_of: Sequence[int]) -> tuple[FlowEdge, ...]:
    """Merge the links between the same two lanes into flow edges, least flow first."""
    groups: dict[tuple[int, int], list[DrawnLink]] = {}
    for link in links:
        source, target = (
            end if end == COORDINATOR_LANE else lane_of[end] for end in (link.source, link.target)
        )
        groups.setdefault((source, target), []).append(link)
    edges = [FlowEdge(*ends, tuple(found)) for ends, found in groups.items()]
    return tuple(sorted(edges, key=lambda e: (e.flow_tokens_per_s, e.source, e.target)))

"""The contents of a placement's picture as plain values: lanes, flow edges, captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from helixsim.cluster import COORDINATOR
from helixsim.control.control_plane import followed_flow
from helixsim.drawing.captions import front_ends_text, split_text, unused_text
from helixsim.drawing.lanes import (
    COORDINATOR_LANE,
    DrawnLink,
    DrawnNode,
    FlowEdge,
    Lane,
    lanes_of,
    merge_links,
)
from helixsim.errors import PlacementError
from helixsim.placement.cut import Bounds, Cut, min_cut
from helixsim.placement.cut_text import bottleneck_text, elsewhere_text, overview_text
from helixsim.placement.export import node_flow
from helixsim.placement.flow import Flow, max_flow
from helixsim.placement.placement import Placement
from helixsim.placement.topology import Topology, build_topology
from helixsim.profiles.throughput import estimate_throughput
from helixsim.scenario.resolved import Scenario

_NOISE = 1e-6
"""Share of the maximum flow below which the flow of a link is drawn as zero: rounding error."""
_MAX_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class LayerTotals:
    """Totals for each layer over the nodes that hold it.

    Attributes
    ----------
    holders
        Machine type -> for each layer, the number of nodes that hold it.
    tokens_per_s
        Machine type -> for each layer, the throughput of its holders.
    kv_tokens
        Machine type -> for each layer, the tokens that fit the KV caches of its holders.
    """

    holders: dict[str, list[int]]
    tokens_per_s: dict[str, list[float]]
    kv_tokens: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A placement, ready to be drawn.

    Attributes
    ----------
    title
        Scenario, LLM and machines.
    caption
        Sentences under the title.
    notes
        Sentences at the foot.
    num_layers
        Of the LLM; without a cluster, of the nodes that are placed.
    machine_types
        In the cluster's order; one empty name without a cluster.
    regions
        Regions of the cluster's nodes.
    lanes, edges
        Nodes or groups of equal nodes, from first to last layer, and the flow between them.
    layers
        Totals for each layer.
    flow_tokens_per_s
        Maximum flow; None without a cluster.
    coordinator_bounds
        Whether the network interface of a front end is in the minimum cut.
    front_ends
        Names of the front ends.
    """

    title: str
    caption: tuple[str, ...]
    notes: tuple[str, ...]
    num_layers: int
    machine_types: tuple[str, ...]
    regions: tuple[str, ...]
    lanes: tuple[Lane, ...]
    edges: tuple[FlowEdge, ...]
    layers: LayerTotals
    flow_tokens_per_s: float | None = None
    coordinator_bounds: bool = False
    front_ends: tuple[str, ...] = (COORDINATOR,)


def solve(scenario: Scenario) -> tuple[Topology, Flow, Cut]:
    """Topology, maximum flow and minimum cut of a scenario's placement.

    The flow is split as requests follow it: by the scenario's `flow_split`. Its value, and so the
    minimum cut, is that of every maximum flow.

    Raises
    ------
    PlacementError
        If the scenario has no placement.
    NoRouteError
        If no route leads through all layers.
    """
    placement, cluster = scenario.placement, scenario.cluster
    if placement is None:
        raise PlacementError(
            f"{scenario.name}: the scenario has no placement to show; give it one, such as with "
            "--set placement.file=my-placement.yaml"
        )
    topology = build_topology(scenario.llm, cluster, placement, scenario.machine_types)
    throughput = estimate_throughput(
        scenario.llm,
        scenario.profiles(),
        cluster.machine_mix(),
        mean_prompt_tokens=scenario.workload.mean_prompt_tokens,
        mean_output_tokens=scenario.workload.mean_output_tokens,
    )
    cut = min_cut(topology, throughput, max_flow(topology, throughput))
    return topology, followed_flow(scenario, topology), cut


def picture_of(subject: Scenario | Placement, title: str = "Placement") -> Picture:
    """The picture of a scenario's placement, or of a placement alone under a title."""
    if isinstance(subject, Placement):
        return bare_picture(subject, title)
    return placement_picture(subject)


def placement_picture(scenario: Scenario) -> Picture:
    """The picture of a scenario's placement; errors as :func:`solve`."""
    topology, exact, cut = solve(scenario)
    flow = _without_noise(exact)
    placement, cluster = scenario.placement, scenario.cluster
    assert placement is not None
    nodes = _nodes(topology, flow, cut.bounds, cut.others)
    lanes, lane_of = lanes_of(nodes)
    regions = [topology.machine(number).region for number in range(topology.num_machines)]
    return Picture(
        title=f"{scenario.name}: {scenario.llm.name} on {overview_text(cluster.machine_mix())}",
        caption=(
            bottleneck_text(topology, cut),
            *elsewhere_text(topology, cut.others),
            *front_ends_text(topology.front_ends),
            *split_text(scenario.scheduler),
        ),
        notes=unused_text([node for node in cluster if node.name not in placement.layers]),
        num_layers=scenario.llm.num_layers,
        machine_types=tuple(cluster.machine_mix()),
        regions=tuple(dict.fromkeys(node.region for node in cluster)),
        lanes=lanes,
        edges=merge_links(_links(topology, flow, cut.bounds, regions), lane_of),
        layers=_layers(nodes, scenario.llm.num_layers),
        flow_tokens_per_s=flow.tokens_per_s,
        coordinator_bounds=any(
            map(topology.is_front_end, (*cut.bounds.inbound, *cut.bounds.outbound))
        ),
        front_ends=tuple(front_end.name for front_end in topology.front_ends),
    )


def bare_picture(placement: Placement, title: str) -> Picture:
    """The picture of a placement without a cluster: its layers only.

    Raises
    ------
    PlacementError
        If the layers of a node are not a range.
    """
    for name, (start, end) in placement.layers.items():
        if not 0 <= start < end <= _MAX_LAYERS:
            raise PlacementError(
                f"{title}: layers.{name}: [{start}, {end}] is not a range of layers; write [first, "
                "after the last]"
            )
    nodes = [DrawnNode(name, *layers) for name, layers in placement.layers.items()]
    lanes, _ = lanes_of(nodes)
    num_layers = max(node.end_layer for node in nodes)
    return Picture(
        title=f"{title}: layers of {len(nodes)} nodes",
        caption=(
            "No cluster is given: machine types, flow and bottleneck are unknown. They are drawn "
            "with --scenario, or by scenario.plot() in Python.",
        ),
        notes=(),
        num_layers=num_layers,
        machine_types=("",),
        regions=("",),
        lanes=lanes,
        edges=(),
        layers=_layers(nodes, num_layers),
    )


def _without_noise(flow: Flow) -> Flow:
    """The same flow with rounding errors on idle links set to zero."""
    least = flow.tokens_per_s * _NOISE
    links = tuple(rate if rate > least else 0.0 for rate in flow.link_tokens_per_s)
    return replace(flow, link_tokens_per_s=links)


def _nodes(topology: Topology, flow: Flow, bounds: Bounds, others: Bounds) -> list[DrawnNode]:
    return [
        DrawnNode(
            name=node.name,
            start_layer=node.start_layer,
            end_layer=node.end_layer,
            machine_type=node.machine_type,
            region=node.region,
            capacity_tokens_per_s=flow.compute_tokens_per_s[node.index],
            flow_tokens_per_s=node_flow(topology, flow, node.index),
            kv_tokens=node.capacity.kv_token_layers / node.num_layers,
            bounds=_roles(bounds, node.index),
            bounds_too=bool(_roles(others, node.index)),
        )
        for node in topology.nodes
    ]


def _roles(bounds: Bounds, index: int) -> tuple[str, ...]:
    roles = ("compute", "inbound", "outbound")
    return tuple(role for role in roles if index in getattr(bounds, role))


def _links(
    topology: Topology, flow: Flow, bounds: Bounds, regions: Sequence[str]
) -> list[DrawnLink]:
    is_front_end, num_layers = topology.is_front_end, topology.llm.num_layers
    return [
        DrawnLink(
            source=COORDINATOR_LANE if is_front_end(link.source) else link.source,
            target=COORDINATOR_LANE if is_front_end(link.target) else link.target,
            names=(topology.name(link.source), topology.name(link.target)),
            layer=num_layers if is_front_end(link.target) else link.entry_layer,
            flow_tokens_per_s=flow.link_tokens_per_s[link.index],
            capacity_tokens_per_s=link.bandwidth_bytes_per_s / link.bytes_per_token,
            latency_s=link.latency_s,
            crosses_regions=regions[link.source] != regions[link.target],
            bounds=link.index in bounds.links,
        )
        for link in topology.links
    ]


def _layers(nodes: Sequence[DrawnNode], num_layers: int) -> LayerTotals:
    types = dict.fromkeys(node.machine_type for node in nodes)
    found = LayerTotals(
        {name: [0] * num_layers for name in types},
        {name: [0.0] * num_layers for name in types},
        {name: [0.0] * num_layers for name in types},
    )
    for node in nodes:
        kind = node.machine_type
        for layer in range(node.start_layer, node.end_layer):
            found.holders[kind][layer] += 1
            found.tokens_per_s[kind][layer] += node.capacity_tokens_per_s
            found.kv_tokens[kind][layer] += node.kv_tokens
    return found

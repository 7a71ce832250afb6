"""What a picture of a placement shows, as plain values: rows, ribbons between them, words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from helixsim.drawing.captions import bottleneck_text, elsewhere_text, overview_text, unused_text
from helixsim.drawing.lanes import COORDINATOR_ROW, Machine, Ribbon, Row, Wire, merge_wires, rows_of
from helixsim.errors import PlacementError
from helixsim.placement.cut import Bounds, Cut, min_cut
from helixsim.placement.export import node_flow
from helixsim.placement.flow import Flow, max_flow
from helixsim.placement.placement import Placement
from helixsim.placement.topology import Topology, build_topology
from helixsim.profiles.throughput import estimate_throughput
from helixsim.scenario.resolved import Scenario

_NOISE = 1e-6
"""Share of the maximum flow that is too little to be seen, or left over by rounding."""
_MAX_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class Layers:
    """What the nodes have for each layer together.

    Attributes
    ----------
    holders
        Machine type -> for each layer, how many nodes hold it.
    tokens_per_s
        Machine type -> for each layer, the throughput of those that hold it.
    kv_tokens
        Machine type -> for each layer, the tokens whose keys and values fit their caches.
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
        What it is of.
    caption
        Sentences under the title.
    notes
        Sentences at the foot.
    num_layers
        Of the LLM, as far as it is known.
    machine_types
        In order of the cluster's; one empty name if they are not known.
    regions
        Those of the cluster's nodes.
    rows, ribbons
        Nodes or groups of nodes alike, from first to last layer, and the flow between them.
    layers
        What there is for each layer.
    flow_tokens_per_s
        Maximum flow; None if it is not known.
    coordinator_bounds
        Whether the coordinator's network interface is in the minimum cut.
    """

    title: str
    caption: tuple[str, ...]
    notes: tuple[str, ...]
    num_layers: int
    machine_types: tuple[str, ...]
    regions: tuple[str, ...]
    rows: tuple[Row, ...]
    ribbons: tuple[Ribbon, ...]
    layers: Layers
    flow_tokens_per_s: float | None = None
    coordinator_bounds: bool = False


def solve(scenario: Scenario) -> tuple[Topology, Flow, Cut]:
    """Lay a scenario's placement over its cluster; find its maximum flow and what bounds that.

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
    flow = max_flow(topology, throughput)
    return topology, flow, min_cut(topology, throughput, flow)


def placement_picture(scenario: Scenario) -> Picture:
    """Collect what there is to see of a scenario's placement; errors as :func:`solve`."""
    topology, exact, cut = solve(scenario)
    flow = _without_noise(exact)
    placement, cluster = scenario.placement, scenario.cluster
    assert placement is not None
    machines = _machines(topology, flow, cut.bounds, cut.others)
    rows, row_of = rows_of(machines)
    regions = [*(node.region for node in topology.nodes), cluster.coordinator_region]
    return Picture(
        title=f"{scenario.name}: {scenario.llm.name} on {overview_text(cluster.machine_mix())}",
        caption=(bottleneck_text(topology, cut), *elsewhere_text(topology, cut.others)),
        notes=unused_text([node for node in cluster if node.name not in placement.layers]),
        num_layers=scenario.llm.num_layers,
        machine_types=tuple(cluster.machine_mix()),
        regions=tuple(dict.fromkeys(node.region for node in cluster)),
        rows=rows,
        ribbons=merge_wires(_wires(topology, flow, cut.bounds, regions), row_of),
        layers=_layers(machines, scenario.llm.num_layers),
        flow_tokens_per_s=flow.tokens_per_s,
        coordinator_bounds=topology.coordinator in (*cut.bounds.inbound, *cut.bounds.outbound),
    )


def bare_picture(placement: Placement, title: str) -> Picture:
    """Collect what there is to see of a placement whose cluster is not known.

    Raises
    ------
    PlacementError
        If a node's layers are no range.
    """
    for name, (start, end) in placement.layers.items():
        if not 0 <= start < end <= _MAX_LAYERS:
            raise PlacementError(
                f"{title}: layers.{name}: [{start}, {end}] is no range of layers; write [first, "
                "after the last]"
            )
    machines = [Machine(name, *layers) for name, layers in placement.layers.items()]
    rows, _ = rows_of(machines)
    num_layers = max(machine.end_layer for machine in machines)
    return Picture(
        title=f"{title}: layers of {len(machines)} nodes",
        caption=(
            "No cluster: machine types, flow and bottleneck are not known. "
            "Name a scenario that has the cluster with --scenario.",
        ),
        notes=(),
        num_layers=num_layers,
        machine_types=("",),
        regions=("",),
        rows=rows,
        ribbons=(),
        layers=_layers(machines, num_layers),
    )


def _without_noise(flow: Flow) -> Flow:
    """The same flow without what rounding has left on links that carry nothing."""
    least = flow.tokens_per_s * _NOISE
    links = tuple(rate if rate > least else 0.0 for rate in flow.link_tokens_per_s)
    return replace(flow, link_tokens_per_s=links)


def _machines(topology: Topology, flow: Flow, bounds: Bounds, others: Bounds) -> list[Machine]:
    return [
        Machine(
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


def _wires(topology: Topology, flow: Flow, bounds: Bounds, regions: Sequence[str]) -> list[Wire]:
    home, num_layers = topology.coordinator, topology.llm.num_layers
    return [
        Wire(
            source=COORDINATOR_ROW if link.source == home else link.source,
            target=COORDINATOR_ROW if link.target == home else link.target,
            names=(topology.name(link.source), topology.name(link.target)),
            layer=num_layers if link.target == home else link.entry_layer,
            flow_tokens_per_s=flow.link_tokens_per_s[link.index],
            capacity_tokens_per_s=link.bandwidth_bytes_per_s / link.bytes_per_token,
            latency_s=link.latency_s,
            crosses_regions=regions[link.source] != regions[link.target],
            bounds=link.index in bounds.links,
        )
        for link in topology.links
    ]


def _layers(machines: Sequence[Machine], num_layers: int) -> Layers:
    types = dict.fromkeys(machine.machine_type for machine in machines)
    found = Layers(
        {name: [0] * num_layers for name in types},
        {name: [0.0] * num_layers for name in types},
        {name: [0.0] * num_layers for name in types},
    )
    for machine in machines:
        kind = machine.machine_type
        for layer in range(machine.start_layer, machine.end_layer):
            found.holders[kind][layer] += 1
            found.tokens_per_s[kind][layer] += machine.capacity_tokens_per_s
            found.kv_tokens[kind][layer] += machine.kv_tokens
    return found

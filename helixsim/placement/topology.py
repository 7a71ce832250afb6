"""The topology of a placement: numbered nodes with layers, and the usable links between them.

Control plane and simulator use this representation: nodes and links are numbered, and front
ends have the numbers after the last node; the coordinator is the first of them. Names are used only
to show results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from helixsim.cluster import Cluster, FrontEnd, Nic, Node
from helixsim.errors import NoRouteError, PlacementError
from helixsim.placement.placement import Placement, front_end_title, range_capacity
from helixsim.profiles.machine import LLM, Capacity, MachineProfile, MachineType


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """A node that holds layers.

    Attributes
    ----------
    index
        Its number, 0 to number of nodes - 1.
    start_layer, end_layer
        It holds the layers ``[start_layer, end_layer)``.
    capacity
        KV capacity and batch limits with these layers.
    own_kv_token_layers
        Its KV capacity, if the cluster sets one that differs from its type's.
    """

    index: int
    name: str
    machine_type: str
    region: str
    nic: Nic
    disk_bytes_per_s: float
    start_layer: int
    end_layer: int
    profile: MachineProfile
    capacity: Capacity
    own_kv_token_layers: int | None = None

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.end_layer - self.start_layer


@dataclass(frozen=True, slots=True)
class PlacedLink:
    """A link that requests may take.

    Attributes
    ----------
    index
        Its number, in the order of the placement's list.
    source, target
        Numbers of machines: of nodes, or of front ends.
    entry_layer
        The layer at which a request from this link continues.
    bytes_per_token
        Size of a token in messages: its id to and from front ends, its activation and id
        between nodes.
    """

    index: int
    source: int
    target: int
    bandwidth_bytes_per_s: float
    latency_s: float
    entry_layer: int
    bytes_per_token: float


@dataclass(frozen=True, slots=True)
class Topology:
    """Numbered nodes and the links between them.

    Attributes
    ----------
    outgoing, incoming
        For every machine, front ends last, its links in order.
    """

    llm: LLM
    nodes: tuple[PlacedNode, ...]
    links: tuple[PlacedLink, ...]
    front_ends: tuple[FrontEnd, ...]
    outgoing: tuple[tuple[PlacedLink, ...], ...]
    incoming: tuple[tuple[PlacedLink, ...], ...]

    @property
    def replicas(self) -> frozenset[int]:
        """The numbers of the nodes that hold the whole LLM."""
        whole = self.llm.num_layers
        return frozenset(node.index for node in self.nodes if node.num_layers == whole)

    @property
    def coordinator(self) -> int:
        """The number of the coordinator, which is the first front end."""
        return len(self.nodes)

    @property
    def num_machines(self) -> int:
        """How many nodes and front ends there are."""
        return len(self.nodes) + len(self.front_ends)

    @property
    def front_end_machines(self) -> range:
        """The machine numbers of the front ends: where routes start and end."""
        return range(len(self.nodes), self.num_machines)

    def front_end_machine(self, front_end: int) -> int:
        """The machine number of a front end, given its number among the front ends."""
        return len(self.nodes) + front_end

    def is_front_end(self, index: int) -> bool:
        """Whether a machine is a front end."""
        return index >= len(self.nodes)

    def machine(self, index: int) -> PlacedNode | FrontEnd:
        """A node or a front end."""
        number = index - len(self.nodes)
        return self.front_ends[number] if self.is_front_end(index) else self.nodes[index]

    def name(self, index: int) -> str:
        """The name of a node or of a front end."""
        return self.machine(index).name

    def nic(self, index: int) -> Nic:
        """The network interface of a node or of a front end."""
        return self.machine(index).nic

    @property
    def coordinator_nic(self) -> Nic:
        """The network interface of the coordinator."""
        return self.front_ends[0].nic


def build_topology(
    llm: LLM,
    cluster: Cluster,
    placement: Placement,
    machine_types: Mapping[str, MachineType],
) -> Topology:
    """Build the topology of a placement.

    Parameters
    ----------
    llm, cluster, placement
        LLM, machines and placement. Nodes keep the order of the cluster.
    machine_types
        Name -> machine type, for every node with layers.

    Raises
    ------
    PlacementError
        If a node cannot hold its layers, or a link of the placement's list does not exist.
    NoRouteError
        If no node holds a layer, or no route leads from a front end through all layers and back.
    """
    nodes = _placed_nodes(llm, cluster, placement, machine_types)
    _check_coverage(llm, nodes)
    numbers = {
        name: number
        for number, name in enumerate([*(node.name for node in nodes), *cluster.front_end_names])
    }
    if placement.links is None:
        pairs = _fitting_pairs(llm, nodes, cluster.front_end_names)
    else:
        pairs = ((cluster.own_name(a), cluster.own_name(b)) for a, b in placement.links)
    links: list[PlacedLink] = []
    for source, target in pairs:
        link = cluster.network.link(source, target)
        if link is None:
            if placement.links is None:
                continue
            raise PlacementError(f"the cluster has no link from {source} to {target}")
        a, b = numbers[source], numbers[target]
        at_home = max(a, b) >= len(nodes)
        links.append(
            PlacedLink(
                index=len(links),
                source=a,
                target=b,
                bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
                latency_s=link.latency_s,
                entry_layer=0 if a >= len(nodes) else nodes[a].end_layer,
                bytes_per_token=llm.token_bytes
                + (0 if at_home else llm.activation_bytes_per_token),
            )
        )
    outgoing, incoming = _by_machine(links, len(numbers))
    topology = Topology(llm, nodes, tuple(links), cluster.front_ends, outgoing, incoming)
    for home in topology.front_end_machines:
        if home not in machines_leading_to(topology, home):
            raise NoRouteError(_no_route(topology, home))
    return topology


def without(
    topology: Topology,
    nodes: frozenset[int],
    links: frozenset[tuple[int, int]] = frozenset(),
) -> Topology:
    """Leave out all links to and from some nodes, and some links; numbers stay as they are.

    Parameters
    ----------
    topology
        Nodes and links.
    nodes
        Numbers of nodes.
    links
        Numbers of the machines at both ends of links, (source, target).

    Raises
    ------
    NoRouteError
        If no route is left from any front end.
    """
    kept = [
        link
        for link in topology.links
        if nodes.isdisjoint((link.source, link.target)) and (link.source, link.target) not in links
    ]
    outgoing, incoming = _by_machine(kept, topology.num_machines)
    rest = replace(topology, links=tuple(kept), outgoing=outgoing, incoming=incoming)
    if not any(home in machines_leading_to(rest, home) for home in rest.front_end_machines):
        raise NoRouteError(_no_route(rest, rest.coordinator))
    return rest


def machines_leading_to(topology: Topology, home: int) -> frozenset[int]:
    """The machines from which links lead to a front end, over nodes.

    The front end itself is among them if a route leads from it through all layers and back.
    """
    leading: set[int] = set()
    waiting = [home]
    while waiting:
        for link in topology.incoming[waiting.pop()]:
            if link.source not in leading:
                leading.add(link.source)
                if not topology.is_front_end(link.source):
                    waiting.append(link.source)
    return frozenset(leading)


def nodes_on_routes(topology: Topology) -> frozenset[int]:
    """The nodes on some route from a front end through all layers and back."""
    found: set[int] = set()
    for home in topology.front_end_machines:
        reached, waiting = {home}, [home]
        while waiting:
            for link in topology.outgoing[waiting.pop()]:
                if link.target not in reached and not topology.is_front_end(link.target):
                    reached.add(link.target)
                    waiting.append(link.target)
        found |= reached & machines_leading_to(topology, home)
    return frozenset(node for node in found if not topology.is_front_end(node))


def _placed_nodes(
    llm: LLM,
    cluster: Cluster,
    placement: Placement,
    machine_types: Mapping[str, MachineType],
) -> tuple[PlacedNode, ...]:
    placed: list[PlacedNode] = []
    for node in cluster:
        if node.name not in placement.layers:
            continue
        profile = machine_types[node.machine_type].profiles[llm.name]
        placed.append(
            node_with_layers(node, profile, placement.layers[node.name], index=len(placed))
        )
    return tuple(placed)


def node_with_layers(
    node: Node, profile: MachineProfile, layers: tuple[int, int], *, index: int
) -> PlacedNode:
    """A node of the cluster that holds the layers ``[start, end)``, with this number.

    Raises
    ------
    PlacementError
        If neither the node nor its type has a KV capacity for these layers.
    """
    start, end = layers
    return PlacedNode(
        index=index,
        name=node.name,
        machine_type=node.machine_type,
        region=node.region,
        nic=node.nic,
        disk_bytes_per_s=node.disk_bytes_per_s,
        start_layer=start,
        end_layer=end,
        profile=profile,
        capacity=range_capacity(node, profile, start, end),
        own_kv_token_layers=node.kv_token_layers,
    )


def _fitting_pairs(
    llm: LLM, nodes: tuple[PlacedNode, ...], front_ends: Sequence[str]
) -> Iterable[tuple[str, str]]:
    """Every ordered pair over which a request can continue: ``s_j <= e_i < e_j``."""
    for front_end in front_ends:
        for node in nodes:
            if node.start_layer == 0:
                yield front_end, node.name
    for a in nodes:
        for b in nodes:
            if b.start_layer <= a.end_layer < b.end_layer:
                yield a.name, b.name
        if a.end_layer == llm.num_layers:
            for front_end in front_ends:
                yield a.name, front_end


def _by_machine(
    links: list[PlacedLink], num_machines: int
) -> tuple[tuple[tuple[PlacedLink, ...], ...], tuple[tuple[PlacedLink, ...], ...]]:
    outgoing: list[list[PlacedLink]] = [[] for _ in range(num_machines)]
    incoming: list[list[PlacedLink]] = [[] for _ in range(num_machines)]
    for link in links:
        outgoing[link.source].append(link)
        incoming[link.target].append(link)
    return tuple(map(tuple, outgoing)), tuple(map(tuple, incoming))


def _check_coverage(llm: LLM, nodes: tuple[PlacedNode, ...]) -> None:
    held = {layer for node in nodes for layer in range(node.start_layer, node.end_layer)}
    missing = [layer for layer in range(llm.num_layers) if layer not in held]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise NoRouteError(
            f"{len(missing)} of {llm.num_layers} layers of {llm.name} are on no node: {shown}"
        )


def _no_route(topology: Topology, home: int) -> str:
    """What is said where no route leads from a front end to itself."""
    llm, title = topology.llm, front_end_title(topology.name(home))
    reached = {home}
    frontier = [home]
    while frontier:
        for link in topology.outgoing[frontier.pop()]:
            if link.target not in reached and not topology.is_front_end(link.target):
                reached.add(link.target)
                frontier.append(link.target)
    furthest = max((topology.nodes[i].end_layer for i in reached if i != home), default=0)
    if furthest == llm.num_layers and len(topology.front_ends) > 1:
        return (
            f"no route leads back to {title}: none of the nodes with the last of the layers of "
            f"{llm.name} that its requests reach has a link to it"
        )
    return (
        f"no route leads through all {llm.num_layers} layers of {llm.name}: "
        f"over the given links, requests reach only layer {furthest} from {title}"
    )

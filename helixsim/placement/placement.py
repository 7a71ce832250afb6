"""A placement: which contiguous range of layers each node holds, and which links it uses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from helixsim.cluster import COORDINATOR, Cluster, Node
from helixsim.display import placement_image, placement_plot, short_text, table_html
from helixsim.errors import PlacementError
from helixsim.profiles.machine import LLM, Capacity, MachineProfile
from helixsim.yaml_files import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Placement:
    """Node -> ``[start_layer, end_layer)``, and the links that requests may take.

    Attributes
    ----------
    layers
        For every node in use, the half-open range of its layers. Other nodes of the cluster hold
        no layers.
    links
        Ordered pairs (source, target) that requests may take, with a front end at either end
        included (``coordinator`` is the first one); their order breaks ties in routing. None for
        all links of the cluster that fit the layers.
    allow_overcommitted_layers
        Accept nodes with more layers than ``max_layers`` of their machine type, as in the
        published separate pipelines.
    """

    layers: Mapping[str, tuple[int, int]]
    links: tuple[tuple[str, str], ...] | None = None
    allow_overcommitted_layers: bool = False

    def plot(self) -> Figure:
        """Draw the layers of every node; ``scenario.plot()`` draws the flow as well."""
        return placement_plot(self)

    def __repr__(self) -> str:
        ranges = ", ".join(
            f"{name} {start}-{end - 1}" for name, (start, end) in self.layers.items()
        )
        return short_text("Placement", f"of {len(self.layers)} nodes: {ranges}")

    def _repr_html_(self) -> str:
        rows = [(name, start, end - 1) for name, (start, end) in self.layers.items()]
        return table_html(
            f"Placement of {len(rows)} nodes",
            rows,
            head=("node", "first layer", "last layer"),
            picture=placement_image(self),
        )


def node_capacity(node: Node, profile: MachineProfile, num_layers: int) -> Capacity:
    """Capacity of a node that holds `num_layers`.

    The node's own KV capacity takes precedence over its machine type's. For a number of layers
    without batch limits in the type, the limits of the type's largest number of layers apply.

    Raises
    ------
    PlacementError
        If neither the node nor its type has a KV capacity for this number of layers.
    """
    if node.kv_token_layers is None:
        return profile.capacity(num_layers)
    known = profile.capacities
    row = known[num_layers if num_layers in known else max(known)]
    return replace(row, kv_token_layers=node.kv_token_layers)


def range_capacity(
    node: Node, profile: MachineProfile, start_layer: int, end_layer: int
) -> Capacity:
    """Capacity of a node that holds the layers ``[start_layer, end_layer)``.

    As :func:`node_capacity`, but exact where layers differ in size.

    Raises
    ------
    PlacementError
        If neither the node nor its type has a KV capacity for these layers.
    """
    if node.kv_token_layers is None:
        return profile.range_capacity(start_layer, end_layer)
    return node_capacity(node, profile, end_layer - start_layer)


def link_fits(
    placement: Placement,
    num_layers: int,
    source: str,
    target: str,
    front_ends: Collection[str] = (COORDINATOR,),
) -> bool:
    """Whether a request can continue from `source` at `target`.

    From a front end to a node with the first layer; from a node with the last layer to a front
    end; between nodes if `target` holds the next layer.
    """
    if source in front_ends:
        return target in placement.layers and placement.layers[target][0] == 0
    if source not in placement.layers:
        return False
    next_layer = placement.layers[source][1]
    if target in front_ends:
        return next_layer == num_layers
    if target not in placement.layers:
        return False
    start, end = placement.layers[target]
    return start <= next_layer < end


def placement_mistakes(
    placement: Placement, cluster: Cluster, llm: LLM, profiles: Mapping[str, MachineProfile]
) -> list[tuple[str, str]]:
    """Find all errors in a placement.

    Parameters
    ----------
    placement
        The placement.
    cluster
        The machines.
    llm
        The LLM.
    profiles
        Machine type -> profile for `llm`, for the types of the cluster.

    Returns
    -------
    list
        Places such as ``layers.t4-3`` and messages; empty if the placement is valid.
    """
    found = list(_range_mistakes(placement, cluster, llm, profiles))
    if not found:
        found.extend(_link_mistakes(placement, cluster, llm))
    if not found:
        found.extend(_cover_mistakes(placement, cluster, llm))
    return found


def _range_mistakes(
    placement: Placement, cluster: Cluster, llm: LLM, profiles: Mapping[str, MachineProfile]
) -> Iterator[tuple[str, str]]:
    nodes = {node.name: node for node in cluster}
    for name, (start, end) in placement.layers.items():
        where = f"layers.{name}"
        if name not in nodes:
            yield where, f"the cluster has no such node; {did_you_mean(name, list(nodes))}"
        elif not 0 <= start < end <= llm.num_layers:
            yield (
                where,
                f"[{start}, {end}] is no range of layers of {llm.name}; write [first layer, layer "
                f"after the last], between 0 and {llm.num_layers}",
            )
        else:
            message = _capacity_mistake(placement, nodes[name], profiles, start, end)
            if message is not None:
                yield where, message


def _capacity_mistake(
    placement: Placement,
    node: Node,
    profiles: Mapping[str, MachineProfile],
    start_layer: int,
    end_layer: int,
) -> str | None:
    profile, num_layers = profiles[node.machine_type], end_layer - start_layer
    if num_layers > profile.max_layers and not placement.allow_overcommitted_layers:
        return (
            f"{num_layers} layers of {profile.llm} exceed max_layers ({profile.max_layers}) of "
            f"machine type {node.machine_type}; to allow this, set allow_overcommitted_layers to "
            "true"
        )
    try:
        range_capacity(node, profile, start_layer, end_layer)
    except PlacementError as error:
        return f"{error}; to allow this, set kv_token_layers of the node"
    return None


def _link_mistakes(placement: Placement, cluster: Cluster, llm: LLM) -> Iterator[tuple[str, str]]:
    seen = set()
    front_ends = cluster.front_end_names
    for index, pair in enumerate(placement.links or ()):
        where = f"links[{index}]"
        source, target = map(cluster.own_name, pair)
        unplaced = [
            name
            for name in (source, target)
            if name not in front_ends and name not in placement.layers
        ]
        if unplaced:
            known = dict.fromkeys((COORDINATOR, *front_ends, *placement.layers))
            hint = did_you_mean(unplaced[0], list(known))
            yield where, f"'{unplaced[0]}' holds no layers; {hint}"
        elif (source, target) in seen:
            yield where, f"duplicate link from {source} to {target}"
        elif cluster.network.link(source, target) is None:
            yield where, f"the cluster has no link from {source} to {target}"
        elif not link_fits(placement, llm.num_layers, source, target, front_ends):
            yield where, _misfit(placement, llm, source, target, front_ends)
        seen.add((source, target))


def _misfit(
    placement: Placement, llm: LLM, source: str, target: str, front_ends: Collection[str]
) -> str:
    if source in front_ends and target in front_ends:
        return f"{source} and {target} are front ends; routes lead from them to nodes"
    if source in front_ends:
        return f"{target} starts with layer {placement.layers[target][0]}, not with layer 0"
    end = placement.layers[source][1]
    if target in front_ends:
        return f"{source} ends before layer {end}, not after the last of {llm.num_layers} layers"
    start, stop = placement.layers[target]
    return f"after {source} comes layer {end}, but {target} holds [{start}, {stop}]"


def _cover_mistakes(placement: Placement, cluster: Cluster, llm: LLM) -> Iterator[tuple[str, str]]:
    covered = set[int]()
    for start, end in placement.layers.values():
        covered.update(range(start, end))
    if absent := sorted(set(range(llm.num_layers)) - covered):
        yield "layers", f"no node holds layer {absent[0]} of {llm.name}"
    elif placement.links is not None:
        links = [(cluster.own_name(a), cluster.own_name(b)) for a, b in placement.links]
        for front_end in cluster.front_end_names:
            if not _has_route(placement, links, front_end):
                title = front_end_title(front_end)
                yield (
                    "links",
                    f"no route leads from {title} through all layers and back; leave out "
                    "placement.links, so that all links that fit are used, or plan with the "
                    "front ends of this scenario",
                )


def front_end_title(name: str) -> str:
    """A front end in a sentence, with its article."""
    return f"the {name}" if name == COORDINATOR else f"the front end {name}"


def _has_route(placement: Placement, links: Sequence[tuple[str, str]], front_end: str) -> bool:
    """Whether a route leads from a front end over nodes to itself; all links are valid."""
    targets: dict[str, list[str]] = {}
    for source, target in links:
        targets.setdefault(source, []).append(target)
    reached, waiting = set[str](), [front_end]
    while waiting:
        for target in targets.get(waiting.pop(), ()):
            if target not in reached:
                reached.add(target)
                if target in placement.layers:
                    waiting.append(target)
    return front_end in reached

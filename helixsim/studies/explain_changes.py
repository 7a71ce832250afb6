"""Changes of a scenario that an explanation tries: machines, memory, number formats, layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from helixsim.cluster import Cluster, Link, LinkList, Nic, Node, RuleNetwork
from helixsim.errors import HelixError
from helixsim.placement.placement import Placement, placement_mistakes
from helixsim.placement.topology import Topology
from helixsim.studies.explain_measures import Measures, StageUse, layers_text

if TYPE_CHECKING:
    from helixsim.profiles.machine import MachineProfile
    from helixsim.scenario.resolved import Scenario

MORE_KV = 1.1
"""A larger share of memory, as a factor of KV caches."""
_MOVED = (1, 2, 4)
"""Layers that are moved over a boundary between stages."""
_MOST_PLACES = 12
"""Places that are tried for one machine: the stage that binds, then the ones next to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of a scenario.

    Attributes
    ----------
    kind
        See :class:`helixsim.studies.explain_result.WhatIf`.
    text
        In words.
    scenario
        The scenario with the change.
    dollars_per_hour
        Price of the machine that it needs; None if it is not known, or none is needed.
    group
        Of changes of the same group, only the best one is shown: one machine in several places.
    """

    kind: str
    text: str
    scenario: Scenario
    dollars_per_hour: float | None = None
    group: str = ""


def machines(scenario: Scenario, stage: StageUse) -> Iterator[Change]:
    """One more machine of each type, in several places."""
    for name, machine_type in scenario.machine_types.items():
        profile = machine_type.profiles.get(scenario.llm.name)
        if profile is None:
            continue
        like = next((node for node in scenario.cluster if node.machine_type == name), None)
        nic_bytes_per_s = machine_type.nic_bytes_per_s
        node = Node(
            name=_free_name(scenario.cluster, f"more-{name.lower()}"),
            machine_type=name,
            nic=Nic(nic_bytes_per_s, nic_bytes_per_s) if like is None else like.nic,
            disk_bytes_per_s=machine_type.disk_bytes_per_s,
            kv_token_layers=None if like is None else like.kv_token_layers,
        )
        for beside, layers in _places(scenario, profile, stage):
            yield from _added(scenario, replace(node, region=beside.region), beside, layers)


def idle_machines(scenario: Scenario, stage: StageUse, idle: Collection[str]) -> Iterator[Change]:
    """The first idle machine of each type and region, put to work in several places."""
    seen = set()
    for node in scenario.cluster:
        if node.name not in idle or (node.machine_type, node.region) in seen:
            continue
        seen.add((node.machine_type, node.region))
        profile = scenario.profiles()[node.machine_type]
        left = _without_node(_placement_of(scenario), node.name)
        for beside, layers in _places(scenario, profile, stage):
            if beside.name == node.name:
                continue
            placed = _with_node(left, node.name, beside.name, layers)
            if _is_valid(scenario, placed):
                yield Change(
                    kind="idle",
                    text=f"{node.name} ({node.machine_type}), which is idle, holds "
                    f"{layers_text(*layers)}",
                    scenario=replace(scenario, placement=placed),
                    group=f"idle {node.machine_type} {node.region}",
                )


def small_shares(scenario: Scenario, used: Measures) -> Iterator[Change]:
    """Requests for machines with layers that are idle because their share of the flow is small."""
    scheduler = scenario.scheduler
    if scheduler.min_flow_share and any(node.is_placed and node.is_idle for node in used.nodes):
        yield Change(
            kind="routing",
            text="requests for machines with a small share of the flow, too "
            "(scheduler.min_flow_share=0)",
            scenario=replace(scenario, scheduler=replace(scheduler, min_flow_share=0.0)),
        )


def more_memory(scenario: Scenario, topology: Topology) -> Iterator[Change]:
    """Larger KV caches on all machines."""
    if scenario.engine.kv_tokens is not None:
        return  # what the engine reports is what there is
    room = {node.name: node.capacity.kv_token_layers for node in topology.nodes}
    nodes = tuple(
        replace(node, kv_token_layers=round(MORE_KV * room[node.name]))
        if node.name in room
        else node
        for node in scenario.cluster
    )
    yield Change(
        kind="memory",
        text=f"{MORE_KV - 1:.0%} more KV cache on every machine, by a larger share of the memory",
        scenario=replace(scenario, cluster=replace(scenario.cluster, nodes=nodes)),
    )


def number_formats(scenario: Scenario) -> Iterator[Change]:
    """Weights and KV caches in fp8, where times and memory follow from the architecture."""
    if scenario.architecture is None:
        return
    section = scenario.document.get("llm")
    own: dict[str, Any] = {"config": section} if isinstance(section, str) else {}
    if isinstance(section, Mapping):
        own = dict(section)
    for key, title in (("weights", "weights"), ("kv", "keys and values")):
        if own.get(key) == "fp8":
            continue
        try:
            changed = scenario.with_(llm={**own, key: "fp8"})
        except HelixError:
            continue  # not a scenario of a file, or the machines have no times for this format
        if _all_profiles_differ(scenario, changed):
            yield Change(kind="format", text=f"{title} in fp8", scenario=changed)


def moved_layers(scenario: Scenario, stage: StageUse) -> Iterator[Change]:
    """Layers moved from the stage that binds to the stages before and after it."""
    placement = _placement_of(scenario)
    for boundary, sign in ((stage.start_layer, 1), (stage.end_layer, -1)):
        if boundary in (0, scenario.llm.num_layers):
            continue
        for number in _MOVED:
            to = boundary + sign * number
            layers = {
                name: (to if start == boundary else start, to if end == boundary else end)
                for name, (start, end) in placement.layers.items()
            }
            placed = replace(placement, layers=layers)
            if _is_valid(scenario, placed):
                side = "before" if sign > 0 else "after"
                yield Change(
                    kind="layers",
                    text=f"{number} of {stage.layers} {'moves' if number == 1 else 'move'} to the "
                    f"nodes {side}: the boundary at {boundary} becomes {to}",
                    scenario=replace(scenario, placement=placed),
                    group="layers",
                )


# -- machines --------------------------------------------------------------------------------


def _places(
    scenario: Scenario, profile: MachineProfile, stage: StageUse
) -> list[tuple[Node, tuple[int, int]]]:
    """Where a machine may be put: a node that holds these layers, and the layers.

    The layers of each stage that fit it; of a stage that does not, its first and its last layers if
    requests may enter there; the whole LLM if it fits.
    """
    placement, cluster = _placement_of(scenario), scenario.cluster
    most = max((k for k in profile.capacities if k <= profile.max_layers), default=0)
    found: dict[tuple[str, tuple[int, int]], Node] = {}
    for node in cluster:
        if node.name not in placement.layers:
            continue
        start, end = placement.layers[node.name]
        ranges = [(start, end)] if end - start <= most else []
        if not ranges and most and placement.links is None:
            ranges = [(start, start + most), (end - most, end)]
        if placement.links is None and scenario.llm.num_layers <= most:
            ranges.append((0, scenario.llm.num_layers))
        for layers in ranges:
            found.setdefault((node.region, layers), node)
    middle = (stage.start_layer + stage.end_layer) / 2

    def distance(place: tuple[Node, tuple[int, int]]) -> float:
        start, end = place[1]
        return 0.0 if start <= middle < end else abs((start + end) / 2 - middle)

    places = [(node, layers) for (_, layers), node in found.items()]
    return sorted(places, key=distance)[:_MOST_PLACES]


def _added(
    scenario: Scenario, node: Node, beside: Node, layers: tuple[int, int]
) -> Iterator[Change]:
    """One more machine with the links of another one."""
    cluster = scenario.cluster
    grown = replace(
        cluster, nodes=(*cluster.nodes, node), network=_with_links(cluster, node, beside.name)
    )
    placed = _with_node(_placement_of(scenario), node.name, beside.name, layers)
    changed = replace(scenario, cluster=grown, placement=placed)
    if not _is_valid(changed, placed):
        return
    where = f", region {node.region}" if len({each.region for each in cluster}) > 1 else ""
    yield Change(
        kind="machine",
        text=f"one more {node.machine_type} with {layers_text(*layers)}{where}",
        scenario=changed,
        dollars_per_hour=scenario.dollars_per_hour.get(
            node.machine_type, scenario.machine_types[node.machine_type].dollars_per_hour
        ),
        group=f"machine {node.machine_type}",
    )


def _with_links(cluster: Cluster, node: Node, beside: str) -> Any:  # noqa: ANN401 - a `Network`
    """The network with one more machine: rules know its region, a list gets another's links."""
    network = cluster.network
    if isinstance(network, RuleNetwork):
        return replace(network, regions={**network.regions, node.name: node.region})
    if not isinstance(network, LinkList):
        return network
    links = dict(network.links)
    for (source, target), link in network.links.items():
        ends = (
            node.name if source == beside else source,
            node.name if target == beside else target,
        )
        if ends != (source, target):
            links[ends] = Link(*ends, link.bandwidth_bytes_per_s, link.latency_s)
    return LinkList(links)


def _with_node(placement: Placement, name: str, beside: str, layers: tuple[int, int]) -> Placement:
    """A placement with one more node; where it lists links, with the links of another one."""
    links = placement.links
    if links is not None:
        more = [
            (name if source == beside else source, name if target == beside else target)
            for source, target in links
            if beside in (source, target)
        ]
        links = (*links, *more)
    return replace(placement, layers={**placement.layers, name: layers}, links=links)


def _without_node(placement: Placement, name: str) -> Placement:
    """A placement without one of its nodes."""
    layers = {other: held for other, held in placement.layers.items() if other != name}
    links = placement.links
    if links is not None:
        links = tuple(pair for pair in links if name not in pair)
    return replace(placement, layers=layers, links=links)


# -- checks ----------------------------------------------------------------------------------


def _placement_of(scenario: Scenario) -> Placement:
    assert scenario.placement is not None
    return scenario.placement


def _is_valid(scenario: Scenario, placement: Placement) -> bool:
    mistakes = placement_mistakes(placement, scenario.cluster, scenario.llm, scenario.profiles())
    return not mistakes


def _all_profiles_differ(one: Scenario, other: Scenario) -> bool:
    """Whether times or memory of every machine type are others: files of fixed figures are not."""
    before, after = one.profiles(), other.profiles()
    return all(
        before[name].capacities != after[name].capacities
        or before[name].decode != after[name].decode
        for name in before
    )


def _free_name(cluster: Cluster, wanted: str) -> str:
    taken = {node.name for node in cluster}
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name

"""What a run used of its nodes, stages, links and network interfaces, as means over its window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helixsim.placement.topology import Topology

if TYPE_CHECKING:
    import pandas as pd

    from helixsim.metrics.result import RunResult
    from helixsim.profiles.machine import MachineProfile
    from helixsim.scenario.resolved import Scenario

SELDOM = 0.05
"""A node that computes less than this share of the time is idle."""
_MORE = 1.1
FULL = 0.9
"""A KV cache counts as full above this share of what admission lets requests use of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUse:
    """What a run used of a node.

    Attributes
    ----------
    start_layer, end_layer
        It holds the layers ``[start_layer, end_layer)``; 0 and 0 if it holds none.
    utilisation
        Share of the time in which it computed.
    batch
        Requests in a running batch, mean.
    growing_share
        Share of its work that grows with the tokens, of prompts and decodes of the workload's mean
        lengths in such batches. The rest, such as reading weights, larger batches would share.
    waiting
        Requests that waited for a batch, mean.
    kv_share
        Share of its KV cache that was in use or booked, mean.
    kv_full_share
        Share of the time in which its KV cache was full.
    """

    name: str
    machine_type: str
    region: str
    start_layer: int = 0
    end_layer: int = 0
    utilisation: float = 0.0
    batch: float = 0.0
    growing_share: float = 1.0
    waiting: float = 0.0
    kv_share: float = 0.0
    kv_full_share: float = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether it computes hardly ever, or holds nothing."""
        return self.utilisation < SELDOM

    @property
    def is_placed(self) -> bool:
        """Whether it holds layers."""
        return self.end_layer > self.start_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class StageUse:
    """What a run used of the nodes of one type and region that hold the same layers.

    Attributes
    ----------
    start_layer, end_layer
        The layers ``[start_layer, end_layer)``.
    machine_type
        Their type.
    nodes
        Names of the nodes.
    utilisation, growing_share
        Means over the nodes; see :class:`NodeUse`.
    kv_full_share
        Share of the time in which their KV caches let no further request in: all were full, or
        one of them where requests are sent by the fullest node (offline).
    """

    start_layer: int
    end_layer: int
    machine_type: str
    nodes: tuple[str, ...]
    utilisation: float
    growing_share: float
    kv_full_share: float

    @property
    def load(self) -> float:
        """Utilisation by work that grows with the tokens, 0 to 1: there is no way around 1."""
        return self.utilisation * self.growing_share

    @property
    def title(self) -> str:
        """The layers and the type in words."""
        return f"{self.layers} ({self.machine_type})"

    @property
    def layers(self) -> str:
        """The layers in words, such as ``layers 28-41``."""
        return layers_text(self.start_layer, self.end_layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUse:
    """What a run used of a link.

    Attributes
    ----------
    utilisation
        Share of the time in which it sent.
    backlog_s
        Time that it needed to send everything in its queue, mean over samples.
    bytes_per_s
        Bytes queued for sending.
    """

    source: str
    target: str
    utilisation: float
    backlog_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceUse:
    """What a run used of one direction of a network interface, of its bandwidth."""

    machine: str
    direction: str
    utilisation: float


@dataclass(frozen=True, slots=True)
class Measures:
    """What a run used.

    Attributes
    ----------
    nodes
        All nodes of the cluster, in its order.
    stages
        By first layer.
    links, interfaces
        The most used first.
    kv_limit
        Share of a KV cache that admission lets requests use.
    """

    nodes: tuple[NodeUse, ...]
    stages: tuple[StageUse, ...]
    links: tuple[LinkUse, ...]
    interfaces: tuple[InterfaceUse, ...]
    kv_limit: float

    def node(self, name: str) -> NodeUse:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)


def layers_text(start_layer: int, end_layer: int) -> str:
    """The layers ``[start_layer, end_layer)`` in words."""
    last = end_layer - 1
    return f"layer {last}" if last == start_layer else f"layers {start_layer}-{last}"


def measures(scenario: Scenario, topology: Topology, result: RunResult) -> Measures:
    """Read from the tables of a result what a run of a scenario used in its window."""
    limit = kv_limit(scenario)
    table = _in_window(result, result.nodes)
    booked = table["kv_used_token_layers"].combine(
        table["kv_expected_token_layers"].fillna(0.0), max
    )
    capacity = table["kv_capacity_token_layers"].clip(lower=1)
    table = table.assign(kv_share=booked / capacity)
    table = table.assign(is_full=table["kv_share"] >= FULL * limit)
    nodes = _nodes(scenario, topology, table)
    links = _links(result)
    return Measures(
        nodes=nodes,
        stages=tuple(_stages(scenario, nodes, table)),
        links=links,
        interfaces=_interfaces(topology, links),
        kv_limit=limit,
    )


def kv_limit(scenario: Scenario) -> float:
    """The share of a KV cache that admission lets requests use."""
    scheduler = scenario.scheduler
    mark = scheduler.kv.high_water_mark
    is_offline = scenario.workload.mode == "offline"
    return min(mark, scheduler.feed_high_water_mark) if is_offline else mark


def _in_window(result: RunResult, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of intervals within the window; all rows if there are none."""
    summary = result.summary
    ends = table["time_s"]
    inside = table[(ends > summary["window_start_s"]) & (ends <= summary["window_end_s"])]
    return inside if len(inside) else table


def _nodes(scenario: Scenario, topology: Topology, table: pd.DataFrame) -> tuple[NodeUse, ...]:
    columns = ["utilisation", "running", "waiting", "kv_share", "is_full"]
    means = {str(name): row for name, row in table.groupby("node")[columns].mean().iterrows()}
    busy = table[table["running"] > 0].groupby("node")["running"].mean().to_dict()
    placed = {node.name: node for node in topology.nodes}
    found = []
    for node in scenario.cluster:
        here, row = placed.get(node.name), means.get(node.name)
        use = NodeUse(name=node.name, machine_type=node.machine_type, region=node.region)
        if here is not None and row is not None:
            use = NodeUse(
                name=node.name,
                machine_type=node.machine_type,
                region=node.region,
                start_layer=here.start_layer,
                end_layer=here.end_layer,
                utilisation=min(1.0, float(row["utilisation"])),
                batch=float(busy.get(node.name, 0.0)),
                growing_share=_growing_share(
                    scenario, here.profile, max(1.0, float(busy.get(node.name, 0.0)))
                ),
                waiting=float(row["waiting"]),
                kv_share=float(row["kv_share"]),
                kv_full_share=float(row["is_full"]),
            )
        found.append(use)
    return tuple(found)


def _growing_share(scenario: Scenario, profile: MachineProfile, batch: float) -> float:
    """See :attr:`NodeUse.growing_share`; by how much longer 10 % more tokens take."""
    prompt, answer = scenario.workload.mean_prompt_tokens, scenario.workload.mean_output_tokens
    passes = answer / batch
    now_s = profile.prefill(prompt) + passes * profile.decode(batch)
    more_s = profile.prefill(_MORE * prompt) + passes * profile.decode(_MORE * batch)
    return min(1.0, max(0.0, (more_s / now_s - 1) / (_MORE - 1)))


def _stages(
    scenario: Scenario, nodes: tuple[NodeUse, ...], table: pd.DataFrame
) -> Iterator[StageUse]:
    alike: dict[tuple[int, int, str, str], list[NodeUse]] = {}
    for node in nodes:
        if node.is_placed:
            key = node.start_layer, node.end_layer, node.machine_type, node.region
            alike.setdefault(key, []).append(node)
    is_offline = scenario.workload.mode == "offline"
    for (start, end, machine_type, _), members in sorted(alike.items()):
        names = [node.name for node in members]
        each = table[table["node"].isin(names)].groupby("time_s")["is_full"]
        full = each.any() if is_offline else each.all()
        yield StageUse(
            start_layer=start,
            end_layer=end,
            machine_type=machine_type,
            nodes=tuple(names),
            utilisation=sum(node.utilisation for node in members) / len(members),
            growing_share=sum(node.growing_share for node in members) / len(members),
            kv_full_share=float(full.mean()),
        )


def _links(result: RunResult) -> tuple[LinkUse, ...]:
    table = _in_window(result, result.links)
    columns = ["utilisation", "backlog_s", "bytes_per_s"]
    means = table.groupby(["source", "target"], sort=False)[columns].mean()
    found = [
        LinkUse(
            source=str(source),
            target=str(target),
            utilisation=min(1.0, float(row["utilisation"])),
            backlog_s=float(row["backlog_s"]),
            bytes_per_s=float(row["bytes_per_s"]),
        )
        for (source, target), row in zip(means.index, means.to_dict("records"), strict=True)
    ]
    return tuple(sorted(found, key=lambda link: -link.utilisation))


def _interfaces(topology: Topology, links: tuple[LinkUse, ...]) -> tuple[InterfaceUse, ...]:
    out: dict[str, float] = {}
    into: dict[str, float] = {}
    for link in links:
        out[link.source] = out.get(link.source, 0.0) + link.bytes_per_s
        into[link.target] = into.get(link.target, 0.0) + link.bytes_per_s
    found = []
    for number in range(topology.num_machines):
        name, nic = topology.name(number), topology.nic(number)
        for direction, carried, most in (
            ("inbound", into, nic.inbound_bytes_per_s),
            ("outbound", out, nic.outbound_bytes_per_s),
        ):
            share = min(1.0, carried.get(name, 0.0) / most)
            found.append(InterfaceUse(machine=name, direction=direction, utilisation=share))
    return tuple(sorted(found, key=lambda each: -each.utilisation))

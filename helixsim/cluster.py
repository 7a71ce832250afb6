"""The machines and the network between them, as frozen values.

A cluster is a coordinator and named nodes. Every ordered pair of machines may have a link.
:class:`Network` returns the link of a pair, so that a cluster of a thousand nodes need not list
a million links. The coordinator is both the source and the sink of every route.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

COORDINATOR = "coordinator"
"""The name of the coordinator as an end of a link."""


@dataclass(frozen=True, slots=True)
class Nic:
    """The network interface of one machine, both directions, in bytes per second."""

    inbound_bytes_per_s: float
    outbound_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Node:
    """One machine that can hold layers.

    Attributes
    ----------
    name
        Unique in the cluster, not ``coordinator``.
    machine_type
        Name of the machine type, for example ``L4x2``.
    nic
        Its network interface.
    disk_bytes_per_s
        Bandwidth at which it reads weights when a run starts.
    region
        Name of its region.
    kv_token_layers
        Its KV capacity, if different from its machine type's.
    """

    name: str
    machine_type: str
    nic: Nic
    disk_bytes_per_s: float
    region: str = "default"
    kv_token_layers: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A one-way connection between two machines.

    Attributes
    ----------
    source, target
        Names of nodes, or ``coordinator``.
    bandwidth_bytes_per_s
        Its maximum bandwidth.
    latency_s
        Propagation time, paid once per message.
    """

    source: str
    target: str
    bandwidth_bytes_per_s: float
    latency_s: float


class Network(Protocol):
    """The links between ordered pairs of machines."""

    def link(self, source: str, target: str) -> Link | None:
        """The link from `source` to `target`, or None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class LinkList:
    """A network that is a plain list of links."""

    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)

    def link(self, source: str, target: str) -> Link | None:
        """The link from `source` to `target`, or None where there is none."""
        return self.links.get((source, target))


@dataclass(frozen=True, slots=True)
class Cluster:
    """A coordinator, nodes in a fixed order, and the network between them."""

    nodes: tuple[Node, ...]
    coordinator_nic: Nic
    network: Network
    coordinator_region: str = "default"
    _by_name: dict[str, Node] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {node.name: node for node in self.nodes})

    def __iter__(self) -> Iterator[Node]:
        """Iterate over the nodes, in their order."""
        return iter(self.nodes)

    def __len__(self) -> int:
        """Count the nodes."""
        return len(self.nodes)

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises
        ------
        KeyError
            If the cluster has no such node.
        """
        return self._by_name[name]

    def nic(self, name: str) -> Nic:
        """The network interface of a node or of the coordinator."""
        return self.coordinator_nic if name == COORDINATOR else self.node(name).nic

    def machine_mix(self) -> dict[str, int]:
        """Number of nodes of each machine type, types in order of appearance."""
        mix: dict[str, int] = {}
        for node in self.nodes:
            mix[node.machine_type] = mix.get(node.machine_type, 0) + 1
        return mix

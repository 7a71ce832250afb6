"""Nodes as rows of a picture: one each, or those that are alike together where there are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_SINGLE_ROWS = 80
"""With more nodes than this, those alike share a row."""

COORDINATOR_ROW = -1
"""Stands for the coordinator where a ribbon starts or ends."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A node that holds the layers ``[start_layer, end_layer)``, and what it does.

    Attributes
    ----------
    capacity_tokens_per_s, flow_tokens_per_s
        What it computes at most, and in the maximum flow.
    kv_tokens
        Tokens whose keys and values of all its layers fit its cache.
    bounds
        What of it is in the minimum cut: ``compute``, ``inbound``, ``outbound``.
    bounds_too
        Whether something of it is in another minimum cut.
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
class Row:
    """One or more nodes of the same type, region and layers."""

    machines: tuple[Machine, ...]

    @property
    def first(self) -> Machine:
        """One that speaks for all: they share type, region and layers."""
        return self.machines[0]

    @property
    def num_layers(self) -> int:
        """How many layers each of them holds."""
        return self.first.end_layer - self.first.start_layer

    @property
    def capacity_tokens_per_s(self) -> float:
        """What they compute at most, together."""
        return sum(machine.capacity_tokens_per_s for machine in self.machines)

    @property
    def flow_tokens_per_s(self) -> float:
        """What they compute in the maximum flow, together."""
        return sum(machine.flow_tokens_per_s for machine in self.machines)

    @property
    def used(self) -> float:
        """Share of the capacity in use, 0 to 1."""
        capacity = self.capacity_tokens_per_s
        return min(1.0, self.flow_tokens_per_s / capacity) if capacity > 0 else 0.0

    @property
    def bounds(self) -> frozenset[str]:
        """What of them is in the minimum cut."""
        return frozenset(role for machine in self.machines for role in machine.bounds)

    @property
    def bounds_too(self) -> bool:
        """Whether something of them is in another minimum cut."""
        return any(machine.bounds_too for machine in self.machines)


@dataclass(frozen=True, slots=True)
class Wire:
    """A link between two machines, or the coordinator, where a request enters `layer`."""

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
class Ribbon:
    """The links between two rows; a row may be :data:`COORDINATOR_ROW`."""

    source: int
    target: int
    wires: tuple[Wire, ...]

    @property
    def layer(self) -> int:
        """Where it is drawn: the layer at which requests go on."""
        return self.wires[0].layer

    @property
    def flow_tokens_per_s(self) -> float:
        """What all its links carry."""
        return sum(wire.flow_tokens_per_s for wire in self.wires)

    @property
    def crosses_regions(self) -> bool:
        """Whether its ends stand in different regions."""
        return self.wires[0].crosses_regions

    @property
    def bounds(self) -> bool:
        """Whether one of its links is in the minimum cut."""
        return any(wire.bounds for wire in self.wires)


def rows_of(machines: Sequence[Machine]) -> tuple[tuple[Row, ...], list[int]]:
    """Arrange machines in rows, by first layer, then last.

    Returns
    -------
    tuple
        The rows, and for every machine the number of its row.
    """
    together = len(machines) > MAX_SINGLE_ROWS
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, node in enumerate(machines):
        alone = -1 if together else index
        key = (node.start_layer, node.end_layer, node.region, node.machine_type, alone)
        groups.setdefault(key, []).append(index)

    def order(members: list[int]) -> tuple[int, int, int]:
        node = machines[members[0]]
        return node.start_layer, node.end_layer, members[0]

    rows, row_of = [], [0] * len(machines)
    for number, members in enumerate(sorted(groups.values(), key=order)):
        for index in members:
            row_of[index] = number
        rows.append(Row(tuple(machines[index] for index in members)))
    return tuple(rows), row_of


def merge_wires(wires: Sequence[Wire], row_of: Sequence[int]) -> tuple[Ribbon, ...]:
    """Put the links between the same two rows together, those with the least flow first."""
    groups: dict[tuple[int, int], list[Wire]] = {}
    for wire in wires:
        source, target = (
            end if end == COORDINATOR_ROW else row_of[end] for end in (wire.source, wire.target)
        )
        groups.setdefault((source, target), []).append(wire)
    ribbons = [Ribbon(*ends, tuple(found)) for ends, found in groups.items()]
    return tuple(sorted(ribbons, key=lambda r: (r.flow_tokens_per_s, r.source, r.target)))

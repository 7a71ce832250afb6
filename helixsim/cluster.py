"""The machines and the network between them, as frozen values.

A cluster is front ends and named nodes. Every ordered pair of machines may have a link.
:class:`Network` returns the link of a pair, so that a cluster of a thousand nodes need not list
a million links. A front end is both the source and the sink of the routes of its requests. The
first front end is the coordinator; most clusters have no other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COORDINATOR = "coordinator"
"""A name of the first front end as an end of a link, whatever its own name."""


@dataclass(frozen=True, slots=True)
class Nic:
    """The network interface of one machine, both directions, in bytes per second."""

    inbound_bytes_per_s: float
    outbound_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """One machine at which users' requests enter, and to which their tokens return.

    Attributes
    ----------
    nic
        Its network interface.
    region
        Name of its region.
    name
        Unique among front ends and nodes.
    share
        Share of the requests that enter here, 0 to 1; the shares of a cluster add up to 1.
    """

    nic: Nic
    region: str = "default"
    name: str = COORDINATOR
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Node:
    """One machine that can hold layers.

    Attributes
    ----------
    name
        Unique in the cluster, and the name of no front end.
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
        Names of nodes or front ends.
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
    """Nodes and front ends, each in a fixed order, and the network between them.

    The first front end is the coordinator.
    """

    nodes: tuple[Node, ...]
    front_ends: tuple[FrontEnd, ...]
    network: Network
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

    @property
    def coordinator_nic(self) -> Nic:
        """The network interface of the coordinator."""
        return self.front_ends[0].nic

    @property
    def front_end_names(self) -> tuple[str, ...]:
        """The names of the front ends."""
        return tuple(front_end.name for front_end in self.front_ends)

    def own_name(self, machine: str) -> str:
        """The name that a machine has in the network, given that or ``coordinator``."""
        return self.front_ends[0].name if machine == COORDINATOR else machine

    def nearest_front_end(self, region: str) -> int:
        """The number of the front end to which users of a region send their requests.

        It is the first in their region, else the one that a message from their region reaches
        first by the rules of the network; the coordinator where no rule says so.
        """
        for number, front_end in enumerate(self.front_ends):
            if front_end.region == region:
                return number
        if not isinstance(self.network, RuleNetwork):
            return 0
        delays = [
            self.network.region_latency_s(region, front_end.region) for front_end in self.front_ends
        ]
        return delays.index(min(delays))

    def with_coordinator_alone(self) -> Cluster:
        """The cluster with its first front end only, at which all requests enter."""
        return replace(self, front_ends=(replace(self.front_ends[0], share=1.0),))

    def machine_mix(self) -> dict[str, int]:
        """Number of nodes of each machine type, types in order of appearance."""
        mix: dict[str, int] = {}
        for node in self.nodes:
            mix[node.machine_type] = mix.get(node.machine_type, 0) + 1
        return mix


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantity with a uniform distribution from `mean` - `spread` to `mean` + `spread`."""

    mean: float
    spread: float = 0.0

    def at(self, share: float) -> float:
        """The quantile of a share (0 <= share < 1)."""
        return self.mean + self.spread * (2 * share - 1) if self.spread else self.mean


@dataclass(frozen=True, slots=True)
class LinkRule:
    """Bandwidth and latency of the links of a rule, equal in both directions."""

    bandwidth_bytes_per_s: Spread
    latency_s: Spread

    @property
    def is_fixed(self) -> bool:
        """Whether all links of the rule have the same values."""
        return self.bandwidth_bytes_per_s.spread == self.latency_s.spread == 0

    def link(self, source: str, target: str, seed: int) -> Link:
        """The link between two machines."""
        shares = (0.0, 0.0)
        if not self.is_fixed:
            # Seeding with text does not depend on PYTHONHASHSEED.
            rng = random.Random("/".join((str(seed), *sorted((source, target)))))
            shares = (rng.random(), rng.random())
        return Link(
            source,
            target,
            self.bandwidth_bytes_per_s.at(shares[0]),
            self.latency_s.at(shares[1]),
        )


@dataclass(frozen=True)
class RuleNetwork:
    """A network defined by rules; the most specific matching rule applies.

    Attributes
    ----------
    regions
        Region of every machine, front ends included.
    links
        Ordered pair of machines -> rule.
    between_regions
        Pair of regions, sorted -> rule. A region may be paired with itself.
    within, across
        Rules for two machines in one region and in different ones; None for no link.
    seed
        Random seed of rules with a spread.
    """

    regions: Mapping[str, str]
    links: Mapping[tuple[str, str], LinkRule] = field(default_factory=dict)
    between_regions: Mapping[tuple[str, str], LinkRule] = field(default_factory=dict)
    within: LinkRule | None = None
    across: LinkRule | None = None
    seed: int = 0
    _links: dict[tuple[str, str], Link] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def link(self, source: str, target: str) -> Link | None:
        """The link from `source` to `target`, or None where there is none."""
        found = self._links.get((source, target))
        if found is None and (rule := self._rule(source, target)) is not None:
            found = self._links[source, target] = rule.link(source, target, self.seed)
        return found

    def bandwidths(self, names: Sequence[str]) -> npt.NDArray[np.float64]:
        """Bytes per second of the links between some machines, from row to column; 0 for none.

        The links are not cached.
        """
        return self._table(
            names,
            lambda rule: rule.bandwidth_bytes_per_s.mean,
            lambda link: link.bandwidth_bytes_per_s,
        )

    def latencies_s(self, names: Sequence[str]) -> npt.NDArray[np.float64]:
        """Seconds that the links between some machines take, as :meth:`bandwidths`."""
        return self._table(names, lambda rule: rule.latency_s.mean, lambda link: link.latency_s)

    def _table(
        self,
        names: Sequence[str],
        of_fixed: Callable[[LinkRule], float],
        of_link: Callable[[Link], float],
    ) -> npt.NDArray[np.float64]:
        import numpy as np

        found = np.zeros((len(names), len(names)))
        members: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            if name in self.regions:
                members.setdefault(self.regions[name], []).append(index)
        for here, there in product(members, members):
            rule = self.region_rule(here, there)
            if rule is None:
                continue
            if rule.is_fixed:
                found[np.ix_(members[here], members[there])] = of_fixed(rule)
            elif here <= there:
                for a, b in product(members[here], members[there]):
                    link = rule.link(names[a], names[b], self.seed)
                    found[a, b] = found[b, a] = of_link(link)
        np.fill_diagonal(found, 0.0)
        number = {name: index for index, name in enumerate(names)}
        for (source, target), rule in self.links.items():
            if source in number and target in number and source != target:
                link = rule.link(source, target, self.seed)
                found[number[source], number[target]] = of_link(link)
        return found

    def region_latency_s(self, here: str, there: str) -> float:
        """Mean latency of the links from one region to another; infinite where there are none."""
        rule = self.region_rule(here, there)
        return inf if rule is None else rule.latency_s.mean

    def region_rule(self, here: str, there: str) -> LinkRule | None:
        """The rule for machines in two regions, where no link of theirs has its own."""
        if (rule := self.between_regions.get((min(here, there), max(here, there)))) is not None:
            return rule
        return self.within if here == there else self.across

    def _rule(self, source: str, target: str) -> LinkRule | None:
        here, there = self.regions.get(source), self.regions.get(target)
        if source == target or here is None or there is None:
            return None
        if (rule := self.links.get((source, target))) is not None:
            return rule
        return self.region_rule(here, there)

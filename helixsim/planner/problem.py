"""The planning problem: throughputs of nodes and capacities of links, in tokens per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations

import numpy as np
import numpy.typing as npt

from helixsim.cluster import Cluster, RuleNetwork
from helixsim.placement.flow import Flow, max_flow
from helixsim.placement.placement import Placement
from helixsim.placement.topology import Topology, build_topology
from helixsim.planner.constraints import FREE, Constraints
from helixsim.planner.feasibility import check_possible
from helixsim.planner.front_end_links import FrontEndLinks, front_end_links
from helixsim.profiles.machine import LLM, MachineProfile, MachineType
from helixsim.profiles.throughput import ThroughputTable, estimate_throughput
from helixsim.scenario.resolved import Scenario

Ranges = Mapping[int, tuple[int, int]]
"""Number of a node -> the layers ``[start, end)`` that it holds; unused nodes are missing."""


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes of one machine type with one KV capacity.

    Attributes
    ----------
    machine_type
        Name of the type.
    kv_token_layers
        KV capacity of these nodes in tokens x layers; None for that of their type.
    max_layers
        Most layers that such a node may hold; at most the LLM's layers.
    tokens_per_s
        Throughput with k layers, for k = 0 (unused, 0) to `max_layers`.
    count
        Number of such nodes.
    """

    machine_type: str
    kv_token_layers: int | None
    max_layers: int
    tokens_per_s: tuple[float, ...]
    count: int


@dataclass(frozen=True, eq=False)
class PlanningProblem:
    """A cluster and an LLM as numbers. Nodes are numbered 0 to n - 1 in the cluster's order.

    The coordinator has the number n. Several front ends have it together, as one machine with the
    links and the network interfaces of all: no placement carries more than this machine would let
    it. What matters of each by itself is in :attr:`front_end_links`.

    Attributes
    ----------
    llm, cluster, machine_types, throughput
        The sources of the numbers.
    kinds
        The kinds of nodes, in order of appearance.
    kind_of
        For every node, the number of its kind.
    link_tokens_per_s
        Shape (n + 1, n + 1): capacity of the link from the row's to the column's machine; 0 where
        there is no link or it was pruned.
    inbound_tokens_per_s, outbound_tokens_per_s
        Shape (n,): capacity of a node's network interface from and to other nodes.
    token_inbound_tokens_per_s, token_outbound_tokens_per_s
        Shape (n + 1,): capacity of a machine's network interface where only token ids pass, from
        and to the coordinator; the last entry is the coordinator's own interface.
    partial_inference
        Whether a request may enter a node at any of its layers.
    keep_links
        Number of links from each node to other nodes that were kept; None for all.
    constraints
        What placements must keep to; see :func:`helixsim.planner.constraints.violations`.
    """

    llm: LLM
    cluster: Cluster
    machine_types: Mapping[str, MachineType]
    throughput: ThroughputTable
    kinds: tuple[NodeKind, ...]
    kind_of: tuple[int, ...]
    link_tokens_per_s: npt.NDArray[np.float64]
    inbound_tokens_per_s: npt.NDArray[np.float64]
    outbound_tokens_per_s: npt.NDArray[np.float64]
    token_inbound_tokens_per_s: npt.NDArray[np.float64]
    token_outbound_tokens_per_s: npt.NDArray[np.float64]
    partial_inference: bool = False
    keep_links: int | None = None
    constraints: Constraints = FREE

    @cached_property
    def front_end_links(self) -> FrontEndLinks:
        """The links of each front end by itself."""
        if len(self.cluster.front_ends) > 1:
            return front_end_links(self.cluster, self.llm)
        return FrontEndLinks(
            out=self.link_tokens_per_s[-1:, :-1],
            into=self.link_tokens_per_s[:-1, -1:].T,
            outbound=self.token_outbound_tokens_per_s[-1:],
            inbound=self.token_inbound_tokens_per_s[-1:],
        )

    @property
    def num_layers(self) -> int:
        """Number of layers of the LLM."""
        return self.llm.num_layers

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.kind_of)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return tuple(node.name for node in self.cluster)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Name of a node -> its number."""
        return {name: index for index, name in enumerate(self.names)}

    def kind(self, node: int) -> NodeKind:
        """The kind of a node."""
        return self.kinds[self.kind_of[node]]

    def max_layers(self, node: int) -> int:
        """The most layers that a node may hold."""
        return self.kind(node).max_layers

    def tokens_per_s(self, node: int, num_layers: int) -> float:
        """Throughput in tokens/s of a node that holds `num_layers` layers."""
        return self.kind(node).tokens_per_s[num_layers]

    @cached_property
    def links_never_bind(self) -> bool:
        """Whether links and network interfaces carry whatever the nodes compute.

        Then nodes differ only by their kind. Every link carries the highest throughput of any
        node, and so does every interface; the interface of each front end carries the sum of the
        highest throughputs of all nodes.
        """
        most = max(max(kind.tokens_per_s) for kind in self.kinds)
        links = self.link_tokens_per_s.copy()
        np.fill_diagonal(links, np.inf)
        return bool(
            links.min() >= most
            and min(self.inbound_tokens_per_s.min(), self.outbound_tokens_per_s.min()) >= most
            and self.front_end_links.never_bind(
                most, sum(kind.count * max(kind.tokens_per_s) for kind in self.kinds)
            )
        )

    def restricted(self, nodes: Sequence[int]) -> PlanningProblem:
        """The same problem with only some of the nodes, renumbered in the given order.

        Constraints on other nodes are gone.
        """
        used = list(dict.fromkeys(self.kind_of[node] for node in nodes))
        kind_of = tuple(used.index(self.kind_of[node]) for node in nodes)
        rows = [*nodes, len(self)]
        machines = tuple(self.cluster)
        return replace(
            self,
            cluster=replace(
                self.cluster,
                nodes=tuple(machines[node] for node in nodes),
                front_ends=self.front_end_links.joined_to(nodes, self.cluster.front_ends),
            ),
            kinds=tuple(
                replace(self.kinds[kind], count=kind_of.count(number))
                for number, kind in enumerate(used)
            ),
            kind_of=kind_of,
            link_tokens_per_s=self.link_tokens_per_s[np.ix_(rows, rows)],
            inbound_tokens_per_s=self.inbound_tokens_per_s[list(nodes)],
            outbound_tokens_per_s=self.outbound_tokens_per_s[list(nodes)],
            token_inbound_tokens_per_s=self.token_inbound_tokens_per_s[rows],
            token_outbound_tokens_per_s=self.token_outbound_tokens_per_s[rows],
            constraints=self.constraints.restricted(nodes),
        )

    # -- placements --------------------------------------------------------------------------

    def placement(self, ranges: Ranges) -> Placement:
        """Turn ranges into a placement; its links are listed unless they are all that fit."""
        names = self.names
        layers = {names[node]: ranges[node] for node in sorted(ranges)}
        all_that_fit = self.keep_links is None and not self.constraints.same_region
        if self.partial_inference and all_that_fit:
            return Placement(layers)
        named = [*names, *self.cluster.front_end_names]
        links = self.front_end_pairs(ranges)
        return Placement(layers, tuple((named[a], named[b]) for a, b in links))

    def front_end_pairs(self, ranges: Ranges) -> list[tuple[int, int]]:
        """As :meth:`link_pairs`, with front ends numbered n, n + 1, and so on."""
        pairs, home = self.link_pairs(ranges), len(self)
        if len(self.cluster.front_ends) == 1:
            return pairs
        joins = self.front_end_links
        return joins.pairs(pairs, home)

    def link_pairs(self, ranges: Ranges) -> list[tuple[int, int]]:
        """(source, target) of every link that a placement uses.

        They are ordered machine by machine; the order decides between equal maximum flows.
        """
        coordinator = len(self)
        capacity = self.link_tokens_per_s
        starts: dict[int, list[int]] = {}
        for node in sorted(ranges):
            starts.setdefault(ranges[node][0], []).append(node)
        pairs = [
            (coordinator, node) for node in starts.get(0, ()) if capacity[coordinator, node] > 0
        ]
        for node in sorted(ranges):
            end = ranges[node][1]
            if self.partial_inference:
                after = [
                    n
                    for n in sorted(ranges)
                    if layers_connect(ranges[node], ranges[n], partial_inference=True)
                ]
            else:
                after = starts.get(end, [])
            pairs += [(node, other) for other in after if capacity[node, other] > 0]
            if end == self.num_layers and capacity[node, coordinator] > 0:
                pairs.append((node, coordinator))
        return pairs

    def ranges(self, placement: Placement) -> dict[int, tuple[int, int]]:
        """The ranges of a placement of this cluster."""
        return {self.numbers[name]: layers for name, layers in placement.layers.items()}

    def usable_nodes(self) -> list[int]:
        """The nodes that may hold layers."""
        left_out = self.constraints.left_out
        return [node for node in range(len(self)) if node not in left_out]

    def topology(self, placement: Placement) -> Topology:
        """The topology of a placement on this cluster.

        Raises
        ------
        NoRouteError, PlacementError
            As :func:`~helixsim.placement.topology.build_topology`.
        """
        return build_topology(self.llm, self.cluster, placement, self.machine_types)

    def flow(self, placement: Placement) -> Flow:
        """The maximum flow of a placement over each link; raises as :meth:`topology`."""
        return max_flow(self.topology(placement), self.throughput)


def layers_connect(
    source: tuple[int, int], target: tuple[int, int], *, partial_inference: bool
) -> bool:
    """Whether a request may go from a node with layers `source` to one with layers `target`.

    With partial inference it may enter the target at any of its layers.
    """
    if partial_inference:
        return target[0] <= source[1] < target[1]
    return source[1] == target[0]


def planning_problem(
    scenario: Scenario,
    *,
    partial_inference: bool = False,
    keep_links: int | None = None,
    constraints: Constraints = FREE,
) -> PlanningProblem:
    """Build the planning problem of a scenario.

    Parameters
    ----------
    scenario
        Gives the LLM, the cluster and the workload; its placement is not used.
    partial_inference
        Whether a request may enter a node at any of its layers.
    keep_links
        Number of links from each node to other nodes that are kept, the fastest ones; None for
        all. Links with the coordinator are always kept.
    constraints
        What placements must keep to.

    Raises
    ------
    ScenarioError
        If all machines together cannot hold the LLM, or too few of them are connected.
    """
    cluster, llm = scenario.cluster, scenario.llm
    profiles = scenario.profiles()
    throughput = estimate_throughput(
        llm,
        profiles,
        cluster.machine_mix(),
        mean_prompt_tokens=scenario.workload.mean_prompt_tokens,
        mean_output_tokens=scenario.workload.mean_output_tokens,
    )
    kinds, kind_of = _kinds(cluster, llm, profiles, throughput)
    between = llm.token_bytes + llm.activation_bytes_per_token
    inbound = np.array([*(n.nic.inbound_bytes_per_s for n in cluster), 0.0])
    outbound = np.array([*(n.nic.outbound_bytes_per_s for n in cluster), 0.0])
    inbound[-1] = sum(front_end.nic.inbound_bytes_per_s for front_end in cluster.front_ends)
    outbound[-1] = sum(front_end.nic.outbound_bytes_per_s for front_end in cluster.front_ends)
    problem = PlanningProblem(
        llm=llm,
        cluster=cluster,
        machine_types=scenario.machine_types,
        throughput=throughput,
        kinds=kinds,
        kind_of=kind_of,
        link_tokens_per_s=_link_capacities(
            cluster, llm, keep_links, same_region=constraints.same_region
        ),
        inbound_tokens_per_s=inbound[:-1] / between,
        outbound_tokens_per_s=outbound[:-1] / between,
        token_inbound_tokens_per_s=inbound / llm.token_bytes,
        token_outbound_tokens_per_s=outbound / llm.token_bytes,
        partial_inference=partial_inference,
        keep_links=keep_links,
        constraints=constraints,
    )
    check_possible(problem)
    return problem


def _kinds(
    cluster: Cluster, llm: LLM, profiles: Mapping[str, MachineProfile], throughput: ThroughputTable
) -> tuple[tuple[NodeKind, ...], tuple[int, ...]]:
    keys = [(node.machine_type, node.kv_token_layers) for node in cluster]
    unique = list(dict.fromkeys(keys))
    kinds = []
    for machine_type, kv in unique:
        most = min(profiles[machine_type].max_layers, llm.num_layers)
        rates = (throughput.tokens_per_s(machine_type, k, kv) for k in range(1, most + 1))
        kinds.append(
            NodeKind(machine_type, kv, most, (0.0, *rates), keys.count((machine_type, kv)))
        )
    number = {key: index for index, key in enumerate(unique)}
    return tuple(kinds), tuple(number[key] for key in keys)


def _link_capacities(
    cluster: Cluster, llm: LLM, keep_links: int | None, *, same_region: bool
) -> npt.NDArray[np.float64]:
    coordinator = len(cluster)
    capacity = _bandwidths(cluster)
    if len(capacity) > coordinator + 1:
        each, capacity = capacity, capacity[: coordinator + 1, : coordinator + 1].copy()
        capacity[coordinator, :coordinator] = each[coordinator:, :coordinator].sum(axis=0)
        capacity[:coordinator, coordinator] = each[:coordinator, coordinator:].sum(axis=1)
    if same_region:
        region = np.array([node.region for node in cluster])
        capacity[:coordinator, :coordinator][region[:, None] != region[None, :]] = 0.0
    if keep_links is not None:
        _prune(capacity, keep_links)
    capacity[:coordinator, :coordinator] /= llm.token_bytes + llm.activation_bytes_per_token
    capacity[coordinator] /= llm.token_bytes
    capacity[:coordinator, coordinator] /= llm.token_bytes
    return capacity


def _bandwidths(cluster: Cluster) -> npt.NDArray[np.float64]:
    """Bytes per second from each machine to each other, front ends last; 0 for no link."""
    names = [*(node.name for node in cluster), *cluster.front_end_names]
    if isinstance(cluster.network, RuleNetwork):
        return cluster.network.bandwidths(names)
    capacity = np.zeros((len(names), len(names)))
    for a, b in permutations(range(len(names)), 2):
        if (link := cluster.network.link(names[a], names[b])) is not None:
            capacity[a, b] = link.bandwidth_bytes_per_s
    return capacity


def _prune(capacity: npt.NDArray[np.float64], keep: int) -> None:
    """Set all but the fastest links out of each node to zero.

    Of equally fast links, the links to the next nodes in the cluster's cyclic order are kept, so
    that no node loses all of its incoming links.
    """
    coordinator = len(capacity) - 1
    for node in range(coordinator):
        order = sorted(
            (other for other in range(coordinator) if other != node),
            key=lambda other: (-capacity[node, other], (other - node) % coordinator),
        )
        capacity[node, order[keep:]] = 0.0

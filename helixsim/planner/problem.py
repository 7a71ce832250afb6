"""The numbers that a planner works on: what each node and link carries, in tokens per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations

import numpy as np
import numpy.typing as npt

from helixsim.cluster import COORDINATOR, Cluster
from helixsim.errors import PlacementError, ScenarioError
from helixsim.network import RuleNetwork
from helixsim.placement.flow import Flow, max_flow
from helixsim.placement.placement import Placement
from helixsim.placement.topology import Topology, build_topology
from helixsim.profiles.machine import LLM, MachineProfile, MachineType
from helixsim.profiles.throughput import ThroughputTable, estimate_throughput
from helixsim.scenario.resolved import Scenario

Ranges = Mapping[int, tuple[int, int]]
"""Number of a node -> the layers ``[start, end)`` that it holds; unused nodes are left out."""


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes that are alike for a planner: of one machine type, with one KV capacity.

    Attributes
    ----------
    machine_type
        Name of the type.
    kv_token_layers
        KV capacity of these nodes, if it is not that of their type.
    max_layers
        The most layers such a node may hold; no more than the LLM has.
    tokens_per_s
        Throughput with k layers, for k = 0 (where it means nothing and is 0) to `max_layers`.
    count
        How many there are.
    """

    machine_type: str
    kv_token_layers: int | None
    max_layers: int
    tokens_per_s: tuple[float, ...]
    count: int


@dataclass(frozen=True, eq=False)
class PlanningProblem:
    """A cluster and an LLM as a planner sees them. Nodes are numbered in the cluster's order.

    Attributes
    ----------
    llm, cluster, machine_types, throughput
        What it was made of.
    kinds
        The different kinds of nodes, in order of appearance.
    kind_of
        For every node, the number of its kind.
    link_tokens_per_s
        Shape (n + 1, n + 1), from row to column, the coordinator last: tokens per second that a
        link carries; 0 where there is none or where it was pruned.
    inbound_tokens_per_s, outbound_tokens_per_s
        Shape (n,): what a node's network interface carries from and to other nodes.
    token_inbound_tokens_per_s, token_outbound_tokens_per_s
        Shape (n + 1,): the same where only token ids pass, from and to the coordinator; the
        last is the coordinator's own.
    partial_inference
        Whether a request may enter a node's layers in their midst.
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

    @property
    def num_layers(self) -> int:
        """How many layers the LLM has."""
        return self.llm.num_layers

    def __len__(self) -> int:
        """Count the nodes."""
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
        """Throughput of a node that holds `num_layers`."""
        return self.kind(node).tokens_per_s[num_layers]

    @cached_property
    def links_never_bind(self) -> bool:
        """Whether every pair of machines is joined by a link as fast as any node computes.

        Then what matters of a node is only its kind. A link is shared by nobody, but a network
        interface carries all flow of its node, and the coordinator's all flow there is.
        """
        most = max(max(kind.tokens_per_s) for kind in self.kinds)
        links = self.link_tokens_per_s.copy()
        np.fill_diagonal(links, np.inf)
        return bool(
            links.min() >= most
            and min(self.inbound_tokens_per_s.min(), self.outbound_tokens_per_s.min()) >= most
            and min(self.token_inbound_tokens_per_s[-1], self.token_outbound_tokens_per_s[-1])
            >= sum(kind.count * max(kind.tokens_per_s) for kind in self.kinds)
        )

    def restricted(self, nodes: Sequence[int]) -> PlanningProblem:
        """The same problem with some of the nodes only, which are numbered anew in that order."""
        used = list(dict.fromkeys(self.kind_of[node] for node in nodes))
        kind_of = tuple(used.index(self.kind_of[node]) for node in nodes)
        rows = [*nodes, len(self)]
        machines = tuple(self.cluster)
        return replace(
            self,
            cluster=replace(self.cluster, nodes=tuple(machines[node] for node in nodes)),
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
        )

    # -- placements --------------------------------------------------------------------------

    def fits(self, source: tuple[int, int], target: tuple[int, int]) -> bool:
        """Whether a request that leaves the layers `source` may go on in the layers `target`."""
        if self.partial_inference:
            return target[0] <= source[1] < target[1]
        return source[1] == target[0]

    def placement(self, ranges: Ranges) -> Placement:
        """Turn ranges into a placement, with its links where they are not simply all that fit."""
        names = self.names
        layers = {names[node]: ranges[node] for node in sorted(ranges)}
        if self.partial_inference and self.keep_links is None:
            return Placement(layers)
        links = self.link_pairs(ranges)
        named = [*names, COORDINATOR]
        return Placement(layers, tuple((named[a], named[b]) for a, b in links))

    def link_pairs(self, ranges: Ranges) -> list[tuple[int, int]]:
        """The pairs of machines that a placement joins, the coordinator being number n.

        Machine by machine: the order decides between equal maximum flows.
        """
        home = len(self)
        capacity = self.link_tokens_per_s
        starts: dict[int, list[int]] = {}
        for node in sorted(ranges):
            starts.setdefault(ranges[node][0], []).append(node)
        pairs = [(home, node) for node in starts.get(0, ()) if capacity[home, node] > 0]
        for node in sorted(ranges):
            end = ranges[node][1]
            if self.partial_inference:
                after = [n for n in sorted(ranges) if self.fits(ranges[node], ranges[n])]
            else:
                after = starts.get(end, [])
            pairs += [(node, other) for other in after if capacity[node, other] > 0]
            if end == self.num_layers and capacity[node, home] > 0:
                pairs.append((node, home))
        return pairs

    def ranges(self, placement: Placement) -> dict[int, tuple[int, int]]:
        """The ranges of a placement of this cluster."""
        return {self.numbers[name]: layers for name, layers in placement.layers.items()}

    def topology(self, placement: Placement) -> Topology:
        """Lay a placement over the cluster.

        Raises
        ------
        NoRouteError, PlacementError
            As :func:`~helixsim.placement.topology.build_topology`.
        """
        return build_topology(self.llm, self.cluster, placement, self.machine_types)

    def flow(self, placement: Placement) -> Flow:
        """The maximum flow of a placement; errors as :meth:`topology`."""
        return max_flow(self.topology(placement), self.throughput)


def planning_problem(
    scenario: Scenario, *, partial_inference: bool = False, keep_links: int | None = None
) -> PlanningProblem:
    """Take from a scenario what a planner needs.

    Parameters
    ----------
    scenario
        Its LLM, cluster and workload count; a placement that it has does not.
    partial_inference
        Whether a request may enter a node's layers in their midst.
    keep_links
        Keep only so many links from each node to others, the fastest; None keeps all. Links
        with the coordinator stay.

    Raises
    ------
    ScenarioError
        If all machines together cannot hold the LLM, or the coordinator has no links.
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
    inbound[-1] = cluster.coordinator_nic.inbound_bytes_per_s
    outbound[-1] = cluster.coordinator_nic.outbound_bytes_per_s
    problem = PlanningProblem(
        llm=llm,
        cluster=cluster,
        machine_types=scenario.machine_types,
        throughput=throughput,
        kinds=kinds,
        kind_of=kind_of,
        link_tokens_per_s=_link_capacities(cluster, llm, keep_links),
        inbound_tokens_per_s=inbound[:-1] / between,
        outbound_tokens_per_s=outbound[:-1] / between,
        token_inbound_tokens_per_s=inbound / llm.token_bytes,
        token_outbound_tokens_per_s=outbound / llm.token_bytes,
        partial_inference=partial_inference,
        keep_links=keep_links,
    )
    _check_possible(problem)
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


def _link_capacities(cluster: Cluster, llm: LLM, keep_links: int | None) -> npt.NDArray[np.float64]:
    names = [*(node.name for node in cluster), COORDINATOR]
    home = len(cluster)
    if isinstance(cluster.network, RuleNetwork):
        capacity = cluster.network.bandwidths(names)
    else:
        capacity = np.zeros((home + 1, home + 1))
        for a, b in permutations(range(home + 1), 2):
            if (link := cluster.network.link(names[a], names[b])) is not None:
                capacity[a, b] = link.bandwidth_bytes_per_s
    if keep_links is not None:
        _prune(capacity, keep_links)
    capacity[:home, :home] /= llm.token_bytes + llm.activation_bytes_per_token
    capacity[home] /= llm.token_bytes
    capacity[:home, home] /= llm.token_bytes
    return capacity


def _prune(capacity: npt.NDArray[np.float64], keep: int) -> None:
    """Zero all but the fastest links out of each node.

    Between equally fast links, those to the nodes that come next in the cluster's order (around
    its end) stay, so that no node loses all links into it.
    """
    home = len(capacity) - 1
    for node in range(home):
        order = sorted(
            (other for other in range(home) if other != node),
            key=lambda other: (-capacity[node, other], (other - node) % home),
        )
        capacity[node, order[keep:]] = 0.0


def _check_possible(problem: PlanningProblem) -> None:
    llm, home = problem.llm, len(problem)
    room = sum(kind.count * kind.max_layers for kind in problem.kinds)
    if room < llm.num_layers:
        held = ", ".join(
            f"{kind.count} x {kind.machine_type} up to {kind.max_layers}" for kind in problem.kinds
        )
        raise ScenarioError(
            f"this cluster cannot hold {llm.name}: its machines hold {room} of "
            f"{llm.num_layers} layers at most, {llm.num_layers - room} are missing ({held})",
            where="cluster",
        )
    links = problem.link_tokens_per_s
    if not links[home, :home].any() or not links[:home, home].any():
        raise ScenarioError(
            "no link leads from the coordinator to a node, or none leads back; add links",
            where="cluster.network",
        )
    _check_connected(problem)


def _check_connected(problem: PlanningProblem) -> None:
    """See that the nodes that can be on a route together can hold the LLM."""
    home = len(problem)
    reachable = _closure(problem.link_tokens_per_s, home)
    returning = _closure(problem.link_tokens_per_s.T, home)
    useful = [node for node in range(home) if node in reachable and node in returning]
    room = sum(problem.max_layers(node) for node in useful)
    if room < problem.num_layers:
        apart = [problem.names[node] for node in range(home) if node not in useful]
        shown = ", ".join(apart[:8]) + (", ..." if len(apart) > 8 else "")
        raise ScenarioError(
            f"the cluster falls apart: no requests can pass through {shown} on a way from the "
            f"coordinator and back, and the other nodes hold only {room} of "
            f"{problem.num_layers} layers; add links to them",
            where="cluster.network",
        )


def check_stages(problem: PlanningProblem, max_stages: int | None) -> None:
    """See that so few nodes can hold the LLM at all.

    Raises
    ------
    PlacementError
        If even those with the most room cannot.
    """
    if max_stages is None:
        return
    sizes = sorted(map(problem.max_layers, range(len(problem))), reverse=True)
    room = sum(sizes[:max_stages])
    if room < problem.num_layers:
        raise PlacementError(
            f"no placement lets a request pass on a route of {max_stages} stages or less: "
            f"so many nodes hold {room} of {problem.num_layers} layers of {problem.llm.name} at "
            f"most, {problem.num_layers - room} are missing"
        )


def _closure(links: npt.NDArray[np.float64], start: int) -> set[int]:
    reached: set[int] = set()
    waiting: Sequence[int] = [start]
    while waiting:
        found = np.flatnonzero((links[list(waiting)] > 0).any(axis=0))
        waiting = [int(node) for node in found if int(node) not in reached]
        reached.update(waiting)
    return reached

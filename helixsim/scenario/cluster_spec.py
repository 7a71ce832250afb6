"""The keys of a cluster file or of the cluster section of a scenario, and their conversion."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from helixsim.cluster import COORDINATOR, Cluster, LinkRule, Node, RuleNetwork, Spread
from helixsim.profiles.machine import MachineType
from helixsim.profiles.spec import Count, Name
from helixsim.scenario.front_end_spec import (
    DEFAULT_REGION,
    RESERVED_NAMES,
    Bandwidth,
    CoordinatorEntry,
    NicEntry,
    front_end_mistakes,
    shape,
    to_front_ends,
    to_nic,
)
from helixsim.yaml_files import (
    BytesPerSecond,
    FileModel,
    Seconds,
    did_you_mean,
    located_error,
)

MAX_NODES = 100_000

_NUMBER = "{i}"

NamePattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9{][A-Za-z0-9._{}-]{0,63}$")]
"""A name, or a pattern of names with ``{i}`` where the number goes."""


# -- quantities ------------------------------------------------------------------------------


class BandwidthSpreadSpec(FileModel):
    """Bandwidths with a uniform distribution from mean - spread to mean + spread."""

    mean: Bandwidth
    spread: BytesPerSecond

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.spread >= self.mean:
            raise located_error("spread", "must be below the mean, or links may carry nothing")
        return self

    def to_spread(self) -> Spread:
        """Turn it into a value."""
        return Spread(self.mean, self.spread)


class LatencySpreadSpec(FileModel):
    """Latencies with a uniform distribution from mean - spread to mean + spread."""

    mean: Seconds
    spread: Seconds

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.spread > self.mean:
            raise located_error("spread", "must not exceed the mean, or latencies are negative")
        return self

    def to_spread(self) -> Spread:
        """Turn it into a value."""
        return Spread(self.mean, self.spread)


BandwidthEntry = Annotated[
    Annotated[Bandwidth, Tag("<one>")] | Annotated[BandwidthSpreadSpec, Tag("<parts>")],
    Discriminator(shape),
]
LatencyEntry = Annotated[
    Annotated[Seconds, Tag("<one>")] | Annotated[LatencySpreadSpec, Tag("<parts>")],
    Discriminator(shape),
]


# -- network ---------------------------------------------------------------------------------

Pair = Annotated[tuple[Name, Name], Field(strict=False)]


class RuleSpec(FileModel):
    """Bandwidth and latency of links."""

    bandwidth: BandwidthEntry
    latency: LatencyEntry

    def to_rule(self) -> LinkRule:
        """Turn it into a value."""
        bandwidth, latency = self.bandwidth, self.latency
        return LinkRule(
            Spread(bandwidth) if isinstance(bandwidth, float) else bandwidth.to_spread(),
            Spread(latency) if isinstance(latency, float) else latency.to_spread(),
        )


class RegionRuleSpec(RuleSpec):
    """Links between two regions, or within one if it is named twice."""

    between: Pair


class LinkSpec(RuleSpec):
    """The link between two machines, both ways, or from one to the other."""

    between: Pair | None = Field(
        default=None, description="The two machines; the link exists in both directions."
    )
    source: Name | None = Field(default=None, alias="from")
    target: Name | None = Field(default=None, alias="to")

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_way = self.source is not None and self.target is not None
        both_ways = self.source is None and self.target is None
        if not (one_way if self.between is None else both_ways):
            raise ValueError("give either between or both from and to")
        if len(set(self.ends)) == 1:
            raise ValueError("a link joins two different machines")
        return self

    @property
    def ends(self) -> tuple[str, str]:
        """The two machines."""
        if self.between is not None:
            return self.between
        assert self.source is not None and self.target is not None
        return self.source, self.target


class RulesSpec(FileModel):
    """Rules for links within and across regions."""

    within: RuleSpec | None = Field(
        default=None, description="Rule for two machines in the same region."
    )
    across: RuleSpec | None = Field(
        default=None, description="Rule for machines in different regions."
    )
    regions: Annotated[tuple[RegionRuleSpec, ...], Field(strict=False)] = Field(
        default=(),
        description="Rules for pairs of regions; they take precedence over `within` and `across`.",
    )

    def region_mistakes(self, known: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Places and messages of invalid pairs of regions."""
        seen: set[tuple[str, ...]] = set()
        for index, rule in enumerate(self.regions):
            where = f"regions[{index}].between"
            for end, region in enumerate(rule.between):
                if region not in known:
                    hint = did_you_mean(region, known)
                    yield f"{where}[{end}]", f"no machine is in region '{region}'; {hint}"
            if (pair := tuple(sorted(rule.between))) in seen:
                yield where, f"duplicate rule for {pair[0]} and {pair[1]}"
            seen.add(pair)


class NetworkSpec(RulesSpec):
    """Links between machines; of several rules the most specific one applies."""

    links: Annotated[tuple[LinkSpec, ...], Field(strict=False)] = Field(
        default=(),
        description="Single links. An entry with `from` and `to` takes "
        "precedence over one with `between`.",
    )
    seed: Annotated[int, Field(ge=0, le=2**63)] = Field(
        default=0, description="Random seed of rules with a spread."
    )

    def link_mistakes(
        self, nodes: Sequence[str], front_ends: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """Places and messages of invalid links, given the names of all machines."""
        known = tuple(dict.fromkeys((COORDINATOR, *front_ends, *nodes)))
        endpoints = set(known)
        seen: set[tuple[bool, str, str]] = set()
        for index, link in enumerate(self.links):
            where = f"links[{index}]"
            for end in link.ends:
                if end not in endpoints:
                    yield where, f"there is no machine '{end}'; {did_you_mean(end, known)}"
            both_ways = link.between is not None
            ends = _own_names(link, front_ends[0])
            if ends[0] == ends[1]:
                yield where, "a link joins two different machines"
            source, target = sorted(ends) if both_ways else ends
            if (both_ways, source, target) in seen:
                yield where, f"duplicate entry for the link between {source} and {target}"
            seen.add((both_ways, source, target))

    def to_network(self, regions: Mapping[str, str], coordinator: str = COORDINATOR) -> RuleNetwork:
        """Turn it into a value.

        Parameters
        ----------
        regions
            Region of every machine, front ends included.
        coordinator
            The name of the first front end.
        """
        links: dict[tuple[str, str], LinkRule] = {}
        for link in sorted(self.links, key=lambda link: link.between is None):
            ends = _own_names(link, coordinator)
            links[ends] = rule = link.to_rule()
            if link.between is not None:
                links[ends[::-1]] = rule
        return RuleNetwork(
            regions=regions,
            links=links,
            between_regions={
                (min(rule.between), max(rule.between)): rule.to_rule() for rule in self.regions
            },
            within=None if self.within is None else self.within.to_rule(),
            across=None if self.across is None else self.across.to_rule(),
            seed=self.seed,
        )


def _own_names(link: LinkSpec, coordinator: str) -> tuple[str, str]:
    """The machines of a link, the first front end by its own name."""
    source, target = (coordinator if end == COORDINATOR else end for end in link.ends)
    return source, target


# -- machines --------------------------------------------------------------------------------


class NodeSpec(FileModel):
    """One node, or several identical nodes."""

    type: Name | None = Field(
        default=None, description="Name of its machine type; or give `gpu` instead."
    )
    gpu: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None,
        description="Its GPU, of the [catalogue](profiles.md) (`helixsim gpus`) or of the "
        "scenario's `gpus`. Its profile follows from the LLM; see "
        "[from a GPU's name to an answer](fleet.md).",
    )
    gpus: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="With `gpu`: how many, which share each layer. Default: 1."
    )
    spread_experts: bool = Field(
        default=False,
        description="With `gpu`: whether each GPU holds whole experts, instead of a part of each.",
    )
    name: NamePattern | None = Field(
        default=None,
        description="Its name; for several nodes, a pattern with {i} for the number. Default: "
        "the type (or the GPU) in lower case, with the number.",
    )
    count: Annotated[int, Field(ge=1, le=MAX_NODES)] | None = None
    region: Name = DEFAULT_REGION
    nic: NicEntry | None = Field(
        default=None, description="Network interface, if different from the machine type's."
    )
    disk: Bandwidth | None = Field(
        default=None, description="Disk bandwidth, if different from the machine type's."
    )
    kv_token_layers: Count | None = Field(
        default=None, description="KV capacity, if different from the machine type's."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_machine()
        if self.name is None:
            return self
        if self.count is not None and _NUMBER not in self.name:
            raise located_error("name", "must contain {i}, for the numbers of the nodes")
        if re.search(r"[{}]", self.name.replace(_NUMBER, "")):
            raise located_error("name", "the only braces allowed are {i}")
        return self

    def _check_machine(self) -> None:
        """The machine is given in exactly one of two forms."""
        if self.type is not None and self.gpu is not None:
            raise located_error("gpu", "give either type or gpu")
        if self.type is None and self.gpu is None:
            raise located_error("type", "this key is missing (or gpu instead)")
        if self.gpu is None and (self.gpus is not None or self.spread_experts):
            key = "spread_experts" if self.gpus is None else "gpus"
            raise located_error(key, "is for a node with gpu; this one has a machine type")

    @property
    def machine_type(self) -> str:
        """Name of its machine type, or the GPU with the number of GPUs, such as ``L40Sx2``."""
        if self.type is not None:
            return self.type
        times = "" if self.gpus in (None, 1) else f"x{self.gpus}"
        return f"{self.gpu}{times}{'-spread' * self.spread_experts}"

    @property
    def name_pattern(self) -> str:
        """Its name, or a pattern with ``{i}``."""
        return self.name or f"{self.machine_type.lower()}-{_NUMBER}"

    def to_node(self, name: str, machine_type: MachineType) -> Node:
        """Turn one of the nodes into a value."""
        nic = machine_type.nic_bytes_per_s if self.nic is None else self.nic
        return Node(
            name=name,
            machine_type=machine_type.name,
            nic=to_nic(nic),
            disk_bytes_per_s=machine_type.disk_bytes_per_s if self.disk is None else self.disk,
            region=self.region,
            kv_token_layers=self.kv_token_layers,
        )


class ClusterSpec(FileModel):
    """A cluster: the coordinator or front ends, the nodes, and how they are linked."""

    source: str = Field(default="", description="Source of the data.")
    description: str = ""
    coordinator: CoordinatorEntry
    nodes: Annotated[tuple[NodeSpec, ...], Field(strict=False, min_length=1, max_length=MAX_NODES)]
    network: NetworkSpec

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(entry.count or 1 for entry in self.nodes) > MAX_NODES:
            raise located_error("nodes", f"more than {MAX_NODES} nodes")
        if mistake := next(self._mistakes(), None):
            raise located_error(*mistake)
        return self

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        yield from front_end_mistakes(self.coordinator)
        front_ends = to_front_ends(self.coordinator)
        taken = {front_end.name: "the name of a front end" for front_end in front_ends}
        taken |= dict.fromkeys((COORDINATOR, *RESERVED_NAMES), "reserved")
        seen = set()
        for name, index in self.node_names():
            where = f"nodes[{index}].name"
            if name in taken:
                yield where, f"'{name}' is {taken[name]} and cannot be the name of a node"
            if name in seen:
                yield where, f"duplicate node name '{name}'"
            seen.add(name)
        here = (front_end.region for front_end in front_ends)
        regions = dict.fromkeys((*here, *(node.region for node in self.nodes)))
        for where, message in self.network.region_mistakes(tuple(regions)):
            yield f"network.{where}", message
        names = [front_end.name for front_end in front_ends]
        for where, message in self.network.link_mistakes(tuple(seen), names):
            yield f"network.{where}", message

    def node_names(self) -> Iterator[tuple[str, int]]:
        """Name every node, with the index of its entry in `nodes`.

        Numbers count from 0 for each pattern, whatever number of entries share it.
        """
        numbers: dict[str, int] = {}
        for index, entry in enumerate(self.nodes):
            for _ in range(entry.count or 1):
                pattern = entry.name_pattern
                number = numbers[pattern] = numbers.get(pattern, -1) + 1
                yield pattern.replace(_NUMBER, str(number)), index

    def to_cluster(self, machine_types: Mapping[str, MachineType]) -> Cluster:
        """Turn it into a value.

        Parameters
        ----------
        machine_types
            By the name that entries have for them, see :attr:`NodeSpec.machine_type`.
        """
        nodes = []
        for name, index in self.node_names():
            entry = self.nodes[index]
            nodes.append(entry.to_node(name, machine_types[entry.machine_type]))
        front_ends = to_front_ends(self.coordinator)
        regions = {front_end.name: front_end.region for front_end in front_ends}
        regions |= {node.name: node.region for node in nodes}
        network = self.network.to_network(regions, front_ends[0].name)
        return Cluster(tuple(nodes), front_ends, network)


class ClusterFile(ClusterSpec):
    """A cluster file."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["cluster"]

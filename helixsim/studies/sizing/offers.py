"""The machines that a cluster may be made of, and scenarios of sets of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from helixsim.errors import InputError
from helixsim.profiles.library import load_machine_type, shipped_machine_types
from helixsim.profiles.machine import MachineProfile
from helixsim.scenario.cluster_generator import generate_cluster
from helixsim.scenario.cluster_spec import NodeSpec
from helixsim.scenario.front_end_spec import DEFAULT_REGION
from helixsim.scenario.generator_spec import GeneratorFile, GeneratorSpec
from helixsim.scenario.load import resolve_scenario
from helixsim.scenario.resolved import Scenario
from helixsim.studies.sizing.machine_sets import Counts
from helixsim.yaml_files import did_you_mean, read_yaml, validate

Document = dict[str, Any]

_GPUS = re.compile(r"(.+?)(?:x(\d+))?")
_NUMBER = "{i}"
_OF_MACHINES = ("dollars_per_hour", "watts")


@dataclass(frozen=True)
class Offer:
    """One kind of machine.

    Attributes
    ----------
    label
        Its machine type; with the region or a number where several offers have the same.
    machine_type
        Name of its type.
    entry
        An entry of a cluster's ``nodes`` without a count.
    owned
        Machines of this kind that the cluster has in any case.
    may_add
        Whether more may be added.
    """

    label: str
    machine_type: str
    entry: Mapping[str, Any]
    owned: int = 0
    may_add: bool = True


class Fleet:
    """Makes scenarios with other machines out of one scenario.

    Parameters
    ----------
    scenario
        Its LLM, network, workload and settings are the same in all scenarios made.
    add
        Machine types that may be added; the types of the scenario if empty.
    region
        Region of all machines that are added. If not given, that of the scenario's machines of
        the same type, or of the coordinator.
    prices
        Machine type -> dollars per hour, beside the scenario's.
    keep
        Whether the scenario's own machines stay.

    Attributes
    ----------
    offers
        The kinds of machines.
    llm
        The LLM.

    Raises
    ------
    InputError
        If links or faults name machines that would not exist, or a type or price is wrong.
    """

    def __init__(
        self,
        scenario: Scenario,
        add: Sequence[str] = (),
        region: str | None = None,
        prices: Mapping[str, float] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self._file = scenario.file
        self._keep = keep
        self._document: Document = dict(scenario.document)
        self._document.pop("placement", None)
        self._document.setdefault("physics", scenario.physics)
        self._cluster = _inline_cluster(scenario)
        self._front_ends = {front_end.region for front_end in scenario.cluster.front_ends}
        self._check_names(scenario)
        given = {key: self._document.pop(key, None) or {} for key in _OF_MACHINES}
        self.offers = self._find_offers(scenario, add, region)
        probe = self._probe()
        # Engines may depend on the machine types, which differ from set to set.
        self._document.setdefault("engine", probe.engine.name)
        self.offers = _labelled(self.offers, [node.machine_type for node in probe.cluster])
        self.llm = probe.llm
        self._profiles = probe.profiles()
        given["dollars_per_hour"] = {**given["dollars_per_hour"], **self._checked(prices or {})}
        self._document |= {key: value for key, value in given.items() if value}

    def _probe(self) -> Scenario:
        """One machine of each offer, in a cluster of its own."""
        document = self._with_nodes(
            [{**offer.entry, "name": f"n{index}"} for index, offer in enumerate(self.offers)]
        )
        document["cluster"]["network"].pop("links", None)
        document.pop("faults", None)
        try:
            return resolve_scenario(document, self._file)
        except InputError as error:
            raise InputError(
                f"a machine that may be added: {error.message}", where="--add"
            ) from error

    def _checked(self, prices: Mapping[str, float]) -> Mapping[str, float]:
        known = list(dict.fromkeys(offer.machine_type for offer in self.offers))
        for name, price in prices.items():
            if name not in known:
                raise InputError(
                    f"'{name}' is none of the machines; {did_you_mean(name, known)}",
                    where="--prices",
                )
            if not 0 <= price < inf:
                raise InputError(
                    f"the price of {name} must be 0 or more, not {price:g}", where="--prices"
                )
        return prices

    def _check_names(self, scenario: Scenario) -> None:
        if self._keep:
            return
        own = {node.name for node in scenario.cluster}
        links = self._cluster.get("network", {}).get("links") or ()
        for index, link in enumerate(links):
            ends = link.get("between") or (link.get("from"), link.get("to"))
            if not own.isdisjoint(ends):
                raise InputError(
                    "names a node, and a sized cluster has other nodes; give the network as rules "
                    "(within, across, regions), or keep the nodes (--keep)",
                    file=scenario.file,
                    where=f"cluster.network.links[{index}]",
                )
        if scenario.faults.events:
            raise InputError(
                "name nodes that a sized cluster may not have; remove them, or ask for the loss "
                "of any one machine (--survive 1)",
                file=scenario.file,
                where="faults.events",
            )

    # -- offers

    def _find_offers(
        self, scenario: Scenario, add: Sequence[str], region: str | None
    ) -> tuple[Offer, ...]:
        own: list[tuple[Document, int]] = []  # entries without name and count, machines
        for entry in self._cluster["nodes"]:
            bare = _bare(entry)
            number = entry.get("count") or 1
            for index, (known, count) in enumerate(own):
                if known == bare:
                    own[index] = (known, count + number)
                    break
            else:
                own.append((bare, number))
        first = scenario.cluster.front_ends[0].region
        wanted: list[Document] = []
        for name in add:
            alike = [entry for entry, _ in own if _type_of(entry) == name]
            wanted += alike[:1] or [{**_entry_of(name, scenario), "region": first}]
        if not add:
            wanted = [entry for entry, _ in own]
        wanted = [entry if region is None else {**entry, "region": region} for entry in wanted]
        found: list[tuple[Document, int, bool]] = []
        if self._keep:
            found += [(entry, count, entry in wanted) for entry, count in own]
        known_entries = [entry for entry, _, _ in found]
        for entry in wanted:
            if entry not in known_entries:
                known_entries.append(entry)
                found.append((entry, 0, True))
        return tuple(
            Offer("", _type_of(entry), entry, owned, may_add) for entry, owned, may_add in found
        )

    def profile(self, index: int) -> MachineProfile:
        """The profile of the machines of an offer."""
        return self._profiles[self.offers[index].machine_type]

    # -- scenarios

    def scenario(self, counts: Counts) -> Scenario:
        """The scenario with a set of machines, without a placement.

        Parameters
        ----------
        counts
            Number of machines of each offer, owned ones included.
        """
        return resolve_scenario(self.document(counts), self._file)

    def first_node(self, index: int, scenario: Scenario) -> int:
        """Number of a node of an offer in a scenario of :meth:`scenario` that has one."""
        kinds = self.kinds_of_nodes(scenario)
        return kinds.index(index)

    def kinds_of_nodes(self, scenario: Scenario) -> list[int]:
        """For each node of a scenario of :meth:`scenario`, the number of its offer."""
        section = scenario.document["cluster"]
        assert isinstance(section, Mapping)
        entries = [dict(offer.entry) for offer in self.offers]
        found = []
        for entry in section["nodes"]:
            found += [entries.index(_bare(entry))] * (entry.get("count") or 1)
        return found

    def alone(self, index: int, count: int) -> Scenario:
        """A scenario with machines of one offer and no others."""
        offer = self.offers[index]
        nodes = [{**offer.entry, "name": f"{_pattern(offer)}{_NUMBER}", "count": count}]
        document = self._with_nodes(nodes)
        document["cluster"]["network"].pop("links", None)
        document.pop("faults", None)
        return resolve_scenario(document, self._file)

    def document(self, counts: Counts) -> Document:
        """The document of :meth:`scenario`."""
        nodes = list(self._cluster["nodes"]) if self._keep else []
        for offer, count in zip(self.offers, counts, strict=True):
            if count > offer.owned:
                name = f"{_pattern(offer)}{'added-' * self._keep}{_NUMBER}"
                nodes.append({**offer.entry, "name": name, "count": count - offer.owned})
        return self._with_nodes(nodes)

    def _with_nodes(self, nodes: Sequence[Document]) -> Document:
        regions = self._front_ends | {entry.get("region", DEFAULT_REGION) for entry in nodes}
        network = dict(self._cluster["network"])
        if network.get("regions"):  # rules may name no region without machines
            network["regions"] = [
                rule for rule in network["regions"] if regions.issuperset(rule["between"])
            ]
        document = dict(self._document)
        document["cluster"] = {**self._cluster, "nodes": list(nodes), "network": network}
        here = [_bare(entry) for entry in nodes]
        used = {offer.machine_type for offer in self.offers if dict(offer.entry) in here}
        for key in _OF_MACHINES:
            if document.get(key):
                document[key] = {
                    name: value for name, value in document[key].items() if name in used
                }
        return document


def _pattern(offer: Offer) -> str:
    """How the names of nodes of an offer begin."""
    return re.sub("[^a-z0-9._-]", "-", offer.label.lower()) + "-"


def _inline_cluster(scenario: Scenario) -> Document:
    """The cluster section of a scenario with what its files say."""
    section = scenario.document["cluster"]
    assert isinstance(section, Mapping)
    folder = scenario.file.parent
    if "file" in section:
        read = read_yaml(folder / str(section["file"]))
        assert isinstance(read, dict)
        return {key: value for key, value in read.items() if key not in ("schema", "kind")}
    if "generate" not in section:
        return dict(section)
    generate: Any = section["generate"]
    if isinstance(generate, str):
        file = folder / generate
        spec: GeneratorSpec = validate(GeneratorFile, read_yaml(file), file)
    else:
        spec = validate(GeneratorSpec, generate, scenario.file)
    return dict(generate_cluster(spec))


def _bare(entry: Mapping[str, Any]) -> Document:
    """An entry of ``nodes`` without what differs between equal machines."""
    return {key: value for key, value in entry.items() if key not in ("count", "name")}


def _type_of(entry: Document) -> str:
    return NodeSpec.model_validate(entry).machine_type


def _entry_of(name: str, scenario: Scenario) -> Document:
    """The entry of a machine type that the scenario does not have: a type, or a GPU."""
    if name in scenario.machine_types:
        return {"type": name}
    if name in shipped_machine_types():
        shipped = load_machine_type(name, llms=[scenario.llm])
        if scenario.llm.name in shipped.profiles:
            return {"type": name}
    match = _GPUS.fullmatch(name)
    assert match is not None  # any text that is not empty
    gpu, number = match[1], match[2]
    return {"gpu": gpu} if number is None else {"gpu": gpu, "gpus": int(number)}


def _labelled(offers: Sequence[Offer], types: Sequence[str]) -> tuple[Offer, ...]:
    """The offers with the names of their machine types, and labels that differ."""
    found: list[Offer] = []
    for offer, machine_type in zip(offers, types, strict=True):
        label = machine_type
        if types.count(machine_type) > 1:
            label += f"@{offer.entry.get('region', DEFAULT_REGION)}"
        same = sum(other.label.partition("#")[0] == label for other in found)
        label += f"#{same + 1}" if same else ""
        found.append(replace(offer, label=label, machine_type=machine_type))
    return tuple(found)

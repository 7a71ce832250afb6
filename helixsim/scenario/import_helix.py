"""Convert the published artifact's files to a scenario.

The artifact describes a run in four ini files: a cluster with the links of all pairs of
machines, the hardware of the machine types, a solution (which node holds which layers), and a
simulator cluster (the nodes with their KV capacity, and the links that requests may take).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from helixsim.cluster import COORDINATOR, Link, Nic
from helixsim.errors import InputError
from helixsim.profiles.library import load_llm, load_machine_type, shipped_machine_types
from helixsim.profiles.machine import LLM, MachineType
from helixsim.scenario.helix_ini import HelixIni
from helixsim.scenario.load import resolve_scenario
from helixsim.scenario.plain import Plain, link_data, nic_data
from helixsim.units import format_bytes_per_s
from helixsim.yaml_files import did_you_mean

_ENDS = {"source": COORDINATOR, "sink": COORDINATOR}

Links = dict[tuple[str, str], Link]


@dataclass(frozen=True, slots=True)
class ImportedScenario:
    """A scenario that was imported.

    Attributes
    ----------
    document
        The content of the scenario file.
    overcommitted
        Nodes that hold more layers than their type should; with any, a run needs
        ``placement.allow_overcommitted_layers`` set.
    """

    document: Plain
    overcommitted: tuple[str, ...]


def import_helix(
    *,
    cluster: str | Path,
    machines: str | Path,
    solution: str | Path,
    links: str | Path,
    llm: str,
    name: str = "imported",
) -> ImportedScenario:
    """Turn the artifact's files into a scenario.

    Parameters
    ----------
    cluster
        The cluster: ``[ComputeNode-0]``, ``[Link-0-1]`` and so on.
    machines
        Hardware of the machine types.
    solution
        ``compute_node_2=[0, 1, 2]`` and so on.
    links
        The simulator cluster. Its links and nodes take precedence over the cluster's.
    llm
        Name of a shipped LLM.
    name
        Name of the scenario.

    Raises
    ------
    ImportHelixError
        If a file cannot be used; naming file, section and key.
    ScenarioError
        If there is no such LLM.
    """
    files = _Files(HelixIni(cluster), HelixIni(machines), HelixIni(solution), HelixIni(links))
    return _Importer(files, load_llm(llm), name).run()


def scenario_name(file: Path) -> str:
    """Name a scenario after its file, as far as names allow."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("._-")[:64]
    return name or "imported"


@dataclass(frozen=True, slots=True)
class _Files:
    cluster: HelixIni
    machines: HelixIni
    solution: HelixIni
    links: HelixIni


class _Importer:
    def __init__(self, files: _Files, llm: LLM, name: str) -> None:
        self.files = files
        self.llm = llm
        self.name = name
        self.offset = files.solution.whole("Settings", "offset")
        self.types = self._node_types()
        self.machine_types = self._machine_types()
        self.layers = self._layers()

    def run(self) -> ImportedScenario:
        document: Plain = {
            "schema": 1,
            "name": self.name,
            "llm": self.llm.name,
            "cluster": {
                "coordinator": {"nic": nic_data(self._nic(self.files.links, "Coordinator"))},
                "nodes": [self._node(name) for name in self.types],
                "network": self._network(),
            },
            "placement": {
                "layers": {name: list(layers) for name, layers in self.layers.items()},
                "links": [list(ends) for ends in self._used_links()],
                "allow_overcommitted_layers": False,
            },
            "scheduler": {
                "preset": "published",
                "policy": "maxflow",
            },
            "workload": {
                "mode": "offline",
                "initial_requests": 20,
                "lengths": "azure-conversation",
                "arrivals": "azure-conversation",
                "mean_tokens_per_s": 700,
            },
            "physics": "paper",
            "run": {"seed": 0, "warmup": "0 s", "duration": "660 s"},
        }
        self._check(document)
        return ImportedScenario(document, tuple(self._overcommitted()))

    # -- nodes

    def _node_types(self) -> dict[str, str]:
        """Name of every node -> machine type; nodes in use first, in the order of the list."""
        ini = self.files.cluster
        found = {
            f"compute_node_{int(match[1]) + self.offset}": ini.name(match[0], "type")
            for match in ini.sections(r"ComputeNode-([0-9]{1,6})")
        }
        if not found:
            raise ini.error("there is no section [ComputeNode-0]")
        links = self.files.links
        used = links.names("ComputeNodes", "names")
        if len(set(used)) < len(used):
            raise links.error("duplicate node", "ComputeNodes", "names")
        for name in used:
            if name not in found:
                raise links.error(
                    f"{ini.path} has no node '{name}'; {did_you_mean(name, found)}",
                    "ComputeNodes",
                    "names",
                )
            if (named := links.name(name, "machine_type")) != found[name]:
                raise links.error(
                    f"{named}, but {ini.path} says {found[name]}", name, "machine_type"
                )
        return {name: found[name] for name in dict.fromkeys((*used, *found))}

    def _machine_types(self) -> dict[str, MachineType]:
        found = {}
        for name, machine_type in self.types.items():
            if machine_type in found:
                continue
            section = f"ComputeNode-{self._number(name)}"
            if machine_type not in shipped_machine_types():
                hint = did_you_mean(machine_type, shipped_machine_types())
                raise self.files.cluster.error(
                    f"no machine type '{machine_type}' ships with helixsim; {hint}", section, "type"
                )
            found[machine_type] = load_machine_type(machine_type)
            if self.llm.name not in found[machine_type].profiles:
                raise self.files.cluster.error(
                    f"machine type '{machine_type}' has no profile for {self.llm.name}",
                    section,
                    "type",
                )
        return found

    def _number(self, name: str) -> int:
        """Number of a node in the cluster file."""
        return int(name.removeprefix("compute_node_")) - self.offset

    def _node(self, name: str) -> Plain:
        """One node, with the hardware that differs from its machine type's."""
        links = self.files.links
        machine_type = self.machine_types[self.types[name]]
        ini, section = links, name
        if name not in links.names("ComputeNodes", "names"):
            ini, section = self.files.machines, machine_type.name
        node: Plain = {"name": name, "type": machine_type.name}
        nic = self._nic(ini, section)
        if nic != Nic(machine_type.nic_bytes_per_s, machine_type.nic_bytes_per_s):
            node["nic"] = nic_data(nic)
        disk = ini.positive(section, "disk_speed")
        if disk != machine_type.disk_bytes_per_s:
            node["disk"] = format_bytes_per_s(disk)
        if ini is links:
            start, end = self.layers.get(name, (0, 0))
            kv_token_layers = ini.whole(section, "kv_cache_capacity")
            row = machine_type.profiles[self.llm.name].capacities.get(end - start)
            if end > start and (row is None or row.kv_token_layers != kv_token_layers):
                node["kv_token_layers"] = kv_token_layers
        return node

    @staticmethod
    def _nic(ini: HelixIni, section: str) -> Nic:
        return Nic(
            ini.positive(section, "inbound_nic_speed"), ini.positive(section, "outbound_nic_speed")
        )

    # -- layers

    def _layers(self) -> dict[str, tuple[int, int]]:
        ini = self.files.solution
        found = {}
        for name in ini.keys("Solution"):
            if name not in self.types:
                raise ini.error(
                    f"{self.files.cluster.path} has no such node; {did_you_mean(name, self.types)}",
                    "Solution",
                    name,
                )
            layers = ini.wholes("Solution", name)
            if not layers:
                continue
            if layers != list(range(layers[0], layers[0] + len(layers))):
                raise ini.error("layers must follow each other", "Solution", name)
            found[name] = (layers[0], layers[-1] + 1)
        return found

    def _overcommitted(self) -> Iterator[str]:
        for name, (start, end) in self.layers.items():
            profile = self.machine_types[self.types[name]].profiles[self.llm.name]
            if end - start > profile.max_layers:
                yield name

    # -- links

    def _network(self) -> Plain:
        links = self._cluster_links() | self._used_links()
        first = next(iter(links.values()))
        num_machines = len(self.types) + 1
        if len(links) == num_machines * (num_machines - 1) and all(
            _alike(link, first) for link in links.values()
        ):
            return {"within": link_data(first)}
        return {"links": list(_explicit(links))}

    def _cluster_links(self) -> Links:
        """Links of the cluster file, in both directions between nodes."""
        ini = self.files.cluster
        found: Links = {}
        for match in ini.sections(r"Link-([0-9]{1,6}|source)-([0-9]{1,6}|sink)"):
            source, target = (self._machine(match[0], end) for end in match.groups())
            link = self._link(ini, match[0], source, target)
            found[source, target] = link
            if COORDINATOR not in (source, target):
                found.setdefault(
                    (target, source),
                    Link(target, source, link.bandwidth_bytes_per_s, link.latency_s),
                )
        return found

    def _machine(self, section: str, end: str) -> str:
        if end in _ENDS:
            return COORDINATOR
        name = f"compute_node_{int(end) + self.offset}"
        if name not in self.types:
            raise self.files.cluster.error(f"there is no [ComputeNode-{end}]", section)
        return name

    def _used_links(self) -> Links:
        """Links of the simulator cluster, in their order, which breaks ties."""
        ini = self.files.links
        found: Links = {}
        for section in ini.names("Links", "names"):
            ends = []
            for key in ("in", "out"):
                name = ini.name(section, key)
                if name not in _ENDS and name not in self.types:
                    hint = did_you_mean(name, self.types)
                    raise ini.error(f"there is no node '{name}'; {hint}", section, key)
                ends.append(_ENDS.get(name, name))
            source, target = ends
            if source == target:
                raise ini.error("a link joins two different machines", section)
            if (source, target) in found:
                raise ini.error(f"there is a link from {source} to {target} already", section)
            found[source, target] = self._link(ini, section, source, target)
        return found

    @staticmethod
    def _link(ini: HelixIni, section: str, source: str, target: str) -> Link:
        return Link(
            source, target, ini.positive(section, "bandwidth"), ini.quantity(section, "latency")
        )

    # -- the whole

    def _check(self, document: Plain) -> None:
        """Refuse files that are well-formed but do not make a valid scenario together."""
        placement = document["placement"]
        assert isinstance(placement, Mapping)
        trial = document | {"placement": {**placement, "allow_overcommitted_layers": True}}
        try:
            resolve_scenario(trial, self.files.links.path)
        except InputError as error:
            raise self.files.links.error(
                f"this file and {self.files.solution.path} do not make a valid scenario: "
                f"{error.message}",
            ) from error


def _alike(one: Link, other: Link) -> bool:
    return (one.bandwidth_bytes_per_s, one.latency_s) == (
        other.bandwidth_bytes_per_s,
        other.latency_s,
    )


def _explicit(links: Links) -> Iterator[Plain]:
    """Every link; links that are equal in both directions share an entry."""
    written = set()
    for (source, target), link in links.items():
        back = links.get((target, source))
        if back is None or not _alike(link, back):
            yield {"from": source, "to": target, **link_data(link)}
        elif (target, source) not in written:
            yield {"between": [source, target], **link_data(link)}
        written.add((source, target))

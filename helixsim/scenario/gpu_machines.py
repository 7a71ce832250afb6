"""Machine types of nodes that a scenario names by their GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from helixsim.errors import InputError
from helixsim.hardware.catalogue import gpu_key, load_gpu
from helixsim.hardware.gpu import Gpu, GpuMachine
from helixsim.llms.architecture import Architecture
from helixsim.profiles.machine import LLM, MachineType
from helixsim.profiles.machine_documents import facts_of, machine_type_of
from helixsim.profiles.sources.choice import profile_source
from helixsim.profiles.sources.source import SourcedTables, UnknownPairError
from helixsim.scenario.cluster_spec import NodeSpec
from helixsim.scenario.files import is_yaml_name


class GpuMachines:
    """Makes machine types from GPUs, for one LLM; each once.

    Parameters
    ----------
    llm, architecture
        The LLM; without its architecture, no machine type can be made.
    own_gpus
        Files of GPUs besides the catalogue.
    source
        Where times come from, see :func:`.profile_source`.
    folder
        Folder to which paths are relative.

    Raises
    ------
    InputError
        If a file of a GPU is no file, has errors, or has the name of another.
    """

    def __init__(
        self,
        llm: LLM,
        architecture: Architecture | None,
        own_gpus: Sequence[str],
        source: str,
        folder: Path,
    ) -> None:
        self._llm = llm
        self._architecture = architecture
        self._own = _own_gpus(own_gpus, folder)
        self._source = profile_source(_based(source, folder))
        self._folder = folder
        self._made: dict[str, tuple[Gpu, MachineType]] = {}
        self._sources: dict[str, SourcedTables] = {}

    def machine_type(self, node: NodeSpec) -> MachineType:
        """The machine type of a node with `gpu`.

        Raises
        ------
        InputError
            If the GPU or its times are not known, or the LLM does not fit; `where` is the key.
        """
        assert node.gpu is not None
        if self._architecture is None:
            raise InputError(
                f"the times of a GPU follow from the LLM's config.json, and {self._llm.name} is a "
                "file of sizes; give llm: {config: ...}, or a shipped configuration "
                "(`helixsim llm`)",
                where="gpu",
            )
        try:
            gpu = load_gpu(node.gpu, self._folder, self._own)
        except InputError as error:
            raise InputError(error.message, where="gpu") from error
        if node.spread_experts and not self._architecture.has_experts:
            message = f"{self._architecture.name} has no experts; leave the key out"
            raise InputError(message, where="spread_experts")
        machine = GpuMachine(gpu, node.gpus or 1, node.spread_experts)
        if machine.name not in self._made:
            self._made[machine.name] = gpu, self._make(machine, self._architecture)
        known, made = self._made[machine.name]
        if known != gpu:
            message = (
                f"another GPU of this cluster is named '{gpu.name}', too; rename it in its file"
            )
            raise InputError(message, where="gpu")
        return made

    def _make(self, machine: GpuMachine, architecture: Architecture) -> MachineType:
        try:
            sourced = self._source(architecture, machine)
        except UnknownPairError as error:
            message = f"{error.reason}; use the roofline instead (profiles: roofline)"
            raise InputError(message, where="gpu") from error
        self._sources[machine.name] = sourced
        try:
            made = machine_type_of(self._llm, facts_of(machine, architecture), sourced)
        except InputError as error:
            raise InputError(error.message, where="gpu") from error
        profile = replace(made.profiles[self._llm.name], note=sourced.note)
        return replace(made, profiles={self._llm.name: profile})

    @property
    def digest(self) -> str:
        """SHA-256 of all times, as hex digits; empty if no node is named by its GPU.

        The same scenario has other times where measured ones are installed.
        """
        if not self._sources:
            return ""
        return hashlib.sha256(repr(sorted(self._sources.items())).encode()).hexdigest()


def _own_gpus(names: Sequence[str], folder: Path) -> list[Gpu]:
    """The GPUs in files that the scenario names."""
    found: dict[str, Gpu] = {}
    for index, name in enumerate(names):
        where = f"gpus[{index}]"
        if not is_yaml_name(name):
            message = (
                f"'{name}' is not a file ending in .yaml; GPUs of the catalogue need not be named"
            )
            raise InputError(message, where=where)
        gpu = load_gpu(name, folder)
        if gpu_key(gpu.name) in found:
            raise InputError(f"duplicate GPU '{gpu.name}'", where=where)
        found[gpu_key(gpu.name)] = gpu
    return list(found.values())


def _based(source: str, folder: Path) -> str:
    """The source, with its folder of tables relative to the current directory."""
    kind, colon, path = source.partition(":")
    return f"{kind}:{folder / path}" if colon and path else source

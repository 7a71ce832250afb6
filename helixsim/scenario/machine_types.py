"""The machine types of a scenario's nodes: by their names, from files, or from their GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from helixsim.errors import InputError, ScenarioError
from helixsim.llms.architecture import Architecture
from helixsim.profiles.library import load_machine_type, shipped_machine_types
from helixsim.profiles.machine import LLM, MachineType
from helixsim.scenario.cluster_spec import NodeSpec
from helixsim.scenario.files import is_yaml_name
from helixsim.scenario.gpu_machines import GpuMachines
from helixsim.scenario.spec import ScenarioSpec
from helixsim.yaml_files import did_you_mean, mistakes_error


@dataclass(frozen=True, slots=True)
class Section:
    """The place of a section: a file of its own or the scenario file."""

    file: Path
    prefix: str = ""

    def error(self, found: Sequence[tuple[str, str]]) -> ScenarioError:
        """The error of mistakes at places within the section."""
        return mistakes_error([(self.prefix + where, text) for where, text in found], self.file)


class MachineTypes:
    """Finds the machine types of a scenario.

    Parameters
    ----------
    spec, file
        The scenario.
    llm, architecture
        Its LLM, with the architecture where it is known.
    """

    def __init__(
        self, spec: ScenarioSpec, file: Path, llm: LLM, architecture: Architecture | None
    ) -> None:
        self._spec = spec
        self._file = file
        self._llm = llm
        self._architecture = architecture

    @cached_property
    def own(self) -> dict[str, MachineType]:
        """The types in files that the scenario names.

        Raises
        ------
        ScenarioError
            If one is no file, has errors, or has the name of another.
        """
        own: dict[str, MachineType] = {}
        for index, name in enumerate(self._spec.machine_types):
            where = f"machine_types[{index}]"
            if not is_yaml_name(name):
                message = (
                    f"'{name}' is not a file ending in .yaml; shipped machine types need not be "
                    "named"
                )
                raise ScenarioError(message, file=self._file, where=where)
            machine_type = load_machine_type(name, self._file.parent, [self._llm])
            if machine_type.name in own:
                message = f"duplicate machine type '{machine_type.name}'"
                raise ScenarioError(message, file=self._file, where=where)
            own[machine_type.name] = machine_type
        return own

    @cached_property
    def _of_gpus(self) -> GpuMachines:
        folder = self._file.parent
        own_gpus, source = self._spec.gpus, self._spec.profiles
        try:
            return GpuMachines(self._llm, self._architecture, own_gpus, source, folder)
        except InputError as error:
            if error.file is not None:
                raise
            where = error.where or "profiles"
            raise ScenarioError(error.message, file=self._file, where=where) from error

    @property
    def has_gpus(self) -> bool:
        """Whether a node is named by its GPU."""
        return bool(self.sources)

    @property
    def sources(self) -> str:
        """What the times of nodes that are named by their GPU are, as one text; empty without."""
        return self._of_gpus.digest

    def of_entries(self, nodes: Sequence[NodeSpec], place: Section) -> dict[str, MachineType]:
        """The type of each entry of a cluster, by its :attr:`.NodeSpec.machine_type`, in order.

        Raises
        ------
        ScenarioError
            Naming all entries whose type is not known, or does not serve the LLM.
        """
        found: dict[str, MachineType] = {}
        forms: dict[str, str] = {}  # of a name: whether `type` or `gpu` gave it
        mistakes = []
        for index, node in enumerate(nodes):
            name, form = node.machine_type, "type" if node.gpu is None else "gpu"
            if name in found and forms[found[name].name] == form:
                continue
            try:
                made = self._named(name) if node.gpu is None else self._of_gpu(node)
            except InputError as error:
                if error.file is not None:
                    raise
                mistakes.append((f"nodes[{index}].{error.where or 'gpu'}", error.message))
                continue
            if forms.setdefault(made.name, form) != form:
                message = f"other nodes have the {forms[made.name]} '{made.name}', with other times"
                mistakes.append((f"nodes[{index}].{form}", f"{message}; write one of the two"))
            found[name] = made
        if mistakes:
            raise place.error(mistakes)
        return found

    def _of_gpu(self, node: NodeSpec) -> MachineType:
        found = self._of_gpus.machine_type(node)
        if found.name in self.own:
            message = f"a file in machine_types has the name '{found.name}', too"
            raise InputError(message, where="gpu")
        return found

    def _named(self, name: str) -> MachineType:
        if name in self.own:
            found = self.own[name]
        elif name in shipped_machine_types():
            found = load_machine_type(name, llms=[self._llm])
        else:
            known = dict.fromkeys((*self.own, *shipped_machine_types()))
            raise InputError(
                f"no machine type '{name}'; {did_you_mean(name, known)} (name files of your own in "
                "machine_types; for a GPU of `helixsim gpus`, write gpu instead of type)",
                where="type",
            )
        if self._llm.name not in found.profiles:
            profiled = ", ".join(found.profiles)
            raise InputError(
                f"machine type '{name}' has no profile for {self._llm.name}, only for "
                f"{profiled or 'no LLM at all'} (for any LLM, write gpu instead of type)",
                where="type",
            )
        return found

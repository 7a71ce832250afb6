"""Load a scenario file, with all files that it names, into one frozen value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from helixsim.cluster import Cluster
from helixsim.control.node_schedulers import NODE_SCHEDULERS
from helixsim.control.routing import POLICIES
from helixsim.errors import ScenarioError
from helixsim.physics.engine import (
    PROTOTYPE_ENGINE,
    VLLM_ENGINE,
    EngineCosts,
    load_engine,
    shipped_engines,
)
from helixsim.physics.performance_model import PERFORMANCE_MODELS
from helixsim.placement.placement import Placement, placement_mistakes
from helixsim.profiles.machine import LLM, MachineType
from helixsim.registry import Registry, UnknownNameError
from helixsim.scenario.cluster_generator import generate_cluster
from helixsim.scenario.cluster_spec import ClusterFile, ClusterSpec
from helixsim.scenario.files import digest, find_scenario, is_yaml_name
from helixsim.scenario.generator_spec import GeneratorFile, GeneratorSpec
from helixsim.scenario.llm_section import resolve_llm
from helixsim.scenario.machine_types import MachineTypes, Section
from helixsim.scenario.offered_load import mean_context_tokens
from helixsim.scenario.overrides import apply_overrides, overrides_of
from helixsim.scenario.prices import dollars_per_hour, watts
from helixsim.scenario.resolved import Scenario
from helixsim.scenario.section_specs import (
    PlacementFile,
    PlacementSpec,
    fault_mistakes,
    to_slos,
)
from helixsim.scenario.spec import ClusterInFile, GeneratedCluster, PlacementInFile, ScenarioSpec
from helixsim.scenario.workload import region_mistakes, resolve_workload
from helixsim.yaml_files import FileModel, did_you_mean, read_yaml, validate

Body = TypeVar("Body", bound=FileModel)

PAPER, CALIBRATED = "paper", "calibrated"
_WARMUP_SHARE = 0.1
"""Of a run, where nodes are named by their GPU and the scenario does not say it."""


def load_scenario(path: str | Path, overrides: Sequence[str] | str = ()) -> Scenario:
    """Load a scenario.

    Parameters
    ----------
    path
        A file, or the name of a scenario that ships with helixsim.
    overrides
        Texts ``PATH=VALUE``, or one of them, that change the scenario, such as
        ``run.duration=120 s`` or ``cluster.nodes.3.type=L4``. Names of files in them are relative
        to the current directory if there is such a file, else to the scenario's folder.

    Raises
    ------
    InputError
        Naming the file, the place and a correction: a :class:`ScenarioError`, or a
        :class:`TraceError` for a file of lengths or arrivals.
    """
    if isinstance(overrides, str):
        overrides = [overrides]
    file = find_scenario(path)
    document = read_yaml(file)
    if isinstance(document, dict):
        document = apply_overrides(document, overrides, file.parent)
    return resolve_scenario(document, file)


def resolve_scenario(document: object, file: str | Path) -> Scenario:
    """Turn the content of a scenario file, as plain data, into a scenario.

    Parameters
    ----------
    document
        Keys and values as in a scenario file.
    file
        The scenario file, which need not exist: it is named in messages, and the names of other
        files are relative to its folder.

    Raises
    ------
    InputError
        As :func:`load_scenario`.
    """
    file = Path(file)
    spec = validate(ScenarioSpec, document, file)
    assert isinstance(document, Mapping)
    return _Loader(file, spec).load(document)


def change_scenario(scenario: Scenario, changes: Mapping[str, object]) -> Scenario:
    """Change values of a scenario; see :meth:`Scenario.with_`."""
    overrides = list(overrides_of(changes))
    document = apply_overrides(checked_document(scenario), overrides, scenario.file.parent)
    return resolve_scenario(document, scenario.file)


def checked_document(scenario: Scenario) -> Mapping[str, object]:
    """The document of a scenario, after a check that it still describes the scenario.

    Raises
    ------
    ScenarioError
        If values were changed beside the document, or a file that it names has changed.
    """
    if resolve_scenario(scenario.document, scenario.file) != scenario:
        raise ScenarioError(
            f"{scenario.name}: the values of this scenario differ from its document: they "
            "were changed by dataclasses.replace, or a file that it names has changed; use "
            "scenario.with_(...), such as scenario.with_(placement=result.placement)"
        )
    return scenario.document


class _Loader:
    """Resolves the names in one scenario file."""

    def __init__(self, file: Path, spec: ScenarioSpec) -> None:
        self.file = file
        self.folder = file.parent
        self.spec = spec

    def load(self, document: Mapping[str, object]) -> Scenario:
        spec = self.spec
        self._check_extensions()
        workload = resolve_workload(spec.workload, self.file, spec.run.duration)
        context_tokens = mean_context_tokens(workload, spec.run.duration)
        llm, architecture = resolve_llm(spec.llm, self.file, context_tokens)
        finder = MachineTypes(spec, self.file, llm, architecture)
        cluster, machine_types = self._cluster(finder)
        if mistakes := list(region_mistakes(workload, cluster)):
            raise Section(self.file, "workload.").error(mistakes)
        placement = self._placement(cluster, llm, machine_types)
        faults = spec.faults.to_faults()
        if mistakes := list(fault_mistakes(faults, cluster, placement, llm)):
            raise Section(self.file, "faults.").error(mistakes)
        return Scenario(
            name=spec.name,
            llm=llm,
            architecture=architecture,
            machine_types=machine_types,
            cluster=cluster,
            placement=placement,
            scheduler=spec.scheduler.to_settings(),
            workload=workload,
            physics=spec.physics or (CALIBRATED if finder.has_gpus else PAPER),
            run=spec.run.to_settings(_WARMUP_SHARE if finder.has_gpus else 0.0),
            document=document,
            digest=digest(document, self.folder, finder.sources),
            faults=faults,
            engine=self._engine(node.machine_type for node in cluster.nodes),
            slos=to_slos(spec.slo),
            dollars_per_hour=dollars_per_hour(spec, self.file, cluster, machine_types),
            watts=watts(spec, self.file, cluster, machine_types),
            file=self.file,
        )

    def _check_extensions(self) -> None:
        """See that whatever is named of what users can plug in is there."""
        named: list[tuple[str, Registry[Any], str | None]] = [
            ("physics", PERFORMANCE_MODELS, self.spec.physics),
            ("scheduler.policy", POLICIES, self.spec.scheduler.policy),
            ("scheduler.node", NODE_SCHEDULERS, self.spec.scheduler.node),
        ]
        for where, registry, name in named:
            try:
                if name is not None:
                    registry.check(name)
            except UnknownNameError as error:
                raise ScenarioError(error.message, file=self.file, where=where) from error

    def _engine(self, machine_types: Iterable[str]) -> EngineCosts:
        name = self.spec.engine
        if name is None:
            prototype = load_engine(PROTOTYPE_ENGINE)
            return (
                prototype
                if prototype.gpus.keys() >= set(machine_types)
                else load_engine(VLLM_ENGINE)
            )
        if not is_yaml_name(name) and name not in (names := shipped_engines()):
            message = (
                f"no engine '{name}' ships with helixsim; {did_you_mean(name, names)} "
                "(for your own, give its file, ending in .yaml)"
            )
            raise ScenarioError(message, file=self.file, where="engine")
        return load_engine(name, self.folder)

    # -- cluster

    def _cluster(self, finder: MachineTypes) -> tuple[Cluster, dict[str, MachineType]]:
        section = self.spec.cluster
        place = Section(self.file, "cluster.")
        body: ClusterSpec
        if isinstance(section, ClusterInFile):
            body, place = self._body(ClusterFile, section.file)
        elif isinstance(section, GeneratedCluster):
            body = self._generated(section.generate)
        else:
            body = section
        by_entry = finder.of_entries(body.nodes, place)
        machine_types = {found.name: found for found in by_entry.values()}
        return body.to_cluster(by_entry), machine_types | finder.own

    def _generated(self, generate: GeneratorSpec | str) -> ClusterSpec:
        if isinstance(generate, str):
            generate, _ = self._body(GeneratorFile, generate)
        return ClusterSpec.model_validate(generate_cluster(generate))

    def _body(self, model_type: type[Body], name: str) -> tuple[Body, Section]:
        file = self.folder / name
        return validate(model_type, read_yaml(file), file), Section(file)

    # -- placement

    def _placement(
        self, cluster: Cluster, llm: LLM, machine_types: Mapping[str, MachineType]
    ) -> Placement | None:
        section = self.spec.placement
        if section is None:
            return None
        place = Section(self.file, "placement.")
        body: PlacementSpec
        if isinstance(section, PlacementInFile):
            body, place = self._body(PlacementFile, section.file)
            if section.allow_overcommitted_layers is not None:
                allow = {"allow_overcommitted_layers": section.allow_overcommitted_layers}
                body = body.model_copy(update=allow)
        else:
            body = section
        placement = body.to_placement()
        profiles = {name: machine_types[name].profiles[llm.name] for name in cluster.machine_mix()}
        if mistakes := placement_mistakes(placement, cluster, llm, profiles):
            raise place.error(mistakes)
        # In the order of the cluster, so that the order in the file cannot change a run.
        layers = {n.name: placement.layers[n.name] for n in cluster if n.name in placement.layers}
        return replace(placement, layers=layers)

"""JSON Schemas of the files that users write, for editors that validate files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from helixsim.errors import ScenarioError
from helixsim.hardware.gpu_spec import GpuFile
from helixsim.physics.engine import EngineFile
from helixsim.profiles.llm_spec import LLMSpec
from helixsim.profiles.spec import MachineSpec
from helixsim.scenario.cluster_spec import ClusterFile
from helixsim.scenario.generator_spec import GeneratorFile
from helixsim.scenario.section_specs import PlacementFile
from helixsim.scenario.spec import ScenarioSpec
from helixsim.scenario.sweep_spec import SweepSpec
from helixsim.yaml_files import FileModel, did_you_mean

FILE_KINDS: Mapping[str, type[FileModel]] = MappingProxyType(
    {
        "scenario": ScenarioSpec,
        "cluster": ClusterFile,
        "generator": GeneratorFile,
        "placement": PlacementFile,
        "llm": LLMSpec,
        "machine": MachineSpec,
        "gpu": GpuFile,
        "engine": EngineFile,
        "sweep": SweepSpec,
    }
)
"""Kind of file -> its model."""


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one of the :data:`FILE_KINDS`.

    Raises
    ------
    ScenarioError
        If there is no such kind.
    """
    if kind not in FILE_KINDS:
        raise ScenarioError(f"no kind of file '{kind}'; {did_you_mean(kind, FILE_KINDS)}")
    schema = FILE_KINDS[kind].model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"helixsim {kind} file",
    }

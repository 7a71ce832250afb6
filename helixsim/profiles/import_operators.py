"""Machine files and LLM files from a folder of operator measurements."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from helixsim.errors import InputError, ScenarioError
from helixsim.hardware.catalogue import load_gpu
from helixsim.llms.architecture import Architecture, LayerKind
from helixsim.llms.catalogue import is_shipped
from helixsim.llms.read import read_architecture
from helixsim.profiles.library import load_llm, shipped_llms
from helixsim.profiles.llm_file import llm_of, llm_text
from helixsim.profiles.machine import LLM
from helixsim.profiles.machine_documents import MachineFacts, machine_document
from helixsim.profiles.operator_csv import OperatorFolder
from helixsim.profiles.operator_documents import operators_document
from helixsim.profiles.operators import AllReduce
from helixsim.profiles.sources.operator_folder import Unmeasured, folder_tables
from helixsim.profiles.sources.source import SourcedTables
from helixsim.profiles.spec import MachineSpec
from helixsim.units import bytes_per_s, seconds
from helixsim.yaml_files import parse_yaml, validate, yaml_text

DEFAULT_GAP = "100 us"
"""As :data:`.STEP_GAP_S`."""


def memory_of_gpus(folder: Path, num_gpus: int) -> str | None:
    """The memory of a machine, if a folder on the way to its measurements is named after a GPU."""
    for part in reversed(folder.absolute().parts):
        with suppress(ScenarioError):  # no GPU, or several variants of one
            return f"{load_gpu(part).memory_bytes / 1e9 * num_gpus:g} GB"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """What the measurements do not say.

    Attributes
    ----------
    name
        Name of the machine type.
    memory, nic, disk
        Of the whole machine, with units.
    tensor_parallel
        GPUs that share each layer.
    all_reduce_latency, all_reduce_bandwidth
        Costs of an all-reduce among them, with units.
    step_gap
        Time between two steps in which the GPU waits, with a unit.
    memory_share
        Usable share of the memory, for weights and KV caches. None for what vLLM takes by default:
        0.9, less what it keeps for activations and CUDA graphs (:func:`.memory.usable_share`).
    source
        Source of the figures; empty for the folder.
    """

    name: str
    memory: str
    nic: str = "10 Gbit/s"
    disk: str = "2 GB/s"
    tensor_parallel: int = 1
    all_reduce_latency: str = "62 us"
    all_reduce_bandwidth: str = "20 GB/s"
    step_gap: str = DEFAULT_GAP
    memory_share: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class ImportedOperators:
    """Texts of the files.

    Attributes
    ----------
    machine
        The machine file.
    llm
        The LLM file; None if the LLM was a file already.
    """

    machine: str
    llm: str | None


def import_operators(
    folder: str | Path, llm: str | Path, settings: ImportSettings, *, llm_name: str = ""
) -> ImportedOperators:
    """Turn a folder of operator measurements into files.

    Parameters
    ----------
    folder
        Measurements, as :mod:`helixsim.profiles.operator_csv` describes them.
    llm
        A ``config.json``, its folder, or the name of a shipped one; or an LLM file, or the name of
        a shipped LLM file.
    settings
        What the measurements do not say.
    llm_name
        Name of the LLM, if it is a ``config.json``.

    Raises
    ------
    InputError
        If a file cannot be used; with its place.
    """
    measured = OperatorFolder(folder)
    architecture = read_architecture(llm, name=llm_name) if _is_config(llm) else None
    if architecture is None:
        value, text = load_llm(llm), None
    else:
        text = llm_text(architecture, source=f"sizes from {llm}")
        value = llm_of(architecture)
    machine = _machine_text(measured, value, architecture, settings)
    return ImportedOperators(machine, text)


def _is_config(llm: str | Path) -> bool:
    if is_shipped(llm) and str(llm) not in shipped_llms():
        return True
    return Path(llm).suffix == ".json" or Path(llm).is_dir()


def _machine_text(
    measured: OperatorFolder,
    llm: LLM,
    architecture: Architecture | None,
    settings: ImportSettings,
) -> str:
    experts = None
    if architecture is not None:
        found = _only_kind(measured, architecture).experts
        experts = None if found is None else (found.num_experts, found.experts_per_token)
    latency = seconds(settings.all_reduce_latency)
    bandwidth = bytes_per_s(settings.all_reduce_bandwidth)
    unmeasured = Unmeasured(
        all_reduce=AllReduce(latency, bandwidth), step_gap_s=seconds(settings.step_gap)
    )
    num_gpus = settings.tensor_parallel
    tables = folder_tables(measured, unmeasured, num_gpus=num_gpus, experts=experts)
    document = machine_document(
        llm,
        MachineFacts(
            name=settings.name,
            memory=settings.memory,
            nic=settings.nic,
            disk=settings.disk,
            memory_share=settings.memory_share,
        ),
        SourcedTables(tables, "tables", settings.source or f"operator times in {measured.folder}"),
        operators=operators_document(
            tables,
            step_gap=settings.step_gap,
            all_reduce=(settings.all_reduce_latency, settings.all_reduce_bandwidth),
        ),
    )
    text = yaml_text(document)
    validate(MachineSpec, parse_yaml(text, "machine file"), None).to_machine_type({llm.name: llm})
    return with_comments(text, measured)


def _only_kind(measured: OperatorFolder, architecture: Architecture) -> LayerKind:
    """The kind of all layers: such measurements are of one kind."""
    if len(architecture.kinds) > 1:
        names = ", ".join(kind.name for kind in architecture.kinds)
        raise InputError(
            f"has times of one kind of layers, but {architecture.name} has several ({names}); "
            "write a machine file with operators.kinds",
            file=measured.folder,
        )
    return architecture.kinds[0]


def with_comments(text: str, measured: OperatorFolder) -> str:
    """The text with a comment above the skew, which says what it is."""
    origin = (
        "median of the measured ones" if measured.has("skew_fit") else "a typical value, unmeasured"
    )
    comment = (
        r"\1# Decodes with uneven contexts take t(mean) + decode_skew x (t(longest) - t(mean))"
        f"\n\\1# ({origin}).\n\\1decode_skew:"
    )
    return re.sub(r"^( +)decode_skew:", comment, text, count=1, flags=re.MULTILINE)

"""Profiles from a folder of operator measurements of the pair itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from helixsim.errors import InputError
from helixsim.hardware.gpu import GpuMachine
from helixsim.llms.architecture import Architecture
from helixsim.profiles.operator_csv import DEFAULT_SKEW, OperatorFolder
from helixsim.profiles.operators import (
    AllReduce,
    AttentionTable,
    ExpertTable,
    LayerTables,
    OperatorTables,
)
from helixsim.profiles.sources.source import STEP_GAP_S, SourcedTables
from helixsim.profiles.sources.vidur import VidurFolder, is_vidur_folder

_PCIE = AllReduce(62e-6, 20e9)
"""Two GPUs over PCIe, in vLLM 0.19."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmeasured:
    """What such measurements do not say.

    Attributes
    ----------
    all_reduce
        Costs of an all-reduce among the GPUs.
    step_gap_s
        Time between two steps in which the GPU waits.
    """

    all_reduce: AllReduce = _PCIE
    step_gap_s: float = STEP_GAP_S


def folder_tables(
    measured: OperatorFolder,
    unmeasured: Unmeasured,
    *,
    num_gpus: int,
    experts: tuple[int, int] | None,
) -> OperatorTables:
    """Operator tables of a folder.

    Parameters
    ----------
    measured
        The folder.
    unmeasured
        What it does not say.
    num_gpus
        GPUs that share each layer.
    experts
        Experts of a layer, and of a token; None for an LLM without experts.

    Raises
    ------
    InputError
        If a file is missing or invalid, or does not fit the LLM or the number of GPUs.
    """
    degree = re.fullmatch(r"tp([0-9]+)", measured.folder.resolve().name)
    if degree is not None and int(degree[1]) != num_gpus:
        raise InputError(
            f"these were measured with a tensor parallel degree of {degree[1]} by the folder's "
            f"name, not {num_gpus}",
            file=measured.folder,
        )
    dense, embedding, final_norm = measured.dense()
    axes, times = measured.attention()
    skew = measured.decode_skew()
    head = measured.head()
    layers = LayerTables(
        dense,
        AttentionTable(axes[0], axes[1], axes[2], axes[3], times),
        _experts(measured, experts),
    )
    return OperatorTables(
        kinds=(layers,),
        embedding=embedding,
        final_norm=final_norm,
        head=head,
        decode_skew=DEFAULT_SKEW if skew is None else skew,
        tensor_parallel=num_gpus,
        all_reduce=unmeasured.all_reduce if num_gpus > 1 else None,
        step_gap_s=unmeasured.step_gap_s,
    )


def _experts(measured: OperatorFolder, experts: tuple[int, int] | None) -> ExpertTable | None:
    if not measured.has("moe"):
        if experts is not None:
            message = "has no moe.csv (or moe.csv.gz), but the LLM has experts"
            raise InputError(message, file=measured.folder)
        return None
    if experts is None:
        raise InputError(
            "has times of experts (moe), but the LLM has none; give the config.json of an LLM with "
            "experts",
            file=measured.folder,
        )
    (tokens, used), times = measured.experts()
    return ExpertTable(*experts, tokens, used, times)


class TablesSource:
    """Reads operator tables of the user; a :class:`.ProfileSource`.

    The files tell their format: ``dense`` (LLMServingSim's) or ``mlp`` (Vidur's).

    Parameters
    ----------
    folder
        The measurements.
    unmeasured
        What they do not say.
    """

    def __init__(self, folder: str | Path, unmeasured: Unmeasured | None = None) -> None:
        self._folder = Path(folder)
        self._unmeasured = unmeasured or Unmeasured()

    def __call__(self, architecture: Architecture, machine: GpuMachine) -> SourcedTables:
        """The times.

        Raises
        ------
        InputError
            If a file is missing or invalid, or does not fit the pair.
        """
        num_gpus = machine.num_gpus
        if is_vidur_folder(self._folder):
            folder = VidurFolder(self._folder)
            tables = folder.tables(architecture, num_gpus, self._unmeasured.step_gap_s)
        else:
            measured = OperatorFolder(self._folder)
            experts = experts_of(architecture, self._folder)
            tables = folder_tables(measured, self._unmeasured, num_gpus=num_gpus, experts=experts)
        return SourcedTables(tables, "tables", f"operator times in {self._folder}")


def experts_of(architecture: Architecture, folder: Path) -> tuple[int, int] | None:
    """Experts of each layer and of a token, for measurements of one kind of layers.

    Raises
    ------
    InputError
        If the LLM has layers of several kinds.
    """
    if len(architecture.kinds) > 1:
        names = ", ".join(kind.name for kind in architecture.kinds)
        raise InputError(
            f"has times of one kind of layers, but {architecture.name} has several ({names}); "
            "write a machine file with operators.kinds",
            file=folder,
        )
    experts = architecture.kinds[0].experts
    return None if experts is None else (experts.num_experts, experts.experts_per_token)

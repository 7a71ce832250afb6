"""Profiles from the data sheet of a GPU: for any pair, with nothing measured."""

from __future__ import annotations

from dataclasses import dataclass

from helixsim.errors import InputError
from helixsim.hardware.gpu import GpuMachine
from helixsim.llms.architecture import Architecture
from helixsim.profiles.operator_csv import DEFAULT_SKEW
from helixsim.profiles.roofline.constants import Constants, shipped_constants
from helixsim.profiles.roofline.tables import RooflineTables
from helixsim.profiles.sources.source import STEP_GAP_S, SourcedTables


@dataclass(frozen=True, slots=True)
class RooflineSource:
    """A :class:`~helixsim.profiles.sources.source.ProfileSource` that needs only a data sheet.

    Attributes
    ----------
    constants
        What GPUs reach, and how far off such figures were; None for the shipped ones.
    """

    constants: Constants | None = None

    def __call__(self, architecture: Architecture, machine: GpuMachine) -> SourcedTables:
        """The times.

        Raises
        ------
        InputError
            If this number of GPUs cannot share the layers.
        """
        constants = self.constants or shipped_constants()
        check_shares(architecture, machine)
        generation = constants.generation_of(machine.gpu)
        built = RooflineTables(architecture, machine, constants.efficiency, generation)
        tables = built.tables(decode_skew=DEFAULT_SKEW, step_gap_s=STEP_GAP_S)
        source = f"roofline from the data sheet of {machine.gpu.name}; {constants.accuracy}"
        return SourcedTables(tables, "roofline", source)


def check_shares(architecture: Architecture, machine: GpuMachine) -> None:
    """Refuse a number of GPUs among which the heads of a layer cannot be divided.

    Raises
    ------
    InputError
        With the numbers that are possible.
    """
    num_gpus = machine.num_gpus
    for kind in architecture.kinds:
        heads = kind.attention.num_heads
        if heads % num_gpus:
            possible = [str(count) for count in range(1, min(heads, 64) + 1) if heads % count == 0]
            raise InputError(
                f"{architecture.name} has {heads} attention heads, which {num_gpus} GPUs cannot "
                f"share evenly; possible are {', '.join(possible)}",
                where="gpus",
            )

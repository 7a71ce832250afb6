"""What every source of profiles answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from helixsim.hardware.gpu import GpuMachine
from helixsim.llms.architecture import Architecture
from helixsim.profiles.operators import OperatorTables

FiguresKind = Literal["measured", "tables", "roofline"]
"""``measured``: kernels that others measured; ``tables``: operator tables of the user;
``roofline``: reckoned from the data sheet."""


@dataclass(frozen=True, slots=True)
class SourcedTables:
    """Times of an LLM's operators on a machine, and what they stand on.

    Attributes
    ----------
    tables
        The times.
    kind
        What kind of figures they are.
    source
        A sentence: from what, which version.
    """

    tables: OperatorTables
    kind: FiguresKind
    source: str


class ProfileSource(Protocol):
    """Tells how long an LLM's operators take on a machine."""

    def __call__(self, architecture: Architecture, machine: GpuMachine) -> SourcedTables:
        """The times.

        Raises
        ------
        InputError
            If this source knows nothing of the pair; the message says what would.
        """
        ...

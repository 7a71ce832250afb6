"""What every source of profiles answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from helixsim.errors import InputError
from helixsim.hardware.gpu import GpuMachine
from helixsim.llms.architecture import Architecture
from helixsim.profiles.operators import OperatorTables

FiguresKind = Literal["measured", "tables", "roofline"]
"""``measured``: kernels that others measured; ``tables``: operator tables of the user;
``roofline``: reckoned from the data sheet."""

STEP_GAP_S = 100e-6
"""Time between two steps of vLLM in which the GPU waits, which times of operators do not have. With
it, a simulated run of vLLM 0.19 on an RTX 4090 keeps pace with the recorded one as long as both run
the same requests (27 s, 900 steps); without it, it gains 0.4 % of the time."""


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
    note
        Why these and not better ones, for the user; mostly empty.
    """

    tables: OperatorTables
    kind: FiguresKind
    source: str
    note: str = ""


class UnknownPairError(InputError):
    """A source has no times of an LLM on a machine.

    Parameters
    ----------
    reason
        Why.
    advice
        What the user can do.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


class ProfileSource(Protocol):
    """Tells how long an LLM's operators take on a machine."""

    def __call__(self, architecture: Architecture, machine: GpuMachine) -> SourcedTables:
        """The times.

        Raises
        ------
        UnknownPairError
            If this source knows nothing of the pair.
        InputError
            If what the user gave cannot be used.
        """
        ...

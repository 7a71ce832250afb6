"""A GPU by its data sheet, and a machine with several of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Interconnect = Literal["none", "pcie", "nvlink", "infinity-fabric", "ethernet"]
"""What joins the GPUs of a machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU, or another accelerator, by its data sheet.

    Attributes
    ----------
    name
        For scenarios, for example ``H100-SXM``.
    title
        The vendor's name of it.
    generation
        For example ``ampere``; GPUs of a generation share efficiencies.
    memory_bytes
        Its memory in bytes, as its driver reports it: 85e9 for the 80 GB of a data sheet.
    memory_bytes_per_s
        Bandwidth of its memory.
    flop_per_s
        Number format (``bf16``, ``fp16``, ``fp8``, ``int8``, ``nvfp4``...) -> peak of dense matrix
        products, without sparsity. A format that is missing is computed in a wider one.
    interconnect, interconnect_bytes_per_s
        What joins the GPUs of a machine, and the bandwidth of each GPU there, one direction.
    power_w
        Power limit of the board.
    dollars_per_hour
        A usual price; None if there is none.
    source
        Where the figures are from.
    """

    name: str
    title: str
    generation: str
    memory_bytes: float
    memory_bytes_per_s: float
    flop_per_s: Mapping[str, float] = field(default_factory=dict)
    interconnect: Interconnect = "pcie"
    interconnect_bytes_per_s: float = 0.0
    power_w: float | None = None
    dollars_per_hour: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class GpuMachine:
    """A machine with equal GPUs that share each layer (tensor parallelism).

    Attributes
    ----------
    gpu
        The GPUs.
    num_gpus
        How many.
    spread_experts
        Whether each GPU holds whole experts (expert parallelism), or a part of each.
    """

    gpu: Gpu
    num_gpus: int = 1
    spread_experts: bool = False

    @property
    def name(self) -> str:
        """Name of the machine type: ``H100-SXM``, ``H100-SXMx4``, ``H100-SXMx4-spread``."""
        if self.num_gpus == 1:
            return self.gpu.name
        return f"{self.gpu.name}x{self.num_gpus}{'-spread' * self.spread_experts}"

    @property
    def memory_bytes(self) -> float:
        """Memory of all GPUs."""
        return self.num_gpus * self.gpu.memory_bytes

"""The rates that one GPU reaches."""

from __future__ import annotations

from dataclasses import dataclass
from math import pow as power

from helixsim.hardware.gpu import Gpu
from helixsim.llms.architecture import NumberFormat
from helixsim.profiles.roofline.efficiency import Efficiency, GenerationEfficiency

_NARROW = ("fp8", "int8", "nvfp4")
"""Formats of weights that tensor cores multiply with activations of the same format. Others, and
these where the GPU has no peak for them, are turned into 16 bits before they are multiplied: only
their size counts."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one GPU reaches.

    Attributes
    ----------
    gpu
        Its data sheet.
    efficiency
        All constants.
    generation
        The constants of its generation.
    """

    gpu: Gpu
    efficiency: Efficiency
    generation: GenerationEfficiency

    @property
    def peak_flop_per_s(self) -> float:
        """Peak of the data sheet, in 16 bits."""
        peaks = self.gpu.flop_per_s
        return peaks.get("bf16") or peaks["fp16"]

    @property
    def bytes_per_s(self) -> float:
        """Memory bandwidth of the data sheet."""
        return self.gpu.memory_bytes_per_s

    def flop_per_s(self, weights: NumberFormat) -> float:
        """Rate of large matrix products with weights of this format.

        A board computes no faster than its power limit allows: an L4 of 72 W reaches 40 % of its
        peak, an RTX 4090 of 450 W with a similar peak nearly all of it.
        """
        wide = self.efficiency.peak_share * self.peak_flop_per_s
        per_joule, power_w = self.generation.flop_per_joule, self.gpu.power_w
        if per_joule is not None and power_w is not None:
            wide = min(wide, per_joule * power_w)
        peak = self.gpu.flop_per_s.get(weights.name) if weights.name in _NARROW else None
        if peak is None:
            return wide
        # The gain of a format whose peak is twice that of 16 bits; of another, in proportion.
        doublings = peak / self.peak_flop_per_s / 2
        return wide * max(1.0, self.generation.narrow_gain * doublings)

    def product_s(
        self, flop: float, num_bytes: float, flop_per_s: float, bytes_per_s: float
    ) -> float:
        """Seconds of a matrix product, with the rounded corner of the roofline."""
        corner = self.efficiency.corner
        compute_s, memory_s = flop / flop_per_s, num_bytes / bytes_per_s
        longer = max(compute_s, memory_s)
        if longer == 0:
            return 0.0
        shorter = min(compute_s, memory_s)
        return longer * power(1 + power(shorter / longer, corner), 1 / corner)

"""The file with the roofline's constants, and with the errors that its figures had.

`tests/tools/fit_roofline.py` writes it: constants fitted on some GPUs, errors of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from helixsim.hardware.gpu import Gpu
from helixsim.profiles.roofline.efficiency import (
    Efficiency,
    GenerationEfficiency,
    LinkEfficiency,
)
from helixsim.yaml_files import FileModel, located_error, read_yaml, validate

FILE = Path(__file__).parent / "constants.yaml"

UNMEASURED = "unmeasured"
"""Constants of generations that nothing was measured of."""

Positive = Annotated[float, Field(gt=0, strict=False)]
Share = Annotated[float, Field(gt=0, le=1, strict=False)]
NotNegative = Annotated[float, Field(ge=0, strict=False)]


class GenerationSpec(FileModel):
    """Constants of a generation; :class:`GenerationEfficiency` says what they are."""

    tflop_per_joule: Positive | None = None
    narrow_gain: Positive
    weight_share: Share
    attention_share: Share
    attention_us: NotNegative
    kv_share: Share
    kv_flop_share: Share
    expert_share: Share
    expert_weight_share: Share

    def to_value(self) -> GenerationEfficiency:
        """The constants, in SI units."""
        values = self.model_dump(exclude={"tflop_per_joule", "attention_us"})
        limit = self.tflop_per_joule
        return GenerationEfficiency(
            flop_per_joule=None if limit is None else limit * 1e12,
            attention_s=self.attention_us * 1e-6,
            **values,
        )


class LinkSpec(FileModel):
    """Constants of a kind of interconnect; :class:`LinkEfficiency` says what they are."""

    latency_us: NotNegative
    latency_per_gpu_us: NotNegative
    bandwidth_share: Share

    def to_value(self) -> LinkEfficiency:
        """The constants, in SI units."""
        return LinkEfficiency(
            latency_s=self.latency_us * 1e-6,
            latency_per_gpu_s=self.latency_per_gpu_us * 1e-6,
            bandwidth_share=self.bandwidth_share,
        )


class ErrorSpec(FileModel):
    """How far off the roofline was on one GPU, against one source of measurements."""

    gpu: str
    source: str
    set: Literal["fitted", "judged"]
    points: Annotated[int, Field(ge=1)]
    median: Annotated[float, Field(ge=0)] = Field(description="Median error, relative.")
    p90: Annotated[float, Field(ge=0)] = Field(description="90 % of points are closer.")
    within_30: Annotated[float, Field(ge=0, le=1)] = Field(
        description="Share of points with an error of at most 30 %."
    )


class ConstantsFile(FileModel):
    """The file."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["roofline"]
    peak_share: Share
    corner: Positive
    small_kernel_us: NotNegative
    matrix_us: NotNegative
    small_kernel_share: Share
    prefill_us: NotNegative
    expert_us: NotNegative
    expert_rows: NotNegative
    expert_inner: NotNegative
    sampler_us: NotNegative
    sampler_passes: Positive
    generations: dict[str, GenerationSpec]
    like: dict[str, str] = Field(description="Generation: the one whose constants it takes.")
    links: dict[str, LinkSpec]
    judged: ErrorSpec
    errors: Annotated[tuple[ErrorSpec, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in (UNMEASURED, *self.like.values()):
            if name not in self.generations:
                raise located_error("generations", f"has no {name}")
        if "pcie" not in self.links:
            raise located_error("links", "has no pcie")
        return self

    def to_efficiency(self) -> Efficiency:
        """The constants, in SI units."""
        return Efficiency(
            peak_share=self.peak_share,
            corner=self.corner,
            kernel_s=self.small_kernel_us * 1e-6,
            matrix_s=self.matrix_us * 1e-6,
            small_kernel_share=self.small_kernel_share,
            prefill_s=self.prefill_us * 1e-6,
            expert_s=self.expert_us * 1e-6,
            expert_rows=self.expert_rows,
            expert_inner=self.expert_inner,
            sampler_s=self.sampler_us * 1e-6,
            sampler_passes=self.sampler_passes,
            generations={name: spec.to_value() for name, spec in self.generations.items()},
            links={name: spec.to_value() for name, spec in self.links.items()},
        )


@dataclass(frozen=True, slots=True)
class Constants:
    """The constants, and how far off figures from them were.

    Attributes
    ----------
    file
        What the file says.
    efficiency
        Its constants in SI units.
    """

    file: ConstantsFile
    efficiency: Efficiency

    def generation_of(self, gpu: Gpu) -> str:
        """Name of the constants for a GPU."""
        name = self.file.like.get(gpu.generation, gpu.generation)
        return name if name in self.efficiency.generations else UNMEASURED

    @property
    def accuracy(self) -> str:
        """How far off such figures were, as a clause for messages."""
        judged = self.file.judged
        return (
            f"such figures were off by {100 * judged.median:.0f} % (median) and up to "
            f"{100 * judged.p90:.0f} % (90 % of points) on GPUs where they could be checked"
        )


def load_constants(file: Path = FILE) -> Constants:
    """Read the constants.

    Raises
    ------
    ScenarioError
        If the file has errors.
    """
    read = validate(ConstantsFile, read_yaml(file), file)
    return Constants(read, read.to_efficiency())


@cache
def shipped_constants() -> Constants:
    """The constants that ship with helixsim."""
    return load_constants()

"""Models of files with GPUs: the catalogue, and a GPU of the user."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from helixsim.hardware.gpu import Gpu, Interconnect
from helixsim.yaml_files import Bytes, BytesPerSecond, FileModel, located_error

Positive = Annotated[float, Field(gt=0, strict=False)]
PeakFormat = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "mxfp4", "nvfp4"]
Generation = Literal[
    "volta", "turing", "ampere", "ada", "hopper", "blackwell", "blackwell-rtx",
    "cdna2", "cdna3", "cdna4", "gaudi2", "gaudi3", "unknown",
]  # fmt: skip
_TERA = 1e12


class InterconnectSpec(FileModel):
    """What joins the GPUs of a machine."""

    kind: Interconnect = "pcie"
    bandwidth: BytesPerSecond = Field(description="Bandwidth of each GPU, one direction.")


class GpuSpec(FileModel):
    """A GPU by its data sheet."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    title: str = Field(default="", description="The vendor's name of it. Default: `name`.")
    generation: Generation = Field(
        default="unknown", description="GPUs of a generation share efficiencies."
    )
    memory: Bytes = Field(description="Its memory, as the driver reports it.")
    bandwidth: BytesPerSecond = Field(description="Bandwidth of its memory.")
    peak_tflops: Annotated[dict[PeakFormat, Positive], Field(min_length=1)] = Field(
        description="Number format: peak of dense matrix products, in 10^12 FLOP/s. bf16 or fp16 "
        "is needed; products in a format that is missing run in a wider one."
    )
    interconnect: InterconnectSpec = Field(
        default=InterconnectSpec(kind="pcie", bandwidth=32e9),
        description="What joins the GPUs of a machine. Default: PCIe 4.0 x16.",
    )
    power_w: Positive | None = Field(default=None, description="Power limit of the board, in W.")
    dollars_per_hour: Positive | None = Field(
        default=None, description="A usual price of one GPU: an order of magnitude."
    )
    source: str = Field(default="", description="Title and year of the data sheet.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not {"bf16", "fp16"} & set(self.peak_tflops):
            raise located_error("peak_tflops", "give the peak of bf16 or of fp16")
        for key in ("memory", "bandwidth"):
            if getattr(self, key) == 0:
                raise located_error(key, "must be above zero")
        return self

    def to_gpu(self) -> Gpu:
        """Turn the entry into the value that helixsim works with."""
        return Gpu(
            name=self.name,
            title=self.title or self.name,
            generation=self.generation,
            memory_bytes=self.memory,
            memory_bytes_per_s=self.bandwidth,
            flop_per_s={form: peak * _TERA for form, peak in self.peak_tflops.items()},
            interconnect=self.interconnect.kind,
            interconnect_bytes_per_s=self.interconnect.bandwidth,
            power_w=self.power_w,
            dollars_per_hour=self.dollars_per_hour,
            source=self.source,
        )


class GpuFile(GpuSpec):
    """A file with a GPU of the user."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["gpu"]


class CatalogueGpu(GpuSpec):
    """A GPU of the catalogue."""

    aliases: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="Further names, such as the one that the driver prints."
    )


class CatalogueFile(FileModel):
    """The file with all GPUs that ship with helixsim."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["gpus"]
    price_year: int = Field(ge=2020, le=2100, description="Year of the prices.")
    gpus: Annotated[tuple[CatalogueGpu, ...], Field(strict=False, min_length=1)]

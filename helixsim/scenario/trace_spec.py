"""The keys of `workload.trace`: a file of requests, and how its times are used."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from helixsim.scenario.keys import Duration, ExtensionName, FileName
from helixsim.yaml_files import FileModel, Seconds

FILL = "fill"
"""Value of `repeat`: as often as the run's duration needs."""


class TraceSpec(FileModel):
    """A file of requests with arrival times, and how these are used."""

    file: FileName = Field(description="The file, relative to the scenario's folder.")
    format: ExtensionName | None = Field(
        default=None,
        description="[Format](traces.md#file-formats) of the file. If not given, its columns tell.",
    )
    time_unit: Literal["s", "ms", "us", "ns"] | None = Field(
        default=None, description="Unit of its times, if other than in the format."
    )
    start: Annotated[Seconds, Field(ge=0)] = Field(
        default=0.0,
        description="Requests before this time are left out. Times count from the first request.",
    )
    cut: Duration | None = Field(
        default=None, description="Length of the part that is used; all if not given."
    )
    repeat: Annotated[int, Field(ge=1, le=10_000)] | Literal["fill"] = Field(
        default=1,
        description="How often that part comes in all; `fill`: until the run's duration is filled.",
    )
    scale: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None,
        description="Factor on the arrival rate, as `rate_scale`; it divides times after `start`, "
        "`cut` and `repeat`, which are times of the file.",
    )


def _shape(value: object) -> str:
    return "<name>" if isinstance(value, str) else "<trace>"


TraceEntry = Annotated[
    Annotated[FileName, Tag("<name>")] | Annotated[TraceSpec, Tag("<trace>")],
    Discriminator(_shape),
]
"""The name of a file, or keys."""


def whole_trace_spec(
    entry: str | TraceSpec, *, rate_scale: float, trace_format: str | None
) -> TraceSpec:
    """The keys of a trace, with the keys of the section `workload` that are about it."""
    spec = TraceSpec(file=entry) if isinstance(entry, str) else entry
    changes = {
        "format": spec.format or trace_format,
        "scale": rate_scale if spec.scale is None else spec.scale,
    }
    return spec.model_copy(update=changes)

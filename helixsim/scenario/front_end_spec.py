"""The keys of a cluster's coordinator, or of its several front ends, and their conversion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from helixsim.cluster import COORDINATOR, FrontEnd, Nic
from helixsim.profiles.spec import Name
from helixsim.yaml_files import BytesPerSecond, FileModel

DEFAULT_REGION = "default"
RESERVED_NAMES = ("source", "sink")
"""Names that no machine may have."""
_MOST_FRONT_ENDS = 1000
_ROUNDING = 1e-6


def shape(value: object) -> str:
    """Whether a value is one entry or has parts, to tell the alternatives of a key apart."""
    return "<parts>" if isinstance(value, dict | FileModel) else "<one>"


Bandwidth = Annotated[BytesPerSecond, Field(gt=0)]


class NicSpec(FileModel):
    """A network interface whose directions differ."""

    inbound: Bandwidth
    outbound: Bandwidth


NicEntry = Annotated[
    Annotated[Bandwidth, Tag("<one>")] | Annotated[NicSpec, Tag("<parts>")], Discriminator(shape)
]
"""One bandwidth for both directions, or one for each."""


def to_nic(entry: float | NicSpec) -> Nic:
    """Turn it into a value."""
    if isinstance(entry, NicSpec):
        return Nic(entry.inbound, entry.outbound)
    return Nic(entry, entry)


class CoordinatorSpec(FileModel):
    """A front end: where the routes of its requests start and end. The first is the coordinator."""

    nic: NicEntry
    region: Name = DEFAULT_REGION
    name: Name | None = Field(
        default=None,
        description="Its name, as an end of links. Default: `coordinator`; with several front "
        "ends, `front-end-` and the region.",
    )
    share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Share of the requests that enter here, above 0. Default: equal shares.",
    )


def _number(value: object) -> str:
    return "<several>" if isinstance(value, list | tuple) else "<parts>"


CoordinatorEntry = Annotated[
    Annotated[CoordinatorSpec, Tag("<parts>")]
    | Annotated[
        tuple[CoordinatorSpec, ...],
        Field(strict=False, min_length=1, max_length=_MOST_FRONT_ENDS),
        Tag("<several>"),
    ],
    Discriminator(_number),
]
"""The coordinator, or a list of front ends, of which the first is the coordinator."""


def to_front_ends(entry: CoordinatorSpec | tuple[CoordinatorSpec, ...]) -> tuple[FrontEnd, ...]:
    """Turn the coordinator, or the list of front ends, into values."""
    specs = (entry,) if isinstance(entry, CoordinatorSpec) else entry
    equal = 1 / len(specs)
    return tuple(
        FrontEnd(
            nic=to_nic(spec.nic),
            region=spec.region,
            name=spec.name or (COORDINATOR if len(specs) == 1 else f"front-end-{spec.region}"),
            share=equal if spec.share is None else spec.share,
        )
        for spec in specs
    )


def front_end_mistakes(
    entry: CoordinatorSpec | tuple[CoordinatorSpec, ...],
) -> Iterator[tuple[str, str]]:
    """Places and messages of what is wrong with the front ends taken together."""
    where = "coordinator"
    if isinstance(entry, CoordinatorSpec):
        if entry.share not in (None, 1):
            yield f"{where}.share", "a single front end has all requests: a share of 1, or none"
        if entry.name in RESERVED_NAMES:
            yield f"{where}.name", f"'{entry.name}' is reserved"
        return
    shares = [spec.share for spec in entry]
    if None in shares and any(share is not None for share in shares):
        yield where, "give a share to every front end, or to none for equal shares"
    total = sum(share for share in shares if share is not None)
    if None not in shares and abs(total - 1) > _ROUNDING:
        yield where, f"the shares of the front ends add up to {total:g}, not to 1"
    seen: set[str] = set()
    for index, front_end in enumerate(to_front_ends(entry)):
        if front_end.name in RESERVED_NAMES:
            yield f"{where}[{index}].name", f"'{front_end.name}' is reserved"
        if front_end.name == COORDINATOR and index:
            yield (
                f"{where}[{index}].name",
                f"'{COORDINATOR}' always stands for the first front end; give another name",
            )
        if front_end.name in seen:
            yield (
                f"{where}[{index}].name",
                f"duplicate front end '{front_end.name}'; give each a name of its own",
            )
        seen.add(front_end.name)

"""Models of measured curves in machine files, and parts that all models of measurements share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Self

from pydantic import Field, model_validator

from helixsim.errors import InputError
from helixsim.profiles.machine import LatencyProfile
from helixsim.profiles.operators import OperatorCurve
from helixsim.units import seconds_from_ms
from helixsim.yaml_files import FileModel, located_error

_MAX_POINTS = 100_000
_MAX_CELLS = 1_000_000

Points = Annotated[
    tuple[Annotated[int, Field(ge=0, le=2**53)], ...],
    Field(strict=False, max_length=_MAX_POINTS),
]
"""Points of an axis of a measurement."""
Times = Annotated[
    tuple[Annotated[float, Field(le=1e6)], ...], Field(strict=False, max_length=_MAX_CELLS)
]
"""Measured milliseconds."""


def seconds_of(ms: tuple[float, ...]) -> tuple[float, ...]:
    """Turn measured times into seconds."""
    return tuple(map(seconds_from_ms, ms))


def check_located(build: Callable[[], object]) -> None:
    """Report an error of a value at its place in the file, where times are called ``ms``."""
    try:
        build()
    except InputError as error:
        where = (error.where or "").replace("seconds", "ms")
        raise located_error(where, error.message) from error


class CurveSpec(FileModel):
    """Measured time of one layer, in milliseconds, as a function of the batched tokens."""

    tokens: Points
    ms: Times

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_located(self.to_profile)
        return self

    def to_profile(self) -> LatencyProfile:
        """Turn the columns into a profile in seconds."""
        return LatencyProfile(self.tokens, seconds_of(self.ms))


class OperatorCurveSpec(FileModel):
    """Measured time of operators, in milliseconds, by tokens or by sequences."""

    tokens: Points = Field(
        description="Tokens in one batch, increasing; for `head`, sequences. Below the first "
        "point, its time holds; beyond the last, the line through the points at half the last "
        "and at the last is extrapolated."
    )
    ms: Times = Field(description="Milliseconds at each point; linear interpolation in between.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_located(self.to_curve)
        return self

    def to_curve(self) -> OperatorCurve:
        """Turn the columns into a curve in seconds."""
        return OperatorCurve(self.tokens, seconds_of(self.ms))

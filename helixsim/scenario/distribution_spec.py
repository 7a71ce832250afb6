"""Distributions of whole numbers and of times, as keys of a scenario file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Discriminator, Field, Tag, model_validator

from helixsim.errors import InputError
from helixsim.profiles.spec import Count
from helixsim.scenario.keys import FileName
from helixsim.traces.distributions import (
    Distribution,
    Empirical,
    Fixed,
    Times,
    Uniform,
    lognormal_of_mean,
    lognormal_of_median,
)
from helixsim.traces.number_files import read_numbers
from helixsim.yaml_files import FileModel, Seconds, located_error

_Positive = Annotated[float, Field(gt=0, le=1e9)]
Cv = Annotated[float, Field(ge=0, le=20)]

_FORMS = (
    ("mean", "cv"),
    ("mean", "p95"),
    ("median", "p95"),
    ("values",),
    ("file",),
    ("file", "column"),
    (),
)
_HOW = (
    "give a number, {mean, cv}, {mean, p95}, {median, p95}, {min, max}, {values}, or {file}, with "
    "min and max as limits"
)


class DistributionSpec(FileModel):
    """A distribution of whole numbers."""

    mean: _Positive | None = Field(
        default=None,
        description="Mean of what is drawn, with `cv` or `p95`: a lognormal distribution. `min` "
        "and `max` do not change it.",
    )
    cv: Cv | None = Field(
        default=None, description="Standard deviation over the mean; 0 for no spread."
    )
    median: _Positive | None = Field(
        default=None, description="With `p95`: a lognormal distribution, before `min` and `max`."
    )
    p95: _Positive | None = Field(
        default=None,
        description="95 % are at most this, before `min` and `max`; at most 3.86 times the mean.",
    )
    min: Count | None = Field(
        default=None, description="Smaller numbers are not drawn. Alone with `max`: uniform."
    )
    max: Count | None = Field(default=None, description="Larger numbers are not drawn.")
    values: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="Numbers of which each is equally likely."
    )
    file: FileName | None = Field(
        default=None, description="A CSV file of such numbers, with a header; also as gzip."
    )
    column: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="Name of its column; needed if it has several."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {name for form in _FORMS for name in form if getattr(self, name) is not None}
        if not any(given == set(form) for form in _FORMS):
            raise ValueError(f"{_HOW}; these keys do not go together: {', '.join(sorted(given))}")
        if not given and (self.min is None or self.max is None):
            raise ValueError(_HOW)
        if self.min is not None and self.max is not None and self.min > self.max:
            raise located_error("min", f"{self.min} is above the max of {self.max}")
        return self


def _shape(value: object) -> str:
    return "<distribution>" if isinstance(value, dict | DistributionSpec) else "<number>"


Numbers = Annotated[
    Annotated[Count, Tag("<number>")] | Annotated[DistributionSpec, Tag("<distribution>")],
    Discriminator(_shape),
]
"""A whole number, or a distribution."""


class TimesSpec(FileModel):
    """A lognormal distribution of times."""

    mean: Seconds = Field(description="Mean.")
    cv: Cv = Field(description="Standard deviation over the mean.")


def _times_shape(value: object) -> str:
    return "<distribution>" if isinstance(value, dict | TimesSpec) else "<time>"


TimesEntry = Annotated[
    Annotated[Seconds, Tag("<time>")] | Annotated[TimesSpec, Tag("<distribution>")],
    Discriminator(_times_shape),
]
"""A time, or a distribution of times."""


def to_distribution(entry: int | DistributionSpec, folder: Path) -> Distribution:
    """Turn a key into a value.

    Parameters
    ----------
    entry
        A number, or the keys of a distribution.
    folder
        The folder that its file is relative to.

    Raises
    ------
    InputError
        If there is no such distribution, or its file cannot be used.
    """
    if isinstance(entry, int):
        return Fixed(entry)
    if entry.mean is not None:
        return lognormal_of_mean(
            entry.mean, cv=entry.cv, p95=entry.p95, low=entry.min or 1, high=entry.max
        )
    if entry.median is not None and entry.p95 is not None:
        return lognormal_of_median(entry.median, entry.p95, low=entry.min or 1, high=entry.max)
    if entry.values is not None:
        return Empirical(entry.values).limited(entry.min, entry.max)
    if entry.file is not None:
        numbers = read_numbers(folder / entry.file, entry.column)
        return Empirical(numbers, entry.file).limited(entry.min, entry.max)
    if entry.min is None or entry.max is None:
        raise InputError(_HOW)
    return Uniform(entry.min, entry.max)


def to_times(entry: float | TimesSpec) -> Times:
    """Turn a key into a value."""
    return Times(entry.mean, entry.cv) if isinstance(entry, TimesSpec) else Times(entry)

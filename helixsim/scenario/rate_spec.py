"""Rates of arrival, as keys of a scenario file: constant, daily, stepped, with bursts."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Discriminator, Field, Tag, model_validator

from helixsim.scenario.keys import Duration
from helixsim.traces.rates import (
    DAY_S,
    ConstantRate,
    DailyRate,
    Rate,
    SteppedRate,
    bursts,
)
from helixsim.yaml_files import FileModel, Seconds, located_error

_PerSecond = Annotated[float, Field(gt=0, le=1e6)]


class DailySpec(FileModel):
    """Rise and fall of a rate, once a day."""

    peak_at: Seconds = Field(description="Time of day at which the rate is highest.")
    low_share: Annotated[float, Field(ge=0, le=1)] = Field(
        description="The lowest rate, half a day later, over the highest."
    )
    starts_at: Seconds = Field(
        default=0.0, description="Time of day at which load generation starts."
    )
    period: Duration = Field(default=DAY_S, description="Length of a day.")


class DailyRateSpec(FileModel):
    """A rate that rises and falls smoothly once a day."""

    mean: _PerSecond = Field(description="Requests per second, on average over a whole day.")
    daily: DailySpec = Field(description="When it is highest, and how low it gets.")


class SteppedRateSpec(FileModel):
    """A rate that changes at given times."""

    steps: Annotated[
        tuple[
            Annotated[tuple[Seconds, Annotated[float, Field(ge=0, le=1e6)]], Field(strict=False)],
            ...,
        ],
        Field(strict=False, min_length=1),
    ] = Field(
        description="Times from the start of load generation, the first of which is `0 s`, and the "
        "requests per second from each of them on."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        times = [at_s for at_s, _ in self.steps]
        if times[0] != 0:
            raise located_error("steps", "the first step begins at 0 s")
        if any(at_s >= after_s for at_s, after_s in pairwise(times)):
            raise located_error("steps", "each step begins after the one before it")
        if not any(rate for _, rate in self.steps):
            raise located_error("steps", "at least one rate must be above 0")
        return self


class BurstsSpec(FileModel):
    """Bursts of arrivals."""

    every: Duration = Field(description="Time from one burst to the next.")
    length: Duration = Field(
        description="Length of a burst, which ends each `every`; shorter than that."
    )
    factor: Annotated[float, Field(gt=0, le=1e4)] = Field(
        description="Rate in a burst over the base rate."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.length >= self.every:
            raise located_error("length", f"a burst must be shorter than {self.every:g} s, `every`")
        return self


class BurstRateSpec(FileModel):
    """A rate with bursts."""

    base: _PerSecond = Field(description="Requests per second between bursts.")
    bursts: BurstsSpec = Field(description="How often, how long and how high bursts are.")


def _shape(value: object) -> str:
    known = (("steps", SteppedRateSpec), ("bursts", BurstRateSpec), ("daily", DailyRateSpec))
    for key, model in known:
        if isinstance(value, model) or (isinstance(value, dict) and key in value):
            return f"<{key}>"
    return "<daily>" if isinstance(value, dict) else "<number>"


RateEntry = Annotated[
    Annotated[_PerSecond, Tag("<number>")]
    | Annotated[DailyRateSpec, Tag("<daily>")]
    | Annotated[SteppedRateSpec, Tag("<steps>")]
    | Annotated[BurstRateSpec, Tag("<bursts>")],
    Discriminator(_shape),
]
"""Requests per second: a number, or a rate that varies."""


def to_rate(entry: float | DailyRateSpec | SteppedRateSpec | BurstRateSpec) -> Rate:
    """Turn a key into a value."""
    match entry:
        case DailyRateSpec(mean=mean, daily=daily):
            return DailyRate(mean, daily.peak_at, daily.low_share, daily.starts_at, daily.period)
        case SteppedRateSpec(steps=steps):
            return SteppedRate(steps)
        case BurstRateSpec(base=base, bursts=burst):
            return bursts(base, burst.every, burst.length, burst.factor)
        case _:
            return ConstantRate(entry)

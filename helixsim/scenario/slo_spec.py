"""Service-level objectives and prices in a scenario file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from helixsim.scenario.resolved import Slo
from helixsim.yaml_files import FileModel, Seconds, did_you_mean

_Limit = Annotated[Seconds, Field(gt=0, le=1e7)]

Price = Annotated[float, Field(ge=0, le=1e6)]
"""Dollars per hour of one machine."""


class SloSpec(FileModel):
    """Latency limits of requests, and the share that must be within them."""

    ttft: _Limit | None = Field(
        default=None, description="Longest time to the first token, from arrival."
    )
    tpot: _Limit | None = Field(
        default=None, description="Longest mean time per output token after the first."
    )
    e2e: _Limit | None = Field(
        default=None, description="Longest time from arrival to the last token."
    )
    share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Share of the finished requests that must meet all limits; if given, results "
        "state whether it was reached.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ttft is None and self.tpot is None and self.e2e is None:
            raise ValueError("give at least one limit: ttft, tpot or e2e, such as ttft: 5 s")
        return self


def to_slos(classes: Mapping[str, SloSpec]) -> tuple[Slo, ...]:
    """Turn the section into values, in order of their names."""
    return tuple(
        Slo(name=name, ttft_s=spec.ttft, tpot_s=spec.tpot, e2e_s=spec.e2e, share=spec.share)
        for name, spec in sorted(classes.items())
    )


def price_mistakes(
    prices: Mapping[str, float], used: Iterable[str], known: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Find errors in prices: machine types, and messages.

    Parameters
    ----------
    prices
        Machine type -> dollars per hour.
    used
        Machine types of the cluster. If one of them has a price, all must have one.
    known
        All known machine types.
    """
    known = tuple(known)
    for name in prices:
        if name not in known:
            yield name, f"no machine type '{name}'; {did_you_mean(name, known)}"
    for name in used if prices else ():
        if name not in prices:
            yield name, "this key is missing: the cluster has such machines (0 if they are free)"

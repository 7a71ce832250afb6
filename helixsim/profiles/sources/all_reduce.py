"""All-reduces of the user's own machine, instead of the ones in the tables."""

from __future__ import annotations

from dataclasses import replace

from helixsim.errors import InputError
from helixsim.profiles.sources.source import SourcedTables
from helixsim.units import bytes_per_s, seconds


def with_all_reduce(
    sourced: SourcedTables, latency: str | None, bandwidth: str | None
) -> SourcedTables:
    """The tables with other all-reduces.

    How the GPUs of a machine are joined differs between machines with the same GPUs: without direct
    access to each other's memory over PCIe, an all-reduce takes many times longer.

    Parameters
    ----------
    sourced
        The tables.
    latency, bandwidth
        With units; None to keep the tables' own.

    Raises
    ------
    InputError
        If a value is not a quantity above zero, or the machine has one GPU.
    """
    if latency is None and bandwidth is None:
        return sourced
    known = sourced.tables.all_reduce
    if known is None:
        raise InputError("a machine with one GPU has no all-reduces", where="--all-reduce-latency")
    changed = replace(
        known,
        latency_s=known.latency_s if latency is None else seconds(latency),
        bytes_per_s=known.bytes_per_s if bandwidth is None else bytes_per_s(bandwidth),
    )
    if not changed.bytes_per_s:
        raise InputError("must be above zero", where="--all-reduce-bandwidth")
    given = ", ".join(text for text in (latency, bandwidth) if text is not None)
    return replace(
        sourced,
        tables=replace(sourced.tables, all_reduce=changed),
        source=f"{sourced.source}; all-reduces of the user: {given}",
    )

"""Cost and energy of a run's cluster, and of the tokens that it served."""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario

_SECONDS_PER_HOUR = 3600.0
_WATTS_PER_KILOWATT = 1000.0


def cost(
    scenario: Scenario, output_tokens_per_s: float, total_tokens_per_s: float
) -> dict[str, float | str | None] | None:
    """Cost of the cluster, all its machines, and of tokens at these rates.

    Returns
    -------
    dict or None
        The summary's ``cost``: dollars per hour and per million tokens, None for the latter
        where there were no tokens; and whether the scenario gives the ``prices``, or the machine
        types do (``usual``). None if a machine type has no price.
    """
    per_hour = _of_all_machines(scenario, scenario.dollars_per_hour)
    if per_hour is None:
        return None
    own = scenario.document.get("dollars_per_hour")
    given = isinstance(own, Mapping) and own.keys() >= scenario.cluster.machine_mix().keys()
    return {
        "prices": "given" if given else "usual",
        "dollars_per_hour": per_hour,
        "dollars_per_million_output_tokens": _per_million(per_hour, output_tokens_per_s),
        "dollars_per_million_total_tokens": _per_million(per_hour, total_tokens_per_s),
    }


def energy(
    scenario: Scenario, output_tokens_per_s: float, total_tokens_per_s: float
) -> dict[str, float | None] | None:
    """Power of the cluster, all its machines all the time, and energy of tokens at these rates.

    Returns
    -------
    dict or None
        The summary's ``energy``: kilowatts, and kWh per million tokens, None for the latter where
        there were no tokens. None if the power of a machine type is not known.
    """
    watts = _of_all_machines(scenario, scenario.watts)
    if watts is None:
        return None
    kilowatts = watts / _WATTS_PER_KILOWATT
    return {
        "kilowatts": kilowatts,
        "kwh_per_million_output_tokens": _per_million(kilowatts, output_tokens_per_s),
        "kwh_per_million_total_tokens": _per_million(kilowatts, total_tokens_per_s),
    }


def missing_types(scenario: Scenario, each: Mapping[str, float]) -> list[str]:
    """Machine types of the cluster that lack a figure, such as a price."""
    return [name for name in scenario.cluster.machine_mix() if name not in each]


def _of_all_machines(scenario: Scenario, each: Mapping[str, float]) -> float | None:
    """Sum of a figure of each machine type over all machines, idle ones too."""
    if missing_types(scenario, each):
        return None
    mix = scenario.cluster.machine_mix()
    return fsum(each[name] * count for name, count in mix.items())


def _per_million(per_hour: float, tokens_per_s: float) -> float | None:
    return per_hour / _SECONDS_PER_HOUR / tokens_per_s * 1e6 if tokens_per_s else None

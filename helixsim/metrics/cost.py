"""Cost of a run."""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario

_SECONDS_PER_HOUR = 3600.0


def cost(
    scenario: Scenario, output_tokens_per_s: float, total_tokens_per_s: float
) -> dict[str, float | None] | None:
    """Cost of the cluster, all its machines, and of tokens at these rates.

    Returns
    -------
    dict or None
        The summary's ``cost``: dollars per hour and per million tokens, None for the latter
        where there were no tokens. None if the scenario has no prices.
    """
    prices = scenario.dollars_per_hour
    if not prices:
        return None
    mix = scenario.cluster.machine_mix()
    per_hour = fsum(prices[name] * count for name, count in mix.items())

    def per_million(tokens_per_s: float) -> float | None:
        return per_hour / _SECONDS_PER_HOUR / tokens_per_s * 1e6 if tokens_per_s else None

    return {
        "dollars_per_hour": per_hour,
        "dollars_per_million_output_tokens": per_million(output_tokens_per_s),
        "dollars_per_million_total_tokens": per_million(total_tokens_per_s),
    }

"""Machines that serve nothing, and machine types without a price or power, as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from math import fsum
from typing import TYPE_CHECKING

from helixsim.display import shortened
from helixsim.metrics.costs import missing_types

if TYPE_CHECKING:
    from helixsim.metrics.gauges import MeasuredRun


def idle_machines(run: MeasuredRun) -> Iterator[str]:
    """Name the machines through which no request went, though requests were completed.

    They have no layers, or no route leads over them, or the policy never took them.
    """
    if not run.recorder.num_completed:
        return
    served = run.recorder.nodes_of_routes
    busy = {
        placed.name
        for placed, gauges in zip(run.topology.nodes, run.nodes, strict=True)
        if placed.index in served or gauges.num_batches
    }
    cluster, prices = run.scenario.cluster, run.scenario.dollars_per_hour
    idle = [node for node in cluster if node.name not in busy]
    if not idle:
        return
    facts = f"{len(idle)} of {len(cluster)} machines"
    if all(node.machine_type in prices for node in idle):
        facts += f", {fsum(prices[node.machine_type] for node in idle):.2f} $/h"
    yield f"no request passed {shortened([node.name for node in idle])} ({facts})"


def missing_figures(run: MeasuredRun) -> Iterator[str]:
    """Say why there are no costs or no energy where only some machine types have a figure."""
    scenario = run.scenario
    for known, what, key in (
        (scenario.dollars_per_hour, "no costs: no price", "dollars_per_hour"),
        (scenario.watts, "no energy: no power", "watts"),
    ):
        missing = missing_types(scenario, known)
        if 0 < len(missing) < len(scenario.cluster.machine_mix()):
            yield f"{what} of {', '.join(missing)}; give {key}"

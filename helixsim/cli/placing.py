"""Scenarios for commands that need a placement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario


def load_placed_scenario(file: str, overrides: Sequence[str]) -> Scenario:
    """Load a scenario; where it has no placement, give it one by a rule, and say so."""
    from helixsim.scenario.load import load_scenario

    scenario = load_scenario(file, overrides)
    if scenario.placement is not None:
        return scenario
    from helixsim.planner.place import place

    placed = place(scenario)
    assert placed.placement is not None
    held = ", ".join(
        f"{name} {start}-{end}" for name, (start, end) in placed.placement.layers.items()
    )
    typer.echo(
        f"note: the scenario has no placement; a simple rule gives: {held} (helixsim plan searches "
        "for a better one)",
        err=True,
    )
    return placed

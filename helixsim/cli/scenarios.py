"""Commands that take a scenario."""

from __future__ import annotations

import typer

from helixsim.cli.group import ScenarioArgument, SetOption


def validate(file: ScenarioArgument, overrides: SetOption = None) -> None:
    """Check a scenario and all files that it names, and print an overview.

    Without a placement, that the machines can hold the LLM, too.
    """
    from helixsim.scenario.load import load_scenario
    from helixsim.scenario.scenario_text import scenario_rows

    scenario = load_scenario(file, overrides or [])
    if scenario.placement is None:
        from helixsim.planner.place import place

        place(scenario)
    for title, text in scenario_rows(scenario):
        typer.echo(f"{title:<10} {text}")

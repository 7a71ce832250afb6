"""Explain a placement: what binds it, and what one change would give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helixsim.cli.group import EXIT_INTERRUPTED, ForceOption, ScenarioArgument, SetOption
from helixsim.cli.placing import load_placed_scenario
from helixsim.cli.progress import ShowProgress, polled, show_progress

if TYPE_CHECKING:
    from helixsim.models.simulation import Simulation
    from helixsim.studies.explain_result import Explanation

_JSON = ".json"


def explain(
    file: ScenarioArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write: .png, .svg, .html or .json."),
    ] = None,
    goal: Annotated[
        str | None,
        typer.Option(
            metavar="FIGURE",
            help="Figure to improve: decode_tokens_per_s, ttft_s.p95, tpot_s.p95 or e2e_s.p95. "
            "[default: by the load]",
        ),
    ] = None,
    simulate: Annotated[
        int, typer.Option(min=0, max=100, help="Changes to check by a simulation each.")
    ] = 3,
    overrides: SetOption = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the explanation as JSON, and nothing else.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Simulate a placement once, and say what binds it and what one change would give."""
    from helixsim.output_files import check_output
    from helixsim.studies.explain import Progress
    from helixsim.studies.explain import explain as explaining
    from helixsim.studies.explain_goal import parse_goal
    from helixsim.studies.explain_text import explanation_text

    if output is not None:
        _check_suffix(output)
        check_output(output, overwrite=force)
    if goal is not None:
        parse_goal(goal)
    scenario = load_placed_scenario(file, overrides or [])
    with show_progress(f"explains {scenario.name}") as show:
        watch = _Watch(show)
        with polled(watch.look):
            explanation = explaining(
                scenario,
                goal=goal,
                simulated=simulate,
                progress=Progress(watch.on_step, watch.on_simulation),
            )
    if output is not None:
        _write(explanation, output, force=force)
    typer.echo(
        json.dumps(explanation.to_json(), indent=2) if as_json else explanation_text(explanation)
    )
    if explanation.interrupted:
        typer.echo("interrupted: this is what was known by then", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)


class _Watch:
    """Shows steps, and the time of the simulation that runs."""

    def __init__(self, show: ShowProgress) -> None:
        self._show = show
        self._step = ""
        self._running: Simulation | None = None

    def on_step(self, step: str, done: float, total: float) -> None:
        self._step, self._running = step, None
        self._show(done, total, step=step, figures=f"{done:,.0f} of {total:,.0f}")

    def on_simulation(self, simulation: Simulation) -> None:
        self._running = simulation

    def look(self) -> None:
        if (running := self._running) is None:
            return
        total_s = running.end_s - running.start_s
        passed_s = min(max(running.now - running.start_s, 0.0), total_s)
        figures = f"{passed_s:,.0f} of {total_s:,.0f} s"
        self._show(passed_s, total_s, step=self._step, figures=figures)


def _check_suffix(output: Path) -> None:
    from helixsim.drawing.save import SUFFIXES
    from helixsim.errors import OutputError

    if output.suffix.lower() not in (*SUFFIXES, _JSON):
        raise OutputError(
            f"{output}: the suffix selects the format: {', '.join(SUFFIXES)} for a picture, "
            f"{_JSON} for all figures"
        )


def _write(explanation: Explanation, output: Path, *, force: bool) -> None:
    from helixsim.drawing.explanation import explanation_figure
    from helixsim.drawing.save import save_drawing
    from helixsim.output_files import write_whole

    if output.suffix.lower() == _JSON:
        text = json.dumps(explanation.to_json(), indent=2) + "\n"
        write_whole(output, text, overwrite=force)
    else:
        save_drawing(explanation_figure(explanation), output, overwrite=force)

"""The main job: simulate a scenario."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from helixsim.cli.group import EXIT_INTERRUPTED, ScenarioArgument, SetOption

if TYPE_CHECKING:
    from helixsim.simulation import Simulation, Watcher

_PROGRESS_STEPS = 200


def run(
    file: ScenarioArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for the results."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63, help="Instead of the scenario's.")
    ] = None,
    overrides: SetOption = None,
    record: Annotated[
        Literal["iterations"] | None,
        typer.Option(help="Also keep a row for every pass of every request."),
    ] = None,
    table_format: Annotated[
        Literal["parquet", "csv"], typer.Option("--format", help="Of the tables.")
    ] = "parquet",
    watch: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Print the status every so much simulated time."),
    ] = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, and nothing else.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace results that are in DIR.")
    ] = False,
) -> None:
    """Simulate a scenario and say what came of it."""
    import json

    from helixsim.errors import InputError
    from helixsim.metrics.output import check_folder, write_result
    from helixsim.metrics.text import status_text, summary_text
    from helixsim.scenario.load import load_scenario
    from helixsim.simulation import Simulation, Watcher
    from helixsim.units import seconds

    if output is not None:
        check_folder(output, overwrite=force)
    elif record is not None:
        raise InputError("--record needs a folder to write to: add --output DIR")
    seeded = [*(overrides or []), *([] if seed is None else [f"run.seed={seed}"])]
    scenario = load_scenario(file, seeded)
    watchers: list[Watcher] = []
    if watch is not None:
        every_s = seconds(watch)
        if every_s <= 0:
            raise InputError(f"--watch '{watch}': must be more than no time, such as '30 s'")
        watchers.append(
            Watcher(every_s, lambda running: typer.echo(status_text(running), err=True))
        )
    simulation = Simulation(scenario, record_iterations=record is not None)
    with _progress(simulation) as progress:
        result = simulation.run((*watchers, *progress))
    if output is not None:
        write_result(result, output, table_format=table_format, overwrite=force)
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2))
    else:
        typer.echo(summary_text(result.summary))
        if output is not None:
            typer.echo(f"results in {output}")
    if result.summary["partial"]:
        typer.echo("interrupted: these results cover the run up to there only", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)


@contextmanager
def _progress(simulation: Simulation) -> Iterator[tuple[Watcher, ...]]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield ()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from helixsim.simulation import Watcher

    duration_s = simulation.end_s - simulation.start_s
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} s"),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(simulation.scenario.name, total=duration_s, figures="")

        def look(running: Simulation) -> None:
            passed_s = running.environment.now - running.start_s
            recorder = running.recorder
            rate = recorder.num_decode_tokens / passed_s if passed_s > 0 else 0.0
            bar.update(
                task,
                completed=passed_s,
                figures=f"{recorder.num_completed:,} of {recorder.num_arrived:,} requests, "
                f"{rate:,.1f} decode tokens/s",
            )

        yield (Watcher(duration_s / _PROGRESS_STEPS, look),)

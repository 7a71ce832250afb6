"""Simulate a scenario."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from helixsim.cli.group import EXIT_INTERRUPTED, ScenarioArgument, SetOption, seconds_of
from helixsim.cli.placing import load_placed_scenario
from helixsim.cli.progress import ShowProgress, polled, show_progress

if TYPE_CHECKING:
    from helixsim.models.simulation import Simulation, Watcher

MIN_INTERVAL_S = 0.001


def run(
    file: ScenarioArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for the results."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63, help="Replaces the scenario's seed.")
    ] = None,
    overrides: SetOption = None,
    record: Annotated[
        Literal["iterations"] | None,
        typer.Option(help="Also keep a row for every pass of every request."),
    ] = None,
    table_format: Annotated[
        Literal["parquet", "csv"], typer.Option("--format", help="Format of the tables.")
    ] = "parquet",
    watch: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Print the status at this interval of simulated time."),
    ] = None,
    trace_from: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="--trace: start, since the first request; by default the end of the warm-up.",
        ),
    ] = None,
    trace_for: Annotated[str, typer.Option(metavar="TIME", help="--trace: duration.")] = "20 s",
    *,
    trace: Annotated[
        bool,
        typer.Option("--trace", help="Also write trace.json.gz, for ui.perfetto.dev."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, and nothing else.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace existing results in DIR.")
    ] = False,
) -> None:
    """Simulate a scenario and print its summary."""
    import json

    from helixsim.errors import InputError
    from helixsim.metrics.output import OutputFolder
    from helixsim.metrics.summary_text import status_text, summary_text
    from helixsim.models.simulation import Simulation, Watcher

    if record is not None and output is None:
        raise InputError("--record needs a folder to write to: add --output DIR")
    if trace and output is None:
        raise InputError("--trace needs a folder to write to: add --output DIR")
    every_s = None if watch is None else _interval_s(watch)
    seeded = [*(overrides or []), *([] if seed is None else [f"run.seed={seed}"])]
    scenario = load_placed_scenario(file, seeded)
    span_s = None
    if trace:
        begin_s = scenario.run.warmup_s
        if trace_from is not None:
            begin_s = seconds_of(trace_from, "--trace-from")
        span_s = (begin_s, begin_s + seconds_of(trace_for, "--trace-for"))
    watchers: list[Watcher] = []
    if every_s is not None:
        watchers.append(
            Watcher(every_s, lambda running: typer.echo(status_text(running), err=True))
        )
    with nullcontext() if output is None else OutputFolder(output, overwrite=force) as folder:
        simulation = Simulation(scenario, record_iterations=record is not None, trace_span_s=span_s)
        with (
            show_progress(scenario.name, "s") as show,
            polled(lambda: _show_state(simulation, show)),
        ):
            result = simulation.run(tuple(watchers))
        if folder is not None:
            result.write(folder, table_format=table_format)
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2))
    else:
        typer.echo(summary_text(result.summary))
        if output is not None:
            typer.echo(f"results in {output}")
    if result.summary["partial"]:
        typer.echo("interrupted: these results cover the run up to there only", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)


def _interval_s(text: str) -> float:
    from helixsim.errors import InputError

    interval_s = seconds_of(text, "--watch")
    if interval_s < MIN_INTERVAL_S:
        raise InputError(f"'{text}' is too short; at least 1 ms", where="--watch")
    return interval_s


def _show_state(running: Simulation, show: ShowProgress) -> None:
    """Show the progress of a simulation."""
    duration_s = running.end_s - running.start_s
    passed_s = running.now - running.start_s
    recorder = running.recorder
    rate = recorder.num_decode_tokens / passed_s if passed_s > 0 else 0.0
    show(
        min(max(passed_s, 0.0), duration_s),
        duration_s,
        figures=f"{recorder.num_completed:,} of {recorder.num_arrived:,} requests, "
        f"{rate:,.1f} decode tokens/s",
    )

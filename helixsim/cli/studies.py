"""Commands that run a scenario several times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from helixsim.cli.group import EXIT_INTERRUPTED, ScenarioArgument, SetOption
from helixsim.cli.progress import show_progress

EXIT_FAILED = 1

BackendOption = Annotated[
    Literal["local", "ray"], typer.Option(help="Run on this machine or on a Ray cluster.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")
]
JobsOption = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time. [default: one for each core]")
]


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="Sweep file.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for the results; existing runs are kept."
        ),
    ],
    backend: BackendOption = "local",
    jobs: JobsOption = None,
    table_format: Annotated[
        Literal["parquet", "csv"], typer.Option("--format", help="Format of the tables.")
    ] = "parquet",
) -> None:
    """Simulate a scenario with many values and seeds."""
    from helixsim.studies.sweep import sweep as sweeping

    done, total = 0, 0
    with show_progress("sweep", "runs") as show:

        def tell(now: int, of: int) -> None:
            nonlocal done, total
            done, total = now, of
            show(now, of)

        try:
            result = sweeping(
                file,
                output=output,
                backend=backend,
                jobs=jobs,
                table_format=table_format,
                on_progress=tell,
            )
        except KeyboardInterrupt as interrupt:
            typer.echo(
                f"interrupted: {done} of {total} runs are kept in {output}; the same command "
                "goes on from there",
                err=True,
            )
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt
    typer.echo(f"{total} runs of {result.scenario}, results in {output}")
    if result.num_failed:
        errors = dict.fromkeys(result.cells["error"].dropna())
        for error in errors:
            typer.echo(f"failed: {error}", err=True)
        typer.echo(f"{result.num_failed} of {total} runs failed; see the table cells", err=True)
        raise typer.Exit(EXIT_FAILED)


def capacity(
    file: ScenarioArgument,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMITS",
            help="Limits, e.g. 'ttft_s.p95<=5, tpot_s.p95<=1'. [default: the scenario's classes]",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Runs at each rate; figures are their means.")
    ] = 3,
    tolerance: Annotated[
        float, typer.Option(min=0.001, max=1, help="Precision, as a share of the rate.")
    ] = 0.02,
    keep_up: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of arriving requests that must finish.")
    ] = 0.95,
    overrides: SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder that keeps the runs, so that a search goes on where it was ended.",
        ),
    ] = None,
    backend: BackendOption = "local",
    jobs: JobsOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Find the highest arrival rate that meets the objectives."""
    import json

    from helixsim.studies.capacity import CapacitySearch
    from helixsim.studies.capacity import capacity as searching
    from helixsim.studies.capacity_result import Probe
    from helixsim.studies.capacity_text import capacity_text, heading_text, probe_text

    searches: list[CapacitySearch] = []

    def begin(search: CapacitySearch) -> None:
        searches.append(search)
        if not as_json:
            typer.echo(heading_text(search))

    def tell(probe: Probe) -> None:
        if not as_json:
            typer.echo(probe_text(probe, searches[0]))

    with show_progress("rate", "runs") as show:
        result = searching(
            file,
            slo or (),
            seeds=seeds,
            overrides=overrides or (),
            tolerance=tolerance,
            keep_up=keep_up,
            backend=backend,
            jobs=jobs,
            output=output,
            on_start=begin,
            on_probe=tell,
            on_progress=show,
        )
    typer.echo(json.dumps(result.to_json(), indent=2) if as_json else f"\n{capacity_text(result)}")
    if result.interrupted:
        typer.echo("interrupted: this is the result so far", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)
    if result.best is None:
        raise typer.Exit(EXIT_FAILED)

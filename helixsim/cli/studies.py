"""Commands that run a scenario many times."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from helixsim.cli.group import EXIT_INTERRUPTED

EXIT_FAILED = 1

JobsOption = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time. [default: one for each core]")
]


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="Sweep file.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for the results; go on if it has some."
        ),
    ],
    backend: Annotated[
        Literal["local", "ray"], typer.Option(help="Processes of this machine, or a Ray cluster.")
    ] = "local",
    jobs: JobsOption = None,
    table_format: Annotated[
        Literal["parquet", "csv"], typer.Option("--format", help="Of the tables.")
    ] = "parquet",
) -> None:
    """Simulate a scenario with many values and seeds."""
    from helixsim.studies.sweep import sweep as sweeping

    done, total = 0, 0
    with _progress("sweep") as show:

        def tell(now: int, of: int) -> None:
            nonlocal done, total
            done, total = now, of
            show(now, of)

        try:
            result = sweeping(
                file,
                output,
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


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

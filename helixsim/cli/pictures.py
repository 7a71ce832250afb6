"""Commands for plots and reports of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from helixsim.cli.group import ForceOption

if TYPE_CHECKING:
    from helixsim.metrics.result import RunResult

FoldersArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="DIR...", help="Folders of results; several are compared.", show_default=False
    ),
]


def plot(
    folders: FoldersArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for the pictures; by default plots in DIR.",
        ),
    ] = None,
    file_format: Annotated[
        Literal["png", "svg", "pdf"], typer.Option("--format", help="Format of the pictures.")
    ] = "png",
    *,
    force: ForceOption = False,
) -> None:
    """Plot results: latencies, throughput, nodes and links over time, comparisons of runs."""
    from helixsim.errors import InputError
    from helixsim.output_files import check_output, write_whole
    from helixsim.plots.pictures import figure_bytes, pictures_of

    runs = _loaded(folders)
    if output is None:
        if len(folders) > 1:
            raise InputError("several folders are compared in a folder of their own; add -o DIR")
        output = folders[0] / "plots"
    check_output(output.parent / f".{output.name}", overwrite=True)
    files = []
    for name, figure in pictures_of(runs):
        file = output / f"{name}.{file_format}"
        if output.is_dir():
            check_output(file, overwrite=force)
        files.append((file, figure_bytes(figure, file_format)))
    output.mkdir(exist_ok=True)
    for file, content in files:
        write_whole(file, content, overwrite=force)
        typer.echo(str(file))


def report(
    folders: FoldersArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="HTML file to write.")
    ],
    scenario: Annotated[
        str | None,
        typer.Option(
            help="Scenario file of the runs, for the drawing of the placement; only needed where "
            "it names other files and has moved."
        ),
    ] = None,
    *,
    force: ForceOption = False,
) -> None:
    """Write an HTML report of one or several runs: placement, figures, plots, scenario."""
    from helixsim.errors import OutputError
    from helixsim.output_files import check_output, write_whole
    from helixsim.report.page import report_page

    if output.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{output}: a report is a web page; end the name in .html")
    check_output(output, overwrite=force)
    write_whole(output, report_page(_loaded(folders), scenario), overwrite=force)
    typer.echo(f"written: {output}")


def _loaded(folders: list[Path]) -> dict[str, RunResult]:
    """Results by folder name; the names must differ."""
    from helixsim.errors import InputError
    from helixsim.metrics.result import load_results

    runs: dict[str, RunResult] = {}
    seen = set()
    for folder in folders:
        whole = folder.resolve()
        if whole in seen:
            raise InputError("stands there twice; name it once", file=folder)
        seen.add(whole)
        name = whole.name if whole.name not in runs else f"{whole.parent.name}-{whole.name}"
        while name in runs:
            name += "-again"
        runs[name] = load_results(folder)
    return runs

"""The command line: one module for each group of commands, put together here.

Everything that takes time to import is imported within the commands, so that help and
completion come at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from helixsim.cli import (
    calibrate,
    explain,
    files,
    gpus,
    llms,
    operators,
    pictures,
    plan,
    profile,
    replay,
    run,
    scenarios,
    show,
    studies,
)
from helixsim.cli.group import HelixGroup

app = typer.Typer(
    name="helixsim",
    cls=HelixGroup,
    help="Plan and simulate LLM serving on mixed GPUs and uneven networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command("run")(run.run)
app.command("plot")(pictures.plot)
app.command("report")(pictures.report)
app.command("replay")(replay.replay)
app.command("inspect")(replay.inspect)
app.command("calibrate")(calibrate.calibrate)
app.command("plan")(plan.plan)
app.command("bound")(plan.bound)
app.command("explain")(explain.explain)
app.command("sweep")(studies.sweep)
app.command("capacity")(studies.capacity)
app.command("validate")(scenarios.validate)
app.command("show")(show.show)
app.command("llm")(llms.llm)
app.command("llms")(llms.llms)
app.command("generate-cluster")(files.generate_cluster)
app.command("generate-trace")(files.generate_trace)
app.command("import-helix")(files.import_helix)
app.command("profile")(profile.profile)
app.command("import-operators")(operators.import_operators)
app.command("gpus")(gpus.gpus)
app.command("schema")(files.schema)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"helixsim {version('helixsim')}")
        except PackageNotFoundError:
            typer.echo("helixsim (not installed)")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app()

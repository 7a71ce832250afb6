"""The cheapest machines for a rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helixsim.cli.group import (
    EXIT_INTERRUPTED,
    ForceOption,
    ScenarioArgument,
    SetOption,
    seconds_of,
)
from helixsim.cli.progress import show_progress
from helixsim.cli.studies import EXIT_FAILED, BackendOption, JobsOption, JsonOption

if TYPE_CHECKING:
    from helixsim.studies.sizing.trials import Trial


def size(
    file: ScenarioArgument,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMITS",
            help="Limits, e.g. 'slo.chat.attainment>=0.95'. [default: the scenario's classes]",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE", help="Requests per time, such as 12/s. [default: the scenario's]"
        ),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPES",
            help="Machine types to choose from, e.g. H100-SXMx4,L40Sx2. [default: the scenario's]",
        ),
    ] = None,
    max_each: Annotated[
        int | None, typer.Option(min=1, help="Most machines of each type that may be added.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="NAME", help="Region of the machines that are added.")
    ] = None,
    prices: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=DOLLARS", help="Dollars per hour, several with commas."),
    ] = None,
    survive: Annotated[
        int, typer.Option(min=0, max=1, help="1: meet the limits with any one machine lost, too.")
    ] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Full runs of each set; figures are their means.")
    ] = 3,
    time_limit: Annotated[
        str, typer.Option(metavar="TIME", help="Stop then and keep the best set so far.")
    ] = "5 min",
    overrides: SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.yaml",
            help="Scenario file to write, with the machines and their placement.",
        ),
    ] = None,
    backend: BackendOption = "local",
    jobs: JobsOption = None,
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep and pay the scenario's own machines; add to them.")
    ] = False,
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Find the cheapest machines that meet objectives at a rate."""
    import json

    from helixsim.output_files import check_output, write_whole
    from helixsim.scenario.load import load_scenario
    from helixsim.studies.sizing import size as sizing
    from helixsim.studies.sizing.text import size_text

    if output is not None:
        check_output(output, overwrite=force)
    scenario = load_scenario(file, overrides or [])
    limit_s = seconds_of(time_limit, "--time-limit")
    with show_progress(scenario.name, "s", limit_s) as show:

        def tell(seconds: float, step: str, best: Trial | None) -> None:
            found = "" if best is None else f"found: {best.dollars_per_hour:.2f} $/h"
            show(seconds, step=step, figures=found)

        result = sizing.size(
            scenario,
            slo or (),
            rate=None if rate is None else _per_second(rate),
            add=_parts(add),
            max_each=max_each,
            region=region,
            prices=dict(map(_price, _parts(prices))),
            survive=survive,
            keep=keep,
            seeds=seeds,
            time_limit_s=limit_s,
            backend=backend,
            jobs=jobs,
            on_progress=tell,
        )
    if output is not None and result.sized is not None:
        from helixsim.scenario.files import moved_document
        from helixsim.yaml_files import yaml_text

        document = moved_document(
            result.sized.document, scenario.file.parent, output.absolute().parent
        )
        write_whole(output, yaml_text(document), overwrite=force)
    typer.echo(json.dumps(result.to_json(), indent=2) if as_json else size_text(result))
    if output is not None and result.sized is not None and not as_json:
        typer.echo(f"written: {output}")
    if result.ended:
        typer.echo(f"{result.ended}: this is the result so far", err=True)
    if result.ended == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)
    if result.best is None:
        raise typer.Exit(EXIT_FAILED)


def _parts(texts: list[str] | None) -> list[str]:
    """Parts between commas, of all times that an option was given."""
    return [part.strip() for text in texts or () for part in text.split(",") if part.strip()]


def _price(text: str) -> tuple[str, float]:
    from helixsim.errors import InputError

    name, equals, dollars = text.rpartition("=")
    try:
        return name.strip(), float(dollars if equals else "")
    except ValueError:
        raise InputError(
            f"'{text}' is no price; write the machine type and dollars per hour, such as "
            "L40Sx2=1.70",
            where="--prices",
        ) from None


def _per_second(text: str) -> float:
    """A rate, such as ``12/s`` or ``40/min``; a number alone is per second."""
    from helixsim.errors import InputError
    from helixsim.units import seconds

    number, slash, unit = text.partition("/")
    try:
        return float(number) / (seconds(f"1 {unit.strip()}") if slash else 1.0)
    except (ValueError, InputError):
        raise InputError(
            f"'{text}' is no rate; write requests per time, such as 12/s", where="--rate"
        ) from None

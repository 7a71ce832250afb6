"""Fit an engine to recorded runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helixsim.cli.group import (
    EXIT_INTERRUPTED,
    ForceOption,
    OutputOption,
    SetOption,
    seconds_of,
)
from helixsim.cli.progress import show_progress

if TYPE_CHECKING:
    from helixsim.calibration.fit import Recording

_MAX_JOBS = 64


def calibrate(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="RECORDED_RUN... SCENARIO...",
            help="Folders of recorded runs, then the scenario of each; one scenario for all if "
            "there is but one.",
            show_default=False,
        ),
    ],
    output: OutputOption,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            "--hold-out",
            metavar="NAME",
            help="A run that is not fitted, only replayed at the end. May be repeated.",
        ),
    ] = None,
    start: Annotated[
        str, typer.Option(metavar="ENGINE", help="Engine that the fit begins with.")
    ] = "helix-prototype",
    evaluations: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="How many engines to try, at most.")
    ] = 300,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Stop trying after so long; what is found then depends on the machine.",
        ),
    ] = None,
    slice_: Annotated[
        str,
        typer.Option("--slice", metavar="TIME", help="How much of each run to fit, its last part."),
    ] = "60 s",
    warmup: Annotated[
        str, typer.Option(metavar="TIME", help="What the replays at the end leave out.")
    ] = "60 s",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Of those replays.")] = 3,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=_MAX_JOBS, help="Processes; one a core by default.")
    ] = None,
    overrides: SetOption = None,
    *,
    force: ForceOption = False,
) -> None:
    """Fit what the serving engine costs to recorded runs; writes an engine file."""
    from helixsim.calibration.calibration_text import calibration_text
    from helixsim.calibration.document import engine_document
    from helixsim.calibration.fit import CalibrationSettings
    from helixsim.calibration.fit import calibrate as fit
    from helixsim.output_files import check_output, write_whole
    from helixsim.physics.engine_files import load_engine
    from helixsim.yaml_files import yaml_text

    check_output(output, overwrite=force)
    recordings = _recordings(files, hold_out or [], overrides or [])
    settings = CalibrationSettings(
        start=load_engine(start),
        name=_engine_name(output),
        evaluations=evaluations,
        time_limit_s=None if time_limit is None else seconds_of(time_limit, "--time-limit"),
        slice_s=seconds_of(slice_, "--slice"),
        warmup_s=seconds_of(warmup, "--warmup"),
        seeds=tuple(range(seeds)),
        jobs=jobs or min(os.cpu_count() or 1, _MAX_JOBS),
    )
    with show_progress("fitting", "engines", evaluations) as show:
        found = fit(
            recordings,
            settings,
            lambda step, tried, loss: show(tried, step=step, figures=f"loss {loss:.4f}"),
        )
    runs = ", ".join(each.run.name for each in recordings if not each.held_out)
    document = engine_document(found, f"helixsim calibrate, fitted to {runs}; from {start}")
    write_whole(output, yaml_text(document), overwrite=force)
    typer.echo(calibration_text(found))
    typer.echo(f"\nwritten: {output}; a scenario names it as engine, with physics: calibrated")
    if found.interrupted or len(found.quality) < len(recordings):
        typer.echo("interrupted: this is the best until then", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)


def _recordings(files: list[str], hold_out: list[str], overrides: list[str]) -> list[Recording]:
    from helixsim.calibration.fit import Recording
    from helixsim.errors import InputError
    from helixsim.recorded.recording import load_recorded_run
    from helixsim.scenario.load import load_scenario
    from helixsim.yaml_files import did_you_mean

    folders = [name for name in files if Path(name).is_dir()]
    scenarios = [name for name in files if not Path(name).is_dir()]
    if not folders or len(scenarios) not in (1, len(folders)):
        raise InputError(
            f"{len(folders)} recorded runs (folders) and {len(scenarios)} scenarios; give one "
            "scenario for all runs, or one for each, in the same order"
        )
    if len(scenarios) == 1:
        scenarios *= len(folders)
    runs = [load_recorded_run(folder) for folder in folders]
    names = [run.name for run in runs]
    for name in hold_out:
        if name not in names:
            raise InputError(
                f"no recorded run '{name}'; {did_you_mean(name, names)}", where="--hold-out"
            )
    loaded = {name: load_scenario(name, overrides) for name in dict.fromkeys(scenarios)}
    return [
        Recording(run, loaded[scenario], held_out=run.name in hold_out)
        for run, scenario in zip(runs, scenarios, strict=True)
    ]


def _engine_name(output: Path) -> str:
    from helixsim.scenario.import_helix import scenario_name

    return scenario_name(output)

"""The command that fits an engine to recorded runs."""

from __future__ import annotations

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
    from helixsim.recorded.request_log import RequestLog
    from helixsim.scenario.resolved import Scenario

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
            help="A run that is replayed at the end, but not fitted. Repeatable.",
        ),
    ] = None,
    start: Annotated[
        str, typer.Option(metavar="ENGINE", help="Initial engine of the fit.")
    ] = "helix-prototype",
    evaluations: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Limit of the engines to try.")
    ] = 300,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Time limit; the result then depends on the speed of the machine.",
        ),
    ] = None,
    slice_: Annotated[
        str,
        typer.Option(
            "--slice",
            metavar="TIME",
            help="Length of the part of each run that is fitted, after its first 30 s.",
        ),
    ] = "90 s",
    warmup: Annotated[
        str,
        typer.Option(metavar="TIME", help="Warm-up of the final replays, which figures leave out."),
    ] = "60 s",
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of seeds of the final replays.")
    ] = 3,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, max=_MAX_JOBS, help="Number of processes. [default: one for each core]"
        ),
    ] = None,
    overrides: SetOption = None,
    *,
    force: ForceOption = False,
) -> None:
    """Fit the costs of the serving engine to recorded runs; writes an engine file.

    Of request logs (requests.csv, results of vllm bench serve), it fits the latency of all-reduces,
    the host time of steps and the KV capacity, as far as they matter, and starts from the engine of
    the scenario.
    """
    from helixsim.calibration.calibrate import calibrate as fit
    from helixsim.calibration.document import calibration_text
    from helixsim.errors import InputError
    from helixsim.output_files import check_output
    from helixsim.recorded.request_log import RequestLog
    from helixsim.recorded.sources import load_recording
    from helixsim.scenario.import_helix import scenario_name
    from helixsim.scenario.load import load_scenario

    check_output(output, overwrite=force)
    folders = [name for name in files if Path(name).is_dir() or Path(name).suffix == ".json"]
    scenarios = [name for name in files if name not in folders]
    loaded = {name: load_scenario(name, overrides or []) for name in dict.fromkeys(scenarios)}
    logs = [each for each in map(load_recording, folders) if isinstance(each, RequestLog)]
    if logs:
        if len(logs) < len(folders):
            raise InputError("give either request logs or recordings pass by pass, not both")
        if hold_out or time_limit is not None:
            option = "--hold-out" if hold_out else "--time-limit"
            raise InputError("is for recordings pass by pass, not for request logs", where=option)
        _calibrate_logs(logs, [loaded[name] for name in scenarios], output, evaluations, force)
        return
    with show_progress("fitting", "engines", evaluations) as show:
        found = fit(
            folders,
            [loaded[name] for name in scenarios],
            name=scenario_name(output),
            start=start,
            hold_out=hold_out or (),
            evaluations=evaluations,
            time_limit_s=None if time_limit is None else seconds_of(time_limit, "--time-limit"),
            slice_s=seconds_of(slice_, "--slice"),
            warmup_s=seconds_of(warmup, "--warmup"),
            seeds=seeds,
            jobs=jobs,
            on_progress=lambda step, tried, loss: show(
                tried, step=step, figures=f"loss {loss:.4f}"
            ),
        )
    found.write(output, overwrite=force)
    typer.echo(calibration_text(found))
    typer.echo(f"\nwritten: {output}; a scenario names it as engine, with physics: calibrated")
    if found.interrupted or len(found.quality) < len(folders):
        typer.echo("interrupted: this is the best engine so far", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)


def _calibrate_logs(
    logs: list[RequestLog],
    scenarios: list[Scenario],
    output: Path,
    evaluations: int,
    force: bool,
) -> None:
    """Fit an engine to request logs, and write it."""
    from helixsim.calibration.document import engine_section
    from helixsim.calibration.log_fit import fit_logs, fit_text
    from helixsim.errors import InputError
    from helixsim.output_files import write_whole
    from helixsim.scenario.import_helix import scenario_name
    from helixsim.yaml_files import yaml_text

    if len(scenarios) == 1:
        scenarios = scenarios * len(logs)
    if len(scenarios) != len(logs):
        raise InputError(
            f"{len(logs)} request logs and {len(scenarios)} scenarios; give one for each log, or "
            "one for all"
        )
    names = [log.name for log in logs]
    with show_progress("fitting", "engines", evaluations) as show:
        found = fit_logs(
            list(zip(logs, scenarios, strict=True)),
            evaluations=evaluations,
            on_progress=lambda tried, loss: show(tried, step="replays", figures=f"{loss:.2%}"),
        )
    engine = found.engine.model_copy(update={"name": scenario_name(output)})
    source = f"Fitted to {', '.join(names)}: mean error of latencies {found.loss:.1%}"
    write_whole(output, yaml_text(engine_section(engine, source)), overwrite=force)
    typer.echo(fit_text(found, names))
    typer.echo(f"\nwritten: {output}; a scenario names it as engine, with physics: calibrated")
    if found.interrupted:
        typer.echo("interrupted: this is the best engine so far", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)

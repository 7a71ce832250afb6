"""Commands on recorded runs of real clusters."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from helixsim.cli.group import EXIT_INTERRUPTED, ScenarioArgument, SetOption, seconds_of
from helixsim.cli.progress import ShowProgress, polled, show_progress

if TYPE_CHECKING:
    from helixsim.models.simulation import Simulation
    from helixsim.recorded.replay import ReplayResult

RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_DIR",
        help="Folder of a recorded run or of a request log, or a result of vllm bench serve.",
        show_default=False,
    ),
]
WarmupOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Time from the start that the figures leave out; if not given, 60 s, and none of a "
        "request log.",
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="End of the window of the figures; if not given, the end of sending, which is the "
        "last prompt, rounded up to a minute; of a request log, the last request.",
    ),
]


def replay(
    run: RunArgument,
    scenario: ScenarioArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for tables and plots."),
    ] = None,
    overrides: SetOption = None,
    physics: Annotated[
        Literal["paper", "calibrated"] | None,
        typer.Option(help="Replaces the scenario's physics."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Replays, with seeds 0, 1, ...; means are shown.")
    ] = 1,
    warmup: WarmupOption = None,
    until: UntilOption = None,
    loop: Annotated[
        Literal["auto", "open", "closed"],
        typer.Option(help="Whether a request follows the completion that it followed."),
    ] = "auto",
    *,
    reroute: Annotated[
        bool, typer.Option("--reroute", help="Use the scenario's policy for routes.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace existing results in DIR.")
    ] = False,
) -> None:
    """Send a recorded run or a request log through the simulator and compare the figures."""
    import json

    from helixsim.cli.request_log import print_replay
    from helixsim.errors import InputError
    from helixsim.metrics.output import OutputFolder
    from helixsim.recorded.figures import comparison_text
    from helixsim.recorded.replay import ReplaySettings
    from helixsim.recorded.replay import replay as replay_run
    from helixsim.recorded.request_log import RequestLog
    from helixsim.recorded.sources import load_recording
    from helixsim.scenario.load import load_scenario

    settings = ReplaySettings(
        warmup_s=seconds_of(warmup or "60 s", "--warmup"),
        until_s=None if until is None else seconds_of(until, "--until"),
        seeds=tuple(range(seeds)),
        reroute=reroute,
        closed_loop=None if loop == "auto" else loop == "closed",
    )
    chosen = [*(overrides or []), *([] if physics is None else [f"physics={physics}"])]
    loaded = load_scenario(scenario, chosen)
    recorded = load_recording(run)
    if isinstance(recorded, RequestLog):
        if loop == "closed":
            raise InputError("a request log is sent at its recorded times", where="--loop closed")
        print_replay(
            recorded,
            loaded,
            output,
            seeds=seeds,
            window_s=(settings.warmup_s if warmup else 0.0, settings.until_s),
            as_json=as_json,
            force=force,
        )
        return
    with nullcontext() if output is None else OutputFolder(output, overwrite=force) as folder:
        started: list[Simulation] = []
        with (
            show_progress("replaying", "s", recorded.length_s * seeds) as show,
            polled(lambda: show_replays(started, show)),
        ):
            result = replay_run(recorded, loaded, settings, on_start=started.append)
        if folder is not None:
            result.results[0].write(folder, more=_files(result))
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        typer.echo(comparison_text(result.as_dict()))
        if output is not None:
            typer.echo(f"\nresults in {output}")
    if any(each.summary["partial"] for each in result.results):
        typer.echo("interrupted: the simulation covers a part only", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)


def inspect(
    run: RunArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for plots and tables."),
    ] = None,
    warmup: WarmupOption = None,
    until: UntilOption = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace earlier files in DIR.")] = False,
) -> None:
    """Print throughput, latencies and routes of a recorded run, or of a request log."""
    import json

    from helixsim.cli.request_log import print_inspection
    from helixsim.errors import InputError
    from helixsim.recorded.figures import inspection_text
    from helixsim.recorded.inspection import inspect_run, write_inspection
    from helixsim.recorded.request_log import RequestLog
    from helixsim.recorded.sources import load_recording

    recorded = load_recording(run)
    given_end_s = None if until is None else seconds_of(until, "--until")
    if isinstance(recorded, RequestLog):
        start_s = seconds_of(warmup or "0 s", "--warmup")
        print_inspection(
            recorded, output, window_s=(start_s, given_end_s), as_json=as_json, force=force
        )
        return
    start_s = seconds_of(warmup or "60 s", "--warmup")
    end_s = recorded.sending_ended_s if given_end_s is None else given_end_s
    if not start_s < end_s:
        raise InputError(
            f"the warm-up of {start_s:g} s leaves nothing of the {end_s:g} s of sending; make it "
            "shorter",
            file=run,
        )
    found = inspect_run(recorded, start_s, end_s)
    if output is not None:
        write_inspection(recorded, found, output, overwrite=force)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        typer.echo(inspection_text(found))
        if output is not None:
            typer.echo(f"\nplots and tables in {output}")


def _files(result: ReplayResult) -> dict[str, bytes]:
    """Additional files of a replay, besides the results of its first simulation."""
    import json

    from helixsim.recorded.plots import replay_picture

    return {
        "replay.json": (json.dumps(result.as_dict(), indent=2) + "\n").encode(),
        "replay_series.csv": result.series.to_csv(index=False, lineterminator="\n").encode(),
        "replay_nodes.csv": result.nodes.to_csv(index=False, lineterminator="\n").encode(),
        "replay.png": replay_picture(result),
    }


def show_replays(started: list[Simulation], show: ShowProgress) -> None:
    """Show the progress of replays, of which the last one started is in progress."""
    if started:
        running = started[-1]
        passed_s = max(running.now - running.start_s, 0.0)
        show((len(started) - 1) * (running.end_s - running.start_s) + passed_s)

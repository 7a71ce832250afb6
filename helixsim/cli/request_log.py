"""The commands on recordings, for request logs: called by :mod:`helixsim.cli.replay`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from helixsim.cli.group import EXIT_INTERRUPTED
from helixsim.cli.progress import polled, show_progress

if TYPE_CHECKING:
    from helixsim.models.simulation import Simulation
    from helixsim.recorded.log_replay import LogReplayResult
    from helixsim.recorded.request_log import RequestLog
    from helixsim.scenario.resolved import Scenario


def print_replay(
    log: RequestLog,
    scenario: Scenario,
    output: Path | None,
    *,
    seeds: int,
    window_s: tuple[float, float | None],
    as_json: bool,
    force: bool,
) -> None:
    """Replay a request log; print the figures, write them into a folder."""
    import json

    from helixsim.cli.replay import show_replays
    from helixsim.metrics.output import OutputFolder
    from helixsim.recorded.log_figures import comparison_text
    from helixsim.recorded.log_replay import replay_log

    with nullcontext() if output is None else OutputFolder(output, overwrite=force) as folder:
        started: list[Simulation] = []
        with (
            show_progress("replaying", "s", log.makespan_s * seeds) as show,
            polled(lambda: show_replays(started, show)),
        ):
            result = replay_log(
                log,
                scenario,
                seeds=tuple(range(seeds)),
                warmup_s=window_s[0],
                until_s=window_s[1],
                on_start=started.append,
            )
        if folder is not None:
            result.results[0].write(folder, more=_files(result))
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        typer.echo(comparison_text(result.as_dict()))
        if output is not None:
            typer.echo(f"\nresults in {output}")
    if result.interrupted:
        if result.results[0].summary["partial"]:
            typer.echo("interrupted: the simulation covers a part only", err=True)
        else:
            typer.echo(f"interrupted: {len(result.seeds)} of {seeds} seeds are through", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)


def print_inspection(
    log: RequestLog,
    output: Path | None,
    *,
    window_s: tuple[float, float | None],
    as_json: bool,
    force: bool,
) -> None:
    """Print the figures of a request log; write them into a folder."""
    import json

    from helixsim.recorded.log_inspection import inspect_log, inspection_text, write_log_inspection

    found = inspect_log(log, *window_s)
    if output is not None:
        write_log_inspection(log, found, output, overwrite=force)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        typer.echo(inspection_text(found))
        if output is not None:
            typer.echo(f"\nplots and tables in {output}")


def _files(result: LogReplayResult) -> dict[str, bytes]:
    """Additional files of a replay, besides the results of its first simulation."""
    import json

    from helixsim.recorded.log_plots import replay_picture

    return {
        "replay.json": (json.dumps(result.as_dict(), indent=2) + "\n").encode(),
        "replay_series.csv": result.series.to_csv(index=False, lineterminator="\n").encode(),
        "replay_requests.csv": result.requests.to_csv(index=False, lineterminator="\n").encode(),
        "replay.png": replay_picture(result),
    }

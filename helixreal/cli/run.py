"""Commands that run a scenario's workload on this machine or on a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from helixreal.cli.options import (
    DeviceOption,
    DtypeOption,
    DummyOption,
    EngineOption,
    InsecureOption,
    InventoryOption,
    KvMemoryOption,
    ModelOption,
    OptionsOption,
    bytes_of,
    options_of,
    start_logging,
)
from helixsim.cli.group import EXIT_INTERRUPTED, ScenarioArgument, SetOption
from helixsim.cli.progress import ShowProgress, show_progress

if TYPE_CHECKING:
    from helixreal.coordinator.server import Cluster
    from helixreal.launch import Launch

ResultsOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder for the results."),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, max=2**63, help="Replaces the scenario's seed.")
]
ScaleOption = Annotated[
    float,
    typer.Option(
        "--time-scale",
        min=0.001,
        max=1000,
        help="Emulated engines only: seconds of the run per second by the clock.",
    ),
]
FormatOption = Annotated[
    Literal["parquet", "csv"], typer.Option("--format", help="Format of the tables.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON, and nothing else.")
]
ReplaceOption = Annotated[bool, typer.Option("--force", help="Replace existing results in DIR.")]


def run(
    file: ScenarioArgument,
    engine: EngineOption = "emulated",
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    kv_memory: KvMemoryOption = None,
    options: OptionsOption = None,
    time_scale: ScaleOption = 1.0,
    output: ResultsOption = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    table_format: FormatOption = "parquet",
    *,
    local: Annotated[
        bool, typer.Option("--local", help="Run all processes on this machine, one for each node.")
    ] = False,
    dummy_weights: DummyOption = False,
    as_json: JsonOption = False,
    force: ReplaceOption = False,
) -> None:
    """Run a scenario's workload with real processes on this machine."""
    from helixreal.inventory import NodeEntry
    from helixreal.launch import Launch
    from helixsim.errors import InputError

    if not local:
        raise InputError(
            "add --local to run on this machine; on a cluster, see `helixreal coordinator`"
        )
    start_logging("coordinator")
    entry = NodeEntry(
        engine=engine,
        model=None if model is None else str(model),
        device=device,
        dtype=dtype,
        kv_memory_bytes=bytes_of(kv_memory, "--kv-memory"),
        dummy_weights=dummy_weights,
        options=options_of(options),
    )
    launch = Launch.local(file, overrides, seed, entry, time_scale)
    serve_workload(launch, output, table_format, as_json=as_json, force=force)


def coordinator(
    file: ScenarioArgument,
    inventory: InventoryOption,
    output: ResultsOption = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    table_format: FormatOption = "parquet",
    *,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
    force: ReplaceOption = False,
) -> None:
    """Run a scenario's workload with the workers of an inventory."""
    from helixreal.launch import Launch

    start_logging("coordinator")
    launch = Launch.on(inventory, file, overrides, seed, insecure=insecure)
    serve_workload(launch, output, table_format, as_json=as_json, force=force)


def serve_workload(
    launch: Launch,
    output: Path | None,
    table_format: Literal["parquet", "csv"],
    *,
    as_json: bool,
    force: bool,
) -> None:
    """Start a cluster, run its workload, and write and print the results."""
    import json

    from helixreal.coordinator.events import EventLog
    from helixsim.metrics.output import OutputFolder
    from helixsim.metrics.summary_text import summary_text

    with nullcontext() if output is None else OutputFolder(output, overwrite=force) as folder:
        with launch.cluster() as cluster:
            launch.start(cluster, progress=_echo if sys.stderr.isatty() else None)
            if not cluster.has_begun:
                raise typer.Exit(EXIT_INTERRUPTED)
            with show_progress(cluster.scenario.name, "s") as show:
                cluster.run_workload(_progress_callback(cluster, show))
            result, about = cluster.result(), cluster.about()
        if folder is not None:
            assert isinstance(cluster.events, EventLog)
            recorded = cluster.events.files(cluster.topology)
            result.write(folder, table_format=table_format, more=recorded, about=about)
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2))
    else:
        typer.echo(summary_text(result.summary))
        if output is not None:
            typer.echo(f"results in {output}")
    if result.summary["partial"]:
        typer.echo("interrupted: the results cover the run up to the interruption", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)


def _echo(text: str) -> None:
    typer.echo(text, err=True)


def _progress_callback(cluster: Cluster, show: ShowProgress) -> Callable[[], None]:
    """A function that shows the progress of a cluster's run."""
    duration_s = cluster.end_s - cluster.start_s

    def report() -> None:
        recorder = cluster.recorder
        show(
            min(max(cluster.now - cluster.start_s, 0.0), duration_s),
            duration_s,
            figures=f"{recorder.num_completed:,} of {recorder.num_arrived:,} requests, "
            f"{len(cluster.coordinator.active)} active",
        )

    return report

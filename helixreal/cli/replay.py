"""The command that sends the requests of a trace or a recorded run to a real cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helixreal.cli.options import (
    DeviceOption,
    DtypeOption,
    DummyOption,
    EngineOption,
    InsecureOption,
    KvMemoryOption,
    ModelOption,
    OptionsOption,
    bytes_of,
    options_of,
    start_logging,
)
from helixreal.cli.run import (
    FormatOption,
    JsonOption,
    ReplaceOption,
    ResultsOption,
    ScaleOption,
    SeedOption,
    serve_workload,
)
from helixsim.cli.group import ScenarioArgument, SetOption

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario
    from helixsim.traces import Trace

_AFTER_LAST_S = 1.0


def replay(
    trace: Annotated[
        Path,
        typer.Argument(
            metavar="TRACE",
            help="Folder of a recorded run, or a trace file in any format of scenarios.",
            show_default=False,
        ),
    ],
    file: ScenarioArgument,
    rate_scale: Annotated[
        float,
        typer.Option(
            "--rate-scale", help="Factor of the request rate: 2 halves the time between requests."
        ),
    ] = 1.0,
    local: Annotated[
        bool, typer.Option("--local", help="Run all processes on this machine, one for each node.")
    ] = False,
    inventory: Annotated[
        Path | None,
        typer.Option(
            "--inventory", metavar="FILE", help="Inventory file: the machine of each node."
        ),
    ] = None,
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
    dummy_weights: DummyOption = False,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
    force: ReplaceOption = False,
) -> None:
    """Send the requests of a trace to a real cluster, at their arrival times or scaled."""
    from helixreal.inventory import NodeEntry
    from helixreal.launch import Launch
    from helixsim.errors import InputError

    if local == (inventory is not None):
        raise InputError("add either --local to run on this machine, or --inventory FILE")
    sent = _trace(trace, rate_scale)
    start_logging("coordinator")
    if inventory is not None:
        launch = Launch.on(inventory, file, overrides, seed, insecure=insecure)
    else:
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
    launch = replace(launch, scenario=_sending(launch.scenario, sent, rate_scale))
    serve_workload(launch, output, table_format, as_json=as_json, force=force)


def _trace(path: Path, rate_scale: float) -> Trace:
    from helixsim.errors import InputError
    from helixsim.recorded.recording import load_recorded_run
    from helixsim.requests import TraceRequest
    from helixsim.traces import Trace, read_trace

    if not path.is_dir():
        trace = read_trace(path).from_first()
    else:
        run = load_recorded_run(path)
        trace = Trace(
            tuple(
                TraceRequest(request.dispatched_s, request.prompt_tokens, request.output_tokens)
                for request in run.requests
            ),
            str(path),
        )
    try:
        trace.scaled(rate_scale)
    except InputError as error:
        raise InputError(error.message, where="--rate-scale") from error
    return trace


def _sending(scenario: Scenario, trace: Trace, rate_scale: float) -> Scenario:
    """The scenario with the trace as its workload; it runs until all requests have ended."""
    workload = replace(
        scenario.workload,
        mode="online",
        trace=trace,
        rate_scale=rate_scale,
        lengths=None,
        arrivals=None,
        mean_tokens_per_s=None,
        requests_per_s=None,
        conversations=None,
        classes=(),
    )
    last_s = trace.scaled(rate_scale).last_s + _AFTER_LAST_S
    if trace.num_turns > len(trace):
        typer.echo(
            f"note: later turns of sessions are sent until {last_s:g} s, when the last would "
            "arrive if answers took no time",
            err=True,
        )
    run = replace(
        scenario.run,
        duration_s=last_s,
        warmup_s=min(scenario.run.warmup_s, last_s / 2),
        drain=True,
    )
    document = {
        **scenario.document,
        "workload": {"mode": "online", "trace": trace.source, "rate_scale": rate_scale},
    }
    return replace(scenario, workload=workload, run=run, document=document)

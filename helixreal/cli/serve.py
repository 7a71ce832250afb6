"""The command ``helixreal serve``: an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

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
    seconds_of,
    start_logging,
)
from helixsim.cli.group import EXIT_INTERRUPTED, ScenarioArgument, SetOption

_API_KEY = "HELIXREAL_API_KEY"
_WAITING = 1000


def serve(
    file: ScenarioArgument,
    engine: EngineOption = "emulated",
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    kv_memory: KvMemoryOption = None,
    options: OptionsOption = None,
    inventory: Annotated[
        Path | None,
        typer.Option(
            "--inventory", metavar="FILE", help="Inventory file: the machine of each node."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address of the endpoint.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the endpoint; 0 takes a free port.")
    ] = 8000,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with tokenizer.json. [default: the model folder]"),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Limit of waiting requests; further ones get status 429.")
    ] = _WAITING,
    request_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="A request whose answer takes longer fails. [default: never]"
        ),
    ] = None,
    overrides: SetOption = None,
    *,
    local: Annotated[
        bool, typer.Option("--local", help="Run all processes on this machine, one for each node.")
    ] = False,
    dummy_weights: DummyOption = False,
    insecure: InsecureOption = False,
) -> None:
    """Serve a scenario's placement over an OpenAI-compatible HTTP endpoint.

    The environment variable HELIXREAL_API_KEY sets a key that clients must send.
    """
    from helixreal.coordinator.deadlines import TimeLimits
    from helixreal.coordinator.live import LiveCluster, NoLoad
    from helixreal.inventory import NodeEntry
    from helixreal.launch import Launch
    from helixsim.errors import InputError

    try:
        from helixreal.serving import Tokenizer, create_app, run_server
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}: pip install 'helixsim[serve]'") from error
    start_logging("serve")
    if local == (inventory is not None):
        raise InputError("give either --local or --inventory")
    sets = [f"scheduler.max_waiting={max_waiting}", *(overrides or [])]
    if inventory is not None:
        launch = Launch.on(inventory, file, sets, None, insecure=insecure)
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
        launch = Launch.local(file, sets, None, entry)
    if request_timeout is not None:
        launch.limits = TimeLimits(request_s=seconds_of(request_timeout, "--request-timeout"))
    if tokenizer is None and model is not None and (model / "tokenizer.json").is_file():
        tokenizer = model
    words = None if tokenizer is None else Tokenizer(tokenizer)
    with launch.cluster(load_generator=NoLoad()) as cluster:
        launch.start(cluster)
        if not cluster.has_begun:
            raise typer.Exit(EXIT_INTERRUPTED)
        live = LiveCluster(cluster, launch.scenario.llm.name, launch.max_context_tokens)
        live.start()
        try:
            run_server(
                create_app(live, words, api_key=os.environ.get(_API_KEY)),
                host,
                port,
                ready=lambda url: typer.echo(f"serving {live.model_name} at {url}/v1", err=True),
                until=live.has_ended,
            )
        finally:
            live.stop()

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
    chat_template: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Chat template (Jinja) to use instead of the model's."),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name of the model for clients; may be given several times. "
            "[default: the name of the scenario's LLM]",
        ),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="TOKENS",
            help="Limit of the tokens of a prompt and its answer together. "
            "[default: the model's; 8192 for emulated engines]",
        ),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Limit of waiting requests; further ones get status 429.")
    ] = _WAITING,
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
    if tokenizer is None and model is not None and (model / "tokenizer.json").is_file():
        tokenizer = model
    if chat_template is not None and tokenizer is None:
        raise InputError("a chat template needs a tokenizer: give --tokenizer")
    words = None if tokenizer is None else Tokenizer(tokenizer, chat_template=chat_template)
    with launch.cluster(load_generator=NoLoad()) as cluster:
        launch.start(cluster)
        if not cluster.has_begun:
            raise typer.Exit(EXIT_INTERRUPTED)
        live = LiveCluster(
            cluster,
            launch.scenario.llm.name,
            launch.served_context_tokens(max_model_len),
            None if launch.facts is None else launch.facts.vocabulary,
        )
        live.start()
        try:
            run_server(
                create_app(
                    live,
                    words,
                    api_key=os.environ.get(_API_KEY),
                    served_model_names=served_model_name or (),
                ),
                host,
                port,
                ready=lambda url: typer.echo(f"serving {live.model_name} at {url}/v1", err=True),
                until=live.has_ended,
            )
        finally:
            live.stop()

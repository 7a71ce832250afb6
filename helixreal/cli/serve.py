"""The command ``helixreal serve``: an OpenAI-compatible endpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helixreal.cli.options import (
    ChatTemplateOption,
    DeviceOption,
    DtypeOption,
    DummyOption,
    EngineOption,
    HostOption,
    InsecureOption,
    KvMemoryOption,
    MaxConnectionsOption,
    ModelOption,
    OptionsOption,
    PortOption,
    ServedNameOption,
    TokenizerOption,
    bytes_of,
    options_of,
    seconds_of,
    start_logging,
)
from helixsim.cli.group import EXIT_INTERRUPTED, ScenarioArgument, SetOption

if TYPE_CHECKING:
    from helixreal.frontends.service import Service
    from helixreal.launch import Launch

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
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    tokenizer: TokenizerOption = None,
    front_ends: Annotated[
        int,
        typer.Option("--front-ends", min=0, max=64, metavar="N", help="Processes that speak HTTP."),
    ] = 1,
    front_end_address: Annotated[
        str | None,
        typer.Option(
            "--front-end-address",
            metavar="HOST[:PORT]",
            help="Accept front ends of other machines here (`helixreal front-end`).",
        ),
    ] = None,
    max_connections: MaxConnectionsOption = None,
    chat_template: ChatTemplateOption = None,
    served_model_name: ServedNameOption = None,
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
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write the departure and return of every pass to this new folder."
        ),
    ] = None,
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
    from helixreal.inventory import DEFAULT_FRONT_END_PORT, NodeEntry, tcp_address
    from helixreal.launch import Launch
    from helixreal.net.sockets import check_open_to_others
    from helixreal.net.transport import Keys
    from helixsim.cluster import COORDINATOR
    from helixsim.errors import InputError

    try:
        from helixreal.frontends.process import FrontEndSettings
        from helixreal.frontends.service import Service
        from helixreal.serving import Tokenizer
        from helixreal.serving.server import bind, url_of
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}: pip install 'helixsim[serve]'") from error
    start_logging("serve")
    if local == (inventory is not None):
        raise InputError("give either --local or --inventory")
    if not (front_ends or front_end_address):
        raise InputError("without front ends here, give --front-end-address", where="--front-ends")
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
    if chat_template is not None and tokenizer is None:
        raise InputError("a chat template needs a tokenizer: give --tokenizer")
    if tokenizer is not None:
        Tokenizer(tokenizer, chat_template=chat_template)  # a missing one is an error here and now
    keys = launch.inventory.keys
    remote = None
    if front_end_address is not None:
        remote = tcp_address(front_end_address.removeprefix("tcp://"), DEFAULT_FRONT_END_PORT)
        check_open_to_others(remote, has_keys=keys is not None, insecure=insecure)

    def settings_of(number: int, door: str) -> FrontEndSettings:
        return FrontEndSettings(
            name=f"front end {number + 1}",
            coordinator=door,
            tokenizer=None if tokenizer is None else str(tokenizer.resolve()),
            chat_template=None if chat_template is None else str(chat_template.resolve()),
            served_model_names=tuple(served_model_name or ()),
            max_connections=max_connections,
        )

    with bind(host, port) if front_ends else nullcontext() as bound:
        service = Service(
            bound=bound,
            front_ends=settings_of,
            count=front_ends,
            address=remote,
            keys=None if keys is None else Keys(keys, COORDINATOR),
            insecure=insecure,
        )
        url = "" if bound is None else url_of(bound, host)
        _serve(launch, service, url, record, max_model_len)


def _echo(text: str) -> None:
    typer.echo(text, err=True)


def _serve(
    launch: Launch, service: Service, url: str, record: Path | None, max_model_len: int | None
) -> None:
    """Start the cluster, and serve until Ctrl-C."""
    from helixreal.coordinator.events import EventWriter
    from helixreal.coordinator.intake import Intake, NoLoad

    writer = None if record is None else EventWriter(record)
    with launch.cluster(load_generator=NoLoad(), keeps_run=False) as cluster:
        if writer is not None:
            cluster.events = writer
        launch.start(cluster, progress=None if launch.is_local else _echo)
        if not cluster.has_begun:
            raise typer.Exit(EXIT_INTERRUPTED)
        intake = Intake(
            cluster,
            launch.scenario.llm.name,
            launch.served_context_tokens(max_model_len),
            vocabulary=launch.vocabulary,
        )
        try:
            service.run(
                cluster,
                intake,
                on_ready=lambda: typer.echo(f"serving {intake.model_name} at {url}/v1", err=True),
                on_open=lambda address: typer.echo(f"front ends connect to {address}", err=True),
            )
        finally:
            if writer is not None:
                writer.close(cluster.topology)

"""The command ``helixreal front-end``: an HTTP endpoint for a coordinator elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from helixreal.cli.options import (
    ChatTemplateOption,
    HostOption,
    InsecureOption,
    KeysOption,
    MaxConnectionsOption,
    PortOption,
    ServedNameOption,
    TokenizerOption,
    start_logging,
)


def front_end(
    coordinator: Annotated[
        str,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Address that `helixreal serve --front-end-address` listens at.",
        ),
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of this front end, and of its keys.")
    ] = "front-end",
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    tokenizer: TokenizerOption = None,
    chat_template: ChatTemplateOption = None,
    served_model_name: ServedNameOption = None,
    keys: KeysOption = None,
    max_connections: MaxConnectionsOption = None,
    *,
    insecure: InsecureOption = False,
) -> None:
    """Serve the OpenAI-compatible HTTP endpoint here, for a coordinator elsewhere.

    The environment variable HELIXREAL_API_KEY sets a key that clients must send.
    """
    from helixreal.inventory import DEFAULT_FRONT_END_PORT, tcp_address
    from helixreal.net.sockets import check_open_to_others
    from helixsim.errors import InputError

    try:
        from helixreal.frontends.process import FrontEndSettings, run_front_end
        from helixreal.serving.server import bind, url_of
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}: pip install 'helixsim[serve]'") from error
    start_logging(name)
    if chat_template is not None and tokenizer is None:
        raise InputError("a chat template needs a tokenizer: give --tokenizer")
    address = tcp_address(coordinator.removeprefix("tcp://"), DEFAULT_FRONT_END_PORT)
    check_open_to_others(address, has_keys=keys is not None, insecure=insecure)
    settings = FrontEndSettings(
        name=name,
        coordinator=address,
        keys=None if keys is None else str(keys),
        tokenizer=None if tokenizer is None else str(tokenizer),
        chat_template=None if chat_template is None else str(chat_template),
        served_model_names=tuple(served_model_name or ()),
        max_connections=max_connections,
    )
    with bind(host, port) as bound:
        typer.echo(f"waiting for the coordinator at {address}", err=True)
        run_front_end(
            settings,
            bound,
            on_listening=lambda frontend: typer.echo(
                f"serving {frontend.model_name} at {url_of(bound, host)}/v1", err=True
            ),
        )

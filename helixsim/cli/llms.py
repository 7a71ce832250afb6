"""Commands that show LLMs: what a config.json says, and which ones ship with helixsim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helixsim.cli.group import ForceOption


def llm(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG",
            help="config.json (Hugging Face), the folder with it, or the name of a shipped one; "
            "without it, the names are listed.",
            show_default=False,
        ),
    ] = None,
    *,
    weights: Annotated[
        str | None, typer.Option(help="Number format of the weights of layers, such as fp8.")
    ] = None,
    kv: Annotated[str | None, typer.Option(help="Number format of the KV cache.")] = None,
    activations: Annotated[
        str | None,
        typer.Option(help="Number format of hidden states, embedding and head."),
    ] = None,
    context: Annotated[
        int,
        typer.Option(
            min=1,
            help="Tokens of a typical request's context, for FLOP and for the KV cache of layers "
            "with a sliding window.",
        ),
    ] = 4096,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the LLM. [default: of CONFIG]", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="LLM file to write.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Show what a config.json says of an LLM: layers, parameters, sizes; write an LLM file."""
    if config is None:
        llms(as_json=as_json)
        return
    import json

    from helixsim.errors import InputError
    from helixsim.llms.description import description, description_text
    from helixsim.llms.read import read_architecture
    from helixsim.output_files import check_output, write_whole
    from helixsim.profiles.llm_file import llm_of, llm_text

    if output is not None:
        check_output(output, overwrite=force)
    try:
        made = read_architecture(config, name=name, weights=weights, kv=kv, activations=activations)
    except InputError as error:
        if error.file is None and error.where is not None:
            raise InputError(error.message, where=f"--{error.where}") from error
        raise
    if output is not None:
        llm_of(made, kv_context_tokens=context)  # checks the name
        text = llm_text(made, kv_context_tokens=context, source=f"sizes from {config}")
        write_whole(output, text, overwrite=force)
    if as_json:
        typer.echo(json.dumps(description(made, context, config=config), indent=2))
    else:
        typer.echo(description_text(made, context, config=config), nl=False)


def llms(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the LLMs whose config.json ships with helixsim, with their published parameters."""
    import json

    from helixsim.llms.description import CATALOGUE_HEAD, catalogue_rows, description, table_lines
    from helixsim.llms.read import read_architecture

    if as_json:
        found = [
            description(read_architecture(row[0]), 4096, config=row[0]) for row in catalogue_rows()
        ]
        typer.echo(json.dumps(found, indent=2))
    else:
        typer.echo("\n".join(table_lines(CATALOGUE_HEAD, catalogue_rows())))

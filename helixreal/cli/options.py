"""Options that several commands share, and their conversions."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer


def _known_engine(name: str) -> str:
    from helixreal.engines import ENGINES

    ENGINES.check(name)
    return name


EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        callback=_known_engine,
        help="Engine: emulated, torch, vllm, or a registered one.",
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", help="Model folder (Hugging Face format)."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="Device, for example cpu or cuda:0; several with commas between them, over which "
        "each layer is divided."
    ),
]
DtypeOption = Annotated[str, typer.Option(help="Data type, for example float32 or bfloat16.")]
KvMemoryOption = Annotated[
    str | None, typer.Option("--kv-memory", metavar="SIZE", help="Memory for KV caches.")
]
DummyOption = Annotated[
    bool, typer.Option("--dummy-weights", help="Random weights, for load tests.")
]
OptionsOption = Annotated[
    str | None,
    typer.Option("--options", metavar="JSON", help="Additional options of the engine."),
]
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", metavar="DIR", help="Folder of keys, see `helixreal keys`."),
]
InsecureOption = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Allow addresses beyond loopback without keys; for private networks only.",
    ),
]
InventoryOption = Annotated[
    Path,
    typer.Option("--inventory", metavar="FILE", help="Inventory file: the machine of each node."),
]
HostOption = Annotated[str, typer.Option(help="Address of the endpoint.")]
PortOption = Annotated[
    int, typer.Option(min=0, max=65535, help="Port of the endpoint; 0 takes a free port.")
]
ChatTemplateOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Chat template (Jinja) to use instead of the model's."),
]
ServedNameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--served-model-name",
        metavar="NAME",
        help="Name of the model for clients; may be given several times. "
        "[default: the name of the scenario's LLM]",
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder with tokenizer.json. [default: the model folder]"),
]
MaxConnectionsOption = Annotated[
    int | None,
    typer.Option(
        "--max-connections",
        min=1,
        metavar="N",
        help="Limit of open connections of a front end. [default: what the limit of open files "
        "allows]",
    ),
]


def bytes_of(text: str | None, option: str) -> int | None:
    """Read a size; error messages name the option."""
    from helixsim.errors import InputError
    from helixsim.units import num_bytes

    if text is None:
        return None
    try:
        return int(num_bytes(text))
    except InputError as error:
        raise InputError(error.message, where=option) from error


def seconds_of(text: str, option: str) -> float:
    """Read a duration of more than 0; error messages name the option."""
    from helixsim.errors import InputError
    from helixsim.units import seconds

    try:
        found = seconds(text)
    except InputError as error:
        raise InputError(error.message, where=option) from error
    if found <= 0:
        raise InputError(f"must be more than 0, not {text}", where=option)
    return found


def options_of(text: str | None) -> dict[str, Any]:
    """Read the additional options of an engine."""
    from helixsim.errors import InputError

    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"is not JSON: {error}", where="--options") from error
    if not isinstance(found, dict):
        raise InputError('must be a JSON object, such as {"wire": "both"}', where="--options")
    return found


def start_logging(name: str) -> None:
    """Log warnings, errors and how a cluster starts to standard error, with the process's name."""
    logging.basicConfig(format=f"{name}: %(message)s", level=logging.WARNING)
    logging.getLogger("helixreal.launch").setLevel(logging.INFO)

"""Options that many commands have, and what they become."""

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
        help="What runs the layers: emulated, torch, vllm, or one of your own.",
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", help="Model folder (Hugging Face format)."),
]
DeviceOption = Annotated[str, typer.Option(help="Such as cpu or cuda:0.")]
DtypeOption = Annotated[str, typer.Option(help="Such as float32 or bfloat16.")]
KvMemoryOption = Annotated[
    str | None, typer.Option("--kv-memory", metavar="SIZE", help="Memory for KV caches.")
]
DummyOption = Annotated[
    bool, typer.Option("--dummy-weights", help="Random weights, for tests of load.")
]
OptionsOption = Annotated[
    str | None,
    typer.Option("--options", metavar="JSON", help="Further options of the engine."),
]
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", metavar="DIR", help="Folder of keys, see `helixreal keys`."),
]
InsecureOption = Annotated[
    bool,
    typer.Option("--insecure", help="No keys beyond loopback: for networks of your own only."),
]
InventoryOption = Annotated[
    Path, typer.Option("--inventory", metavar="FILE", help="Which machine is which node.")
]


def bytes_of(text: str | None, option: str) -> int | None:
    """Read a size that an option gives; a mistake names the option."""
    from helixsim.errors import InputError
    from helixsim.units import num_bytes

    if text is None:
        return None
    try:
        return int(num_bytes(text))
    except InputError as error:
        raise InputError(error.message, where=option) from error


def options_of(text: str | None) -> dict[str, Any]:
    """Read an engine's further options."""
    from helixsim.errors import InputError

    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"is no JSON: {error}", where="--options") from error
    if not isinstance(found, dict):
        raise InputError('must be a JSON object, such as {"wire": "both"}', where="--options")
    return found


def start_logging(name: str) -> None:
    """Warnings and errors go to standard error, with who says so."""
    logging.basicConfig(format=f"{name}: %(message)s", level=logging.WARNING)

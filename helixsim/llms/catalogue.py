"""Configurations of LLMs that ship with helixsim: facts, as data files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from helixsim.errors import InputError
from helixsim.yaml_files import FileModel, did_you_mean, read_yaml, validate

DATA = Path(__file__).parent / "data"


class ShippedLLM(FileModel):
    """A shipped configuration.

    Attributes
    ----------
    name
        For scenarios, for example ``qwen3-32b``.
    hub
        Its name on the Hugging Face hub.
    parameters
        Published number of parameters.
    source
        Where that is published, and what it counts.
    config
        The keys of its ``config.json`` that sizes follow from.
    """

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["config"]
    name: str
    hub: str
    parameters: Annotated[int, Field(ge=1)]
    source: str
    config: dict[str, object]


def shipped_configs() -> tuple[str, ...]:
    """Names of the shipped configurations, sorted."""
    return tuple(sorted(path.stem for path in DATA.glob("*.yaml")))


def shipped_config(name: str) -> ShippedLLM:
    """A shipped configuration.

    Raises
    ------
    InputError
        If there is none of this name.
    """
    names = shipped_configs()
    if name not in names:
        raise InputError(
            f"no LLM '{name}' ships with helixsim; {did_you_mean(name, names)} (for your own, give "
            "its config.json or the folder with it)"
        )
    file = config_path(name)
    return validate(ShippedLLM, read_yaml(file), file)


def is_shipped(llm: str | Path) -> bool:
    """Whether a text is the name of a shipped configuration, not a path."""
    return isinstance(llm, str) and llm in shipped_configs()


def config_path(name: str) -> Path:
    """The data file of a shipped configuration."""
    return DATA / f"{name}.yaml"

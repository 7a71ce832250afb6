"""The architecture of an LLM from its Hugging Face ``config.json``, or from a shipped one."""

from __future__ import annotations

import re
from pathlib import Path

from helixsim.errors import InputError
from helixsim.llms.architecture import Architecture
from helixsim.llms.catalogue import config_path, is_shipped, shipped_config
from helixsim.llms.config_file import read_config_file
from helixsim.llms.config_values import ConfigValues, shown
from helixsim.llms.families import FAMILIES
from helixsim.llms.layers import LayerReader, layer_count
from helixsim.llms.number_formats import read_number_formats


def read_architecture(
    llm: str | Path,
    *,
    base_dir: str | Path = ".",
    name: str | None = None,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
) -> Architecture:
    """Read the architecture of an LLM.

    Parameters
    ----------
    llm
        A ``config.json``, the folder with it, or the name of a shipped configuration.
    base_dir
        Folder to which a relative path refers.
    name
        Name of the LLM. By default: of the shipped configuration, or of the folder.
    weights, kv, activations
        Number formats (:data:`.NUMBER_FORMATS`) instead of the file's.

    Raises
    ------
    InputError
        If the file cannot be read, or describes an LLM of an unknown family; with the key.
    """
    config, found = _read(llm, base_dir)
    values = _language_model(config)
    family = FAMILIES[str(values.get("model_type"))]
    values = ConfigValues(values.values, values.file, values.prefix, family.defaults)
    formats = read_number_formats(
        config, values, layer_count(values), weights=weights, kv=kv, activations=activations
    )
    kinds, kind_of_layer = LayerReader(values, family, formats).layers()
    hidden = values.count("hidden_size")
    max_context = values.get("max_position_embeddings")
    return Architecture(
        name=name or found,
        hidden_size=hidden,
        vocab_size=values.count("vocab_size"),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        tied_embedding=_tied(config, values),
        weights=formats.weights,
        kv=formats.kv,
        activations=formats.activations,
        other_values=hidden * (2 if family.norm_bias else 1),
        max_context=None if max_context is None else values.count("max_position_embeddings"),
    )


def _read(llm: str | Path, base_dir: str | Path) -> tuple[ConfigValues, str]:
    """Keys and values, and a name."""
    if is_shipped(llm):
        return ConfigValues(shipped_config(str(llm)).config, config_path(str(llm))), str(llm)
    file = Path(base_dir) / llm
    if file.suffix in (".yaml", ".yml"):
        raise InputError("is not a config.json but, by its name, an LLM file", file=file)
    if not file.exists() and file.suffix != ".json":
        shipped_config(str(llm))  # raises, with the names that there are
    if file.is_dir():
        file /= "config.json"
    return read_config_file(file), _name_of(file)


def _name_of(file: Path) -> str:
    """A name after the file, or the folder of a ``config.json``, as LLM files may have it."""
    stem = file.resolve().parent.name if file.stem == "config" else file.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:64]
    return name or "llm"


def _language_model(config: ConfigValues) -> ConfigValues:
    """The part that describes the LLM: ``text_config``, if the model reads images too."""
    text = None if config.get("model_type") in list(FAMILIES) else config.below("text_config")
    values = config if text is None else text
    kind = values.get("model_type")
    if kind not in list(FAMILIES):  # a list: the value may be anything
        known = ", ".join(sorted(FAMILIES))
        problem = "this key is missing" if kind is None else f"{shown(kind)} is not supported"
        message = f"{problem}; supported are {known} (for another LLM, write an LLM file)"
        raise values.error("model_type", message)
    return values


def _tied(config: ConfigValues, values: ConfigValues) -> bool:
    source = values if values.values.get("tie_word_embeddings") is not None else config
    default = values.defaults.get("tie_word_embeddings") is True
    return source.flag("tie_word_embeddings", default=default)

"""The LLM of a scenario: an LLM file, or a ``config.json``, by a name or a path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from helixsim.errors import InputError, ScenarioError
from helixsim.llms.architecture import Architecture
from helixsim.llms.catalogue import shipped_configs
from helixsim.llms.read import read_architecture
from helixsim.profiles.library import load_llm, shipped_llms
from helixsim.profiles.llm_file import llm_of
from helixsim.profiles.machine import LLM
from helixsim.profiles.spec import Name
from helixsim.scenario.files import is_yaml_name
from helixsim.scenario.keys import FileName
from helixsim.yaml_files import FileModel, did_you_mean


class ConfigLLM(FileModel):
    """An LLM from its config.json."""

    config: FileName = Field(
        description="A config.json (Hugging Face) or the folder with it; or the name of a shipped "
        "configuration.",
    )
    name: Name | None = Field(
        default=None,
        description="Name for machine files. Default: of the shipped configuration, or of the "
        "folder.",
    )
    weights: str | None = Field(
        default=None, description="Number format of the weights of layers, such as `fp8`."
    )
    kv: str | None = Field(default=None, description="Number format of the KV cache.")
    activations: str | None = Field(
        default=None, description="Number format of hidden states, embedding and head."
    )
    kv_context: Annotated[int, Field(ge=1, le=2**31)] | None = Field(
        default=None,
        description="Context of a typical request, in tokens: a layer with a sliding window of w "
        "tokens keeps min(1, w / kv_context) of each token's keys and values. Default: of the "
        "workload's mean request, its prompt and half of its output.",
    )


LLMSection = Annotated[
    Annotated[FileName, Tag("<name>")] | Annotated[ConfigLLM, Tag("<config>")],
    Discriminator(lambda value: "<name>" if isinstance(value, str) else "<config>"),
]


def resolve_llm(
    section: str | ConfigLLM, file: Path, mean_context_tokens: int
) -> tuple[LLM, Architecture | None]:
    """The LLM of a scenario, and its architecture, which LLM files do not have.

    Parameters
    ----------
    section
        What the scenario says.
    file
        The scenario file, for messages; paths are relative to its folder.
    mean_context_tokens
        The context that KV caches are reckoned for where the section gives none.

    Raises
    ------
    InputError
        If there is no such LLM, or its file has errors.
    """
    if isinstance(section, ConfigLLM):
        return _resolved(section, file, "llm.config", mean_context_tokens)
    if is_yaml_name(section) or section in shipped_llms():
        return load_llm(section, file.parent), None
    return _resolved(ConfigLLM(config=section), file, "llm", mean_context_tokens)


def _resolved(
    section: ConfigLLM, file: Path, where: str, mean_context_tokens: int
) -> tuple[LLM, Architecture]:
    config = section.config
    if is_yaml_name(config):
        message = f"{config} is an LLM file, whose sizes are fixed; write llm: {config}"
        raise ScenarioError(message, file=file, where=where)
    if config not in shipped_configs() and not (file.parent / config).exists():
        names = dict.fromkeys((*shipped_llms(), *shipped_configs()))
        message = (
            f"no LLM '{config}' ships with helixsim; {did_you_mean(config, names)} (for your own, "
            "give its config.json, the folder with it, or an LLM file ending in .yaml)"
        )
        raise ScenarioError(message, file=file, where=where)
    try:
        architecture = read_architecture(
            config,
            base_dir=file.parent,
            name=section.name,
            weights=section.weights,
            kv=section.kv,
            activations=section.activations,
        )
    except InputError as error:
        if error.file is not None:
            raise
        raise ScenarioError(error.message, file=file, where=f"llm.{error.where}") from error
    context_tokens = section.kv_context or mean_context_tokens
    return llm_of(architecture, kv_context_tokens=context_tokens), architecture

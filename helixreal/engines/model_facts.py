"""What a model's folder says of it, as far as a coordinator needs to know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helixsim.errors import InputError
from helixsim.profiles.machine import LLM


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """From ``config.json``.

    Attributes
    ----------
    num_layers, vocabulary, max_context_tokens
        Layers, different tokens, and the longest context.
    """

    num_layers: int
    vocabulary: int
    max_context_tokens: int


def model_facts(folder: Path, llm: LLM) -> ModelFacts:
    """Read what a model is like, and see that it is the LLM that a scenario is about.

    Raises
    ------
    InputError
        If there is no such model, or it has another number of layers.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror or error}; name the folder of a model in Hugging "
            "Face's format",
            file=file,
        ) from error
    except ValueError as error:
        raise InputError(f"is no JSON: {error}", file=file) from error

    def number(key: str) -> int:
        value: Any = config.get(key) if isinstance(config, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError("must be a whole number above zero", file=file, where=key)
        return value

    facts = ModelFacts(
        number("num_hidden_layers"), number("vocab_size"), number("max_position_embeddings")
    )
    if facts.num_layers != llm.num_layers:
        raise InputError(
            f"the model has {facts.num_layers} layers, but {llm.name} in the scenario has "
            f"{llm.num_layers}",
            file=file,
            where="num_hidden_layers",
        )
    return facts

"""LLMs for serving, and LLM files, from an architecture."""

from __future__ import annotations

import json

from helixsim.llms.architecture import Architecture, LayerKind
from helixsim.profiles.llm_spec import LLMSpec
from helixsim.profiles.machine import LLM
from helixsim.yaml_files import parse_yaml, validate

KV_CONTEXT_TOKENS = 4096
"""Context for which the KV cache of layers with a window is reckoned where no workload is known."""


def llm_of(
    architecture: Architecture,
    name: str | None = None,
    kv_context_tokens: int = KV_CONTEXT_TOKENS,
) -> LLM:
    """The LLM that serving works with: sizes of the layers, embedding and head.

    Parameters
    ----------
    architecture
        The architecture.
    name
        Another name.
    kv_context_tokens
        Layers with a window of w tokens keep min(1, w / kv_context_tokens) of each token's keys and
        values.
    """
    text = llm_text(architecture, name, kv_context_tokens)
    return validate(LLMSpec, parse_yaml(text, "LLM file"), None).to_llm()


def llm_document(
    architecture: Architecture,
    name: str | None = None,
    kv_context_tokens: int = KV_CONTEXT_TOKENS,
    *,
    source: str = "",
) -> dict[str, object]:
    """The content of an LLM file: parameters as of :func:`llm_of`, and where the sizes are from."""
    shared: dict[str, object] = {"tied": True} if architecture.tied_embedding else {}
    other_bytes = architecture.other_values * architecture.activations.bytes_per_value
    return {
        "schema": 1,
        "kind": "llm",
        "name": name or architecture.name,
        "source": f"{source or 'config.json'}: {_formats(architecture, kv_context_tokens)}",
        "num_layers": architecture.num_layers,
        "activation_size": _size(architecture.activation_bytes_per_token),
        **_layers(architecture, kv_context_tokens),
        "embedding_size": _size(architecture.table_bytes),
        "head_size": _size(architecture.table_bytes + other_bytes),
        **shared,
    }


def llm_text(
    architecture: Architecture,
    name: str | None = None,
    kv_context_tokens: int = KV_CONTEXT_TOKENS,
    *,
    source: str = "",
) -> str:
    """An LLM file: one key a line; YAML reads JSON values."""
    document = llm_document(architecture, name, kv_context_tokens, source=source)
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in document.items()]
    return "\n".join(lines) + "\n"


def _formats(architecture: Architecture, kv_context_tokens: int) -> str:
    """What the sizes rest on."""
    text = f"weights {architecture.weights.name}, KV cache {architecture.kv.name}"
    text += f", activations {architecture.activations.name}"
    if any(kind.attention.window is not None for kind in architecture.kinds):
        text += f"; sliding windows at a context of {kv_context_tokens:,} tokens"
    return text


def _layers(architecture: Architecture, kv_context_tokens: int) -> dict[str, object]:
    """Sizes of the layers; kinds of equal sizes are one."""
    sizes = [_kind(architecture, kind, kv_context_tokens) for kind in architecture.kinds]
    different = list(dict.fromkeys(sizes))
    if len(different) == 1:
        return dict(zip(("layer_size", "kv_size"), different[0], strict=True))
    names = [
        " or ".join(
            kind.name for kind, own in zip(architecture.kinds, sizes, strict=True) if own == size
        )
        for size in different
    ]
    return {
        "kinds": [
            {"name": name, "layer_size": size[0], "kv_size": size[1]}
            for name, size in zip(names, different, strict=True)
        ],
        "kind_of_layer": [different.index(sizes[kind]) for kind in architecture.kind_of_layer],
    }


def _kind(architecture: Architecture, kind: LayerKind, kv_context_tokens: int) -> tuple[str, str]:
    kept = kind.attention.context(kv_context_tokens) / kv_context_tokens
    kv_bytes = kept * architecture.kv_bytes_per_token(kind)
    return _size(architecture.layer_bytes(kind)), _size(kv_bytes)


def _size(num_bytes: float) -> str:
    """A size that reads back as the same number."""
    return f"{num_bytes:.0f} B" if num_bytes == int(num_bytes) else f"{num_bytes!r} B"

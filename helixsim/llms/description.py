"""What was understood of an LLM: figures as plain data, and as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from helixsim.llms.architecture import Architecture, Attention, LayerKind
from helixsim.llms.catalogue import is_shipped, shipped_config, shipped_configs
from helixsim.llms.read import read_architecture

KINDS_HEAD = ("layers", "kind", "attention", "experts", "parameters", "weights", "KV per token")
CATALOGUE_HEAD = ("name", "hub", "layers", "parameters", "published", "difference", "active")


def description(llm: Architecture, context_tokens: int, *, config: str = "") -> dict[str, Any]:
    """Figures of an LLM as plain data.

    Parameters
    ----------
    llm
        The LLM.
    context_tokens
        Context at which a token's FLOP, and the KV cache of layers with a window, are reckoned.
    config
        Name of the shipped configuration, if it is one.
    """
    shipped = shipped_config(config) if is_shipped(config) else None
    once = llm.table_bytes * (1 if llm.tied_embedding else 2)
    once += llm.other_values * llm.activations.bytes_per_value
    return {
        "name": llm.name,
        "hub": None if shipped is None else shipped.hub,
        "parameters": llm.parameters,
        "published_parameters": None if shipped is None else shipped.parameters,
        "published_source": None if shipped is None else shipped.source,
        "active_parameters": llm.active_parameters,
        "num_layers": llm.num_layers,
        "hidden_size": llm.hidden_size,
        "vocab_size": llm.vocab_size,
        "max_context_tokens": llm.max_context,
        "formats": {
            "weights": llm.weights.name,
            "kv": llm.kv.name,
            "activations": llm.activations.name,
        },
        "weights_bytes": sum(map(llm.layer_bytes, llm.layers)) + once,
        "embedding_bytes": llm.table_bytes,
        "head_bytes": llm.table_bytes,
        "tied_embedding": llm.tied_embedding,
        "context_tokens": context_tokens,
        "kv_bytes_per_token": sum(_kv_bytes(llm, kind, context_tokens) for kind in llm.layers),
        "flop_per_token": llm.flop_per_token(context_tokens),
        "kinds": [
            _kind(llm, number, kind, context_tokens) for number, kind in enumerate(llm.kinds)
        ],
    }


def _kv_bytes(llm: Architecture, kind: LayerKind, context_tokens: int) -> float:
    kept = kind.attention.context(context_tokens) / context_tokens
    return kept * llm.kv_bytes_per_token(kind)


def _kind(llm: Architecture, number: int, kind: LayerKind, context_tokens: int) -> dict[str, Any]:
    attention, experts = kind.attention, kind.experts
    return {
        "name": kind.name,
        "layers": llm.kind_of_layer.count(number),
        "attention": {
            "num_heads": attention.num_heads,
            "num_kv_heads": attention.num_kv_heads,
            "key_dim": attention.key_dim,
            "value_dim": attention.value_dim,
            "latent_dim": attention.latent_dim,
            "window": attention.window,
        },
        "matrices": {matrix.name: [matrix.inputs, matrix.outputs] for matrix in kind.matrices},
        "experts": None
        if experts is None
        else {
            "num_experts": experts.num_experts,
            "experts_per_token": experts.experts_per_token,
            "parameters_of_one": experts.expert_values,
            "format": (experts.matrices[0].number_format or llm.weights).name,
        },
        "parameters": kind.values,
        "active_parameters": kind.active_values,
        "bytes": llm.layer_bytes(kind),
        "kv_bytes_per_token": _kv_bytes(llm, kind, context_tokens),
    }


def description_text(llm: Architecture, context_tokens: int, *, config: str = "") -> str:
    """The same as text."""
    told = description(llm, context_tokens, config=config)
    rows = list(_rows(told))
    width = max(len(title) for title, _ in rows)
    lines = [f"{title:{width}}  {text}" for title, text in rows]
    kinds = [
        (
            f"{kind['layers']}",
            kind["name"],
            attention_text(made.attention),
            _experts_text(kind["experts"]),
            _billions(kind["parameters"]),
            size_text(kind["bytes"]),
            f"{kind['kv_bytes_per_token']:,.0f} B",
        )
        for kind, made in zip(told["kinds"], llm.kinds, strict=True)
    ]
    return "\n".join([*lines, "", *table_lines(KINDS_HEAD, kinds)]) + "\n"


def _rows(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    formats, context = told["formats"], told["context_tokens"]
    hub = f" ({told['hub']})" if told["hub"] else ""
    longest = told["max_context_tokens"]
    yield "LLM", told["name"] + hub
    yield (
        "sizes",
        f"{told['num_layers']} layers, hidden state of {told['hidden_size']:,} values, vocabulary "
        f"of {told['vocab_size']:,}" + (f", up to {longest:,} tokens" if longest else ""),
    )
    yield "parameters", f"{told['parameters']:,}{_published(told)}"
    yield "active", f"{told['active_parameters']:,} for each token"
    yield (
        "formats",
        f"weights {formats['weights']}, KV cache {formats['kv']}, activations "
        f"{formats['activations']}",
    )
    both = "one table" if told["tied_embedding"] else "each"
    yield (
        "weights",
        f"{size_text(told['weights_bytes'])}, with embedding and head of "
        f"{size_text(told['head_bytes'])} ({both})",
    )
    yield (
        "KV cache",
        f"{told['kv_bytes_per_token']:,.0f} B for each token in all layers, at a context of "
        f"{context:,} tokens",
    )
    yield "FLOP", f"{_billions(told['flop_per_token'])} for each token at this context"


def _published(told: dict[str, Any]) -> str:
    published = told["published_parameters"]
    if published is None:
        return ""
    difference = _difference(told["parameters"], published)
    return f"; published {published:,} ({difference}; {told['published_source']})"


def _difference(parameters: int, published: int) -> str:
    return f"{100 * (parameters / published - 1):+.2f} %"


def attention_text(attention: Attention) -> str:
    """Attention in a few words, such as ``32 heads, 8 KV heads of 128``."""
    if attention.latent_dim:
        text = f"{attention.num_heads} heads, latent of {attention.latent_dim}"
    else:
        text = f"{attention.num_heads} heads, {attention.num_kv_heads} KV heads"
        text += f" of {attention.key_dim}"
    return text if attention.window is None else f"{text}, window {attention.window:,}"


def _experts_text(experts: dict[str, Any] | None) -> str:
    if experts is None:
        return ""
    return f"{experts['experts_per_token']} of {experts['num_experts']} ({experts['format']})"


def _billions(value: float) -> str:
    return f"{value / 1e9:.4g} x 10^9"


def size_text(num_bytes: float) -> str:
    """A size with a unit and four digits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.4g} {unit}"
    return f"{num_bytes:.4g} B"


def catalogue_rows() -> list[Sequence[str]]:
    """The shipped configurations: a row for each, in the order of :data:`CATALOGUE_HEAD`."""
    rows: list[Sequence[str]] = []
    for name in shipped_configs():
        shipped, llm = shipped_config(name), read_architecture(name)
        rows.append(
            (
                name,
                shipped.hub,
                f"{llm.num_layers}",
                f"{llm.parameters:,}",
                f"{shipped.parameters:,}",
                _difference(llm.parameters, shipped.parameters),
                f"{llm.active_parameters / 1e9:.2f} x 10^9",
            )
        )
    return rows


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of text."""
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [
        "  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]

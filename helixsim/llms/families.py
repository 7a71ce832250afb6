"""Families of LLMs: what a ``model_type`` means, where the keys of a ``config.json`` do not say it.

A family is data. To add one, add its row to :data:`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Bias = bool | str
"""Whether matrices have a bias, or the key that says so."""

WindowRule = Literal["none", "all", "late", "pattern"]
"""Layers with a window: none; all; the layers from
``max_window_layers`` on if ``use_sliding_window``; or all but every ``sliding_window_pattern``-th.
A list ``layer_types`` takes precedence in every family."""

ExpertRule = Literal["all", "after dense", "step"]
"""Layers with experts: all; the layers from ``first_k_dense_replace`` on, every
``moe_layer_freq``-th; or every ``step``-th (the key) but ``mlp_only_layers``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertKeys:
    """The keys of experts.

    Attributes
    ----------
    count, used, width
        Keys of the number of experts, of how many a token uses, and of the width of one.
    rule, step
        Which layers have them; the key of the rule's step.
    shared_count, shared_width
        Key of the number of shared experts of the same width, or of the width of the shared one.
    shared_gate
        Whether the shared expert has a gate of its own: a matrix with one output.
    router_bias, bias
        Whether the router has a value for each expert besides its matrix; whether experts have
        biases.
    """

    count: str
    used: str = "num_experts_per_tok"
    width: str = "moe_intermediate_size"
    rule: ExpertRule = "all"
    step: str = "decoder_sparse_step"
    shared_count: str | None = None
    shared_width: str | None = None
    shared_gate: bool = False
    router_bias: bool = False
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """LLMs with one way of reading their ``config.json``.

    Attributes
    ----------
    latent
        Multi-head latent attention (MLA), with the keys of DeepSeek.
    qkv_bias, output_bias
        Biases of the projections of the attention.
    qk_norm
        Norm of queries and keys: none, of each head, of the whole width; or the key that says
        whether each head has one.
    sinks
        Whether each head has a sink: one learned value.
    norms, norm_bias
        Norms of a layer, and whether each has a bias.
    gated, mlp_bias
        Whether the feed-forward block has a gate (three matrices, else two); its biases.
    dense_width
        Key of the width of feed-forward blocks without experts.
    window, window_key
        Layers with a sliding window; the key of its tokens.
    experts
        Keys of the experts; None for a dense LLM.
    defaults
        Values of keys that files of the family leave out.
    """

    latent: bool = False
    qkv_bias: Bias = "attention_bias"
    output_bias: Bias = "attention_bias"
    qk_norm: Literal["none", "head", "width", "use_qk_norm"] = "none"
    sinks: bool = False
    norms: int = 2
    norm_bias: bool = False
    gated: bool = True
    mlp_bias: Bias = "mlp_bias"
    dense_width: str = "intermediate_size"
    window: WindowRule = "none"
    window_key: str = "sliding_window"
    experts: ExpertKeys | None = None
    defaults: Mapping[str, object] = field(default_factory=dict)


_LLAMA = Family()
_QWEN2 = Family(qkv_bias=True, output_bias=False, mlp_bias=False, window="late")
_QWEN3 = replace(_QWEN2, qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="head")
_STEP_EXPERTS = ExpertKeys(count="num_experts", rule="step")
_DEEPSEEK_EXPERTS = ExpertKeys(
    count="n_routed_experts", rule="after dense", shared_count="n_shared_experts"
)
_DEEPSEEK = Family(latent=True, mlp_bias=False, experts=_DEEPSEEK_EXPERTS)
_DEEPSEEK_V3 = replace(_DEEPSEEK, experts=replace(_DEEPSEEK_EXPERTS, router_bias=True))
_GEMMA = Family(defaults={"tie_word_embeddings": True, "head_dim": 256}, mlp_bias=False)
_GEMMA2 = replace(
    _GEMMA,
    norms=4,
    window="pattern",
    defaults={**_GEMMA.defaults, "sliding_window_pattern": 2, "sliding_window": 4096},
)
_GEMMA3 = replace(
    _GEMMA2,
    qk_norm="head",
    defaults={
        **_GEMMA2.defaults,
        "sliding_window_pattern": 6,
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
)
_TIED = {"tie_word_embeddings": True}

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "llama4_text": Family(
        output_bias="attention_bias",
        mlp_bias=False,
        dense_width="intermediate_size_mlp",
        window="pattern",
        window_key="attention_chunk_size",
        experts=ExpertKeys(
            count="num_local_experts",
            width="intermediate_size",
            rule="step",
            step="interleave_moe_layer_step",
            shared_count="num_shared_experts",
        ),
        defaults={"num_shared_experts": 1, "sliding_window_pattern": 4},
    ),
    "minimax_m2": Family(
        qk_norm="width",
        mlp_bias=False,
        experts=ExpertKeys(count="num_local_experts", width="intermediate_size", router_bias=True),
    ),
    "mistral": Family(qkv_bias=False, output_bias=False, mlp_bias=False, window="all"),
    "ministral": Family(qkv_bias=False, output_bias=False, mlp_bias=False, window="all"),
    "phi3": Family(qkv_bias=False, output_bias=False, mlp_bias=False, window="all"),
    "granite": _LLAMA,
    "olmo2": replace(_LLAMA, qk_norm="width", mlp_bias=False),
    "smollm3": replace(_LLAMA, defaults=_TIED, window="late"),
    "seed_oss": Family(qkv_bias="attention_bias", output_bias="attention_out_bias"),
    "qwen2": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_vl_text": _QWEN3,
    "qwen2_moe": replace(
        _QWEN2,
        experts=replace(
            _STEP_EXPERTS, shared_width="shared_expert_intermediate_size", shared_gate=True
        ),
    ),
    "qwen3_moe": replace(_QWEN3, experts=_STEP_EXPERTS),
    "qwen3_vl_moe_text": replace(_QWEN3, experts=_STEP_EXPERTS),
    "mixtral": Family(
        qkv_bias=False,
        output_bias=False,
        window="all",
        experts=ExpertKeys(count="num_local_experts", width="intermediate_size"),
    ),
    "gpt_oss": Family(
        sinks=True,
        window="pattern",
        experts=ExpertKeys(
            count="num_local_experts", width="intermediate_size", router_bias=True, bias=True
        ),
        defaults={
            "attention_bias": True,
            "head_dim": 64,
            "sliding_window": 128,
            "sliding_window_pattern": 2,
        },
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm4": replace(_LLAMA, norms=4, qkv_bias="attention_bias", output_bias=False, mlp_bias=False),
    "glm4_moe": replace(
        _LLAMA,
        output_bias=False,
        qk_norm="use_qk_norm",
        mlp_bias=False,
        experts=replace(_DEEPSEEK_EXPERTS, router_bias=True),
    ),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "starcoder2": Family(
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        norm_bias=True,
        gated=False,
        window="all",
        defaults={**_TIED, "use_bias": True},
    ),
}
"""Families by the ``model_type`` of their ``config.json``."""

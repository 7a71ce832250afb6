"""A ``config.json`` of the Hugging Face hub for one kind of layers of an LLM.

Libraries of measured kernels know LLMs by such files. It describes two layers; what a library only
knows together (DeepSeek's attention and experts, the windows of gpt-oss) stays so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helixsim.errors import InputError
from helixsim.llms.architecture import Architecture, LayerKind, Matrix

NUM_LAYERS = 2
"""Layers of each file: an LLM with alternate windows has one of each kind then."""

_GPT_OSS_WINDOW = 128


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Widths of a feed-forward block.

    Attributes
    ----------
    width
        Of the dense block; of the shared experts together if there are experts; 0 without.
    expert_width
        Of one expert; 0 without experts.
    """

    width: int
    expert_width: int


def feed_forward_of(kind: LayerKind) -> FeedForward:
    """The widths of a layer's feed-forward block, from its matrices.

    The matrices that are split by their inputs are the last ones of attention and block.

    Raises
    ------
    InputError
        If a block has no gate: three matrices are usual.
    """
    ends = [place for place, matrix in enumerate(kind.matrices) if matrix.split == "inputs"]
    width = 0
    if len(ends) > 1:
        width = kind.matrices[ends[1]].inputs
        _check_gate(kind.matrices[ends[0] + 1 : ends[1]], width)
    expert_width = 0
    if kind.experts is not None:
        last = [matrix for matrix in kind.experts.matrices if matrix.split == "inputs"]
        expert_width = (last or kind.experts.matrices)[-1].inputs
    return FeedForward(width, expert_width)


def _check_gate(matrices: tuple[Matrix, ...], width: int) -> None:
    if sum(matrix.outputs for matrix in matrices if matrix.outputs >= width) != 2 * width:
        raise InputError("feed-forward blocks without a gate are not among the measured ones")


def layer_config(architecture: Architecture, kind: LayerKind) -> dict[str, Any]:
    """A file for layers of this kind.

    Raises
    ------
    InputError
        If no measured family has such layers.
    """
    attention = kind.attention
    block = feed_forward_of(kind)
    config: dict[str, Any] = {
        "num_hidden_layers": NUM_LAYERS,
        "hidden_size": architecture.hidden_size,
        "vocab_size": architecture.vocab_size,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.value_dim,
        "max_position_embeddings": architecture.max_context or 131072,
        "torch_dtype": "bfloat16",
    }
    if attention.latent_dim:
        return config | _latent(kind, block)
    if attention.key_dim != attention.value_dim:
        raise InputError("heads whose keys and values differ in size are not measured")
    if kind.experts is None:
        return config | _dense(architecture, kind, block)
    if block.width:
        raise InputError("shared experts beside this kind of attention are not measured")
    if _alternates(architecture):
        return config | {
            "architectures": ["GptOssForCausalLM"],
            "num_local_experts": kind.experts.num_experts,
            "num_experts_per_tok": kind.experts.experts_per_token,
            "intermediate_size": block.expert_width,
        }
    _check_no_window(kind)
    return config | {
        "architectures": [f"{'Qwen3' if _normed(architecture, kind) else 'Qwen2'}MoeForCausalLM"],
        "num_experts": kind.experts.num_experts,
        "num_experts_per_tok": kind.experts.experts_per_token,
        "moe_intermediate_size": block.expert_width,
        "intermediate_size": block.expert_width,
    }


def dense_config(architecture: Architecture, kind: LayerKind) -> dict[str, Any]:
    """A file with this kind's feed-forward block, which is dense, and any attention."""
    heads = max(1, architecture.hidden_size // 128)
    return {
        "num_hidden_layers": NUM_LAYERS,
        "hidden_size": architecture.hidden_size,
        "vocab_size": architecture.vocab_size,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 128,
        "max_position_embeddings": architecture.max_context or 131072,
        "torch_dtype": "bfloat16",
        "architectures": ["LlamaForCausalLM"],
        "intermediate_size": feed_forward_of(kind).width,
    }


def _dense(architecture: Architecture, kind: LayerKind, block: FeedForward) -> dict[str, Any]:
    if not block.width:
        raise InputError("a layer has no feed-forward block")
    if _alternates(architecture):
        raise InputError("sliding windows beside a dense feed-forward block are not measured")
    _check_no_window(kind)
    family = "Qwen3" if _normed(architecture, kind) else "Llama"
    return {"architectures": [f"{family}ForCausalLM"], "intermediate_size": block.width}


def _normed(architecture: Architecture, kind: LayerKind) -> bool:
    """Whether queries and keys have norms: all values outside of matrices are of norms."""
    norms = 2 * architecture.hidden_size
    return kind.other_values == norms + 2 * kind.attention.key_dim


def _latent(kind: LayerKind, block: FeedForward) -> dict[str, Any]:
    """Layers of DeepSeek-V3, the only measured ones with a latent."""
    attention, experts = kind.attention, kind.experts
    if (attention.latent_dim, attention.value_dim) != (576, 128):
        raise InputError(
            f"of latent attention, only that of DeepSeek-V3 is measured (512 + 64 values a token), "
            f"not {attention.latent_dim} values"
        )
    if experts is None:
        raise AssertionError("a dense block beside a latent is taken from another file")
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": attention.key_dim - 64,
        "v_head_dim": attention.value_dim,
        "q_lora_rank": 1536,
        "n_routed_experts": experts.num_experts,
        "num_experts_per_tok": experts.experts_per_token,
        "n_shared_experts": round(block.width / block.expert_width) if block.width else 0,
        "moe_intermediate_size": block.expert_width,
        "intermediate_size": block.expert_width,
    }


def _alternates(architecture: Architecture) -> bool:
    """Whether some layers have a window of 128 tokens and others none, as in gpt-oss."""
    windows = {kind.attention.window for kind in architecture.kinds}
    return windows == {None, _GPT_OSS_WINDOW}


def _check_no_window(kind: LayerKind) -> None:
    if kind.attention.window is not None:
        raise InputError(f"sliding windows of {kind.attention.window} tokens are not measured")

"""A tiny Llama in Hugging Face's format, made on the spot: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN_SIZE = 64
NUM_HEADS = 4
NUM_KV_HEADS = 2
HEAD_DIM = 32
INTERMEDIATE_SIZE = 128
VOCAB_SIZE = 256
_GAIN = 1.5
"""Above 1 each layer says something of its own, so that greedy tokens do not repeat."""


def write_tiny_llama(
    folder: Path, *, seed: int = 0, num_layers: int = 8, tie_word_embeddings: bool = False
) -> Path:
    """Write config.json and model.safetensors (float32) into a folder, which is made.

    Parameters
    ----------
    folder
        Where to.
    seed
        Of the weights: the same seed gives the same file.
    num_layers
        Of the model.
    tie_word_embeddings
        Whether the head is the embedding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": num_layers,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tie_word_embeddings,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(
        _weights(seed, num_layers, with_head=not tie_word_embeddings),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def _weights(seed: int, num_layers: int, *, with_head: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * _GAIN / columns**0.5

    def scale() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(HIDDEN_SIZE, generator=generator)

    weights = {"model.embed_tokens.weight": matrix(VOCAB_SIZE, HIDDEN_SIZE)}
    for layer in range(num_layers):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": scale(),
            f"{name}.self_attn.q_proj.weight": matrix(NUM_HEADS * HEAD_DIM, HIDDEN_SIZE),
            f"{name}.self_attn.k_proj.weight": matrix(NUM_KV_HEADS * HEAD_DIM, HIDDEN_SIZE),
            f"{name}.self_attn.v_proj.weight": matrix(NUM_KV_HEADS * HEAD_DIM, HIDDEN_SIZE),
            f"{name}.self_attn.o_proj.weight": matrix(HIDDEN_SIZE, NUM_HEADS * HEAD_DIM),
            f"{name}.post_attention_layernorm.weight": scale(),
            f"{name}.mlp.gate_proj.weight": matrix(INTERMEDIATE_SIZE, HIDDEN_SIZE),
            f"{name}.mlp.up_proj.weight": matrix(INTERMEDIATE_SIZE, HIDDEN_SIZE),
            f"{name}.mlp.down_proj.weight": matrix(HIDDEN_SIZE, INTERMEDIATE_SIZE),
        }
    weights["model.norm.weight"] = scale()
    if with_head:
        weights["lm_head.weight"] = matrix(VOCAB_SIZE, HIDDEN_SIZE)
    return weights

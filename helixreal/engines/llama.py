"""Layers of Llama-type models in torch, on packed batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from helixreal.engines.checkpoint import Weights
from helixreal.engines.model_config import LlamaConfig
from helixreal.engines.paged_attention import AttentionBatch
from helixreal.engines.sharding import Shard

Sum = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over all ranks; with one rank, returns it."""


class Linear:
    """One or several linear layers on the same input, as one matrix product."""

    def __init__(
        self,
        weights: Weights,
        config: LlamaConfig,
        prefix: str,
        names: tuple[str, ...],
        shard: Shard,
    ) -> None:
        shapes = config.layer_shapes

        def joined(kind: str) -> torch.Tensor:
            return torch.cat(
                [
                    weights.take(
                        f"{prefix}{name}.{kind}", shapes[f"{name}.{kind}"], shard.part(name, kind)
                    )
                    for name in names
                ]
            )

        self._weight = joined("weight")
        has_bias = f"{names[0]}.bias" in shapes and shard.has_bias(names[0])
        self._bias = joined("bias") if has_bias else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layers; their outputs are concatenated in the last dimension."""
        return functional.linear(x, self._weight, self._bias)


class RmsNorm:
    """Root mean square normalization."""

    def __init__(self, weights: Weights, config: LlamaConfig, name: str) -> None:
        self._weight = weights.take(f"{name}.weight", (config.hidden_size,))
        self._eps = config.norm_eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize, with the sum of squares in float32."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)
        return self._weight * wide.to(x.dtype)


class LlamaLayer:
    """One decoder layer.

    Parameters
    ----------
    weights
        Source of its tensors.
    config
        Config of the model.
    index
        Number of the layer in the model.
    shard
        Which part of it is held.
    """

    def __init__(self, weights: Weights, config: LlamaConfig, index: int, shard: Shard) -> None:
        prefix = f"model.layers.{index}."
        self._config = shard.config(config)

        def linear(*names: str) -> Linear:
            return Linear(weights, config, prefix, names, shard)

        self._attention_norm = RmsNorm(weights, config, f"{prefix}input_layernorm")
        self._qkv = linear(*(f"self_attn.{part}_proj" for part in ("q", "k", "v")))
        self._output = linear("self_attn.o_proj")
        self._mlp_norm = RmsNorm(weights, config, f"{prefix}post_attention_layernorm")
        self._gate_up = linear("mlp.gate_proj", "mlp.up_proj")
        self._down = linear("mlp.down_proj")

    def __call__(
        self, hidden: torch.Tensor, batch: AttentionBatch, cache: torch.Tensor, sum_ranks: Sum
    ) -> torch.Tensor:
        """Run the layer.

        Parameters
        ----------
        hidden
            Of shape (tokens, hidden size).
        batch
            Positions and cache slots of the tokens.
        cache
            Keys and values of this layer, of shape (2, blocks, block tokens, KV heads, head
            size); the keys and values of the batch are written.
        sum_ranks
            Sums the outputs of attention and MLP over all ranks.
        """
        config = self._config
        qkv = self._qkv(self._attention_norm(hidden)).view(len(hidden), -1, config.head_dim)
        query, key, value = qkv.split(
            (config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=1
        )
        attended = batch.attend(_rotate(query, batch), _rotate(key, batch), value, cache)
        hidden = hidden + sum_ranks(self._output(attended.flatten(1)))
        gate, up = self._gate_up(self._mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + sum_ranks(self._down(functional.silu(gate) * up))


def _rotate(x: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * batch.cos + torch.cat((-second, first), dim=-1) * batch.sin


def rotary_table(
    config: LlamaConfig, num_tokens: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every position's angles.

    Returns
    -------
    tuple of torch.Tensor
        Each of shape (num_tokens, head size).
    """
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = _scaled(config.rope_theta**-steps / config.rope_divisor, config)
    angles = torch.outer(torch.arange(num_tokens, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def _scaled(frequencies: torch.Tensor, config: LlamaConfig) -> torch.Tensor:
    """Llama 3.1's scaling: divides low frequencies by a factor, keeps high ones, with a blend."""
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_tokens * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / scaling.factor)

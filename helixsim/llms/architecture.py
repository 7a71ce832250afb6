"""The architecture of an LLM: its layers as matrices, attention and experts.

Sizes, parameters and FLOP follow from it. Nothing in it depends on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How a value is stored.

    Attributes
    ----------
    name
        For example ``bf16``.
    bytes_per_value
        Size of one value, with its part of the scale of a group of values.
    """

    name: str
    bytes_per_value: float


NUMBER_FORMATS: Mapping[str, NumberFormat] = {
    form.name: form
    for form in (
        NumberFormat("fp32", 4),
        NumberFormat("bf16", 2),
        NumberFormat("fp16", 2),
        NumberFormat("fp8", 1),
        NumberFormat("int8", 1),
        NumberFormat("mxfp4", 0.5 + 1 / 32),  # a scale of one byte for 32 values
        NumberFormat("nvfp4", 0.5 + 1 / 16),  # a scale of one byte for 16 values
        NumberFormat("int4", 0.5 + 2 / 128),  # a scale of two bytes for 128 values
    )
}
"""Formats by name."""

Split = Literal["outputs", "inputs", "none"]
"""How tensor parallelism divides a matrix: by its outputs, by its inputs (which an all-reduce
follows), or not at all: every GPU holds and multiplies the whole matrix."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that every token is multiplied with.

    Attributes
    ----------
    name
        For example ``qkv``.
    inputs, outputs
        Values of a token before and after.
    split
        How tensor parallelism divides it.
    number_format
        Format of its weights; None for the LLM's.
    """

    name: str
    inputs: int
    outputs: int
    split: Split = "outputs"
    number_format: NumberFormat | None = None

    @property
    def values(self) -> int:
        """Number of weights."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention of a layer, without its projections.

    Attributes
    ----------
    num_heads, num_kv_heads
        Query heads, and heads of keys and values.
    key_dim, value_dim
        Values of a head's query or key, and of its value.
    latent_dim
        Values of a token that all heads share in the KV cache (multi-head latent attention,
        DeepSeek); 0 where each KV head has its own keys and values.
    window
        Tokens that a token attends to, the nearest before it; None for all.
    """

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    latent_dim: int = 0
    window: int | None = None

    @property
    def kv_values(self) -> int:
        """Values of one token in the KV cache of one layer."""
        return self.latent_dim or self.num_kv_heads * (self.key_dim + self.value_dim)

    def kv_copies(self, num_gpus: int) -> float:
        """How many times tensor parallelism stores each token's keys and values.

        KV heads are spread over the GPUs; where there are fewer heads than GPUs, several GPUs hold
        the same head. A latent is whole on every GPU.
        """
        heads = 1 if self.latent_dim else self.num_kv_heads
        return max(1.0, num_gpus / heads)

    def context(self, tokens: float) -> float:
        """Tokens of a context that are attended to, and stay in the KV cache."""
        return tokens if self.window is None else min(tokens, self.window)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts.

    Attributes
    ----------
    num_experts, experts_per_token
        Experts of a layer, and how many of them a token uses. A shared expert, which every token
        uses, is among the layer's matrices instead.
    matrices
        The matrices of one expert.
    other_values
        Weights of one expert that are in no matrix: biases.
    """

    num_experts: int
    experts_per_token: int
    matrices: tuple[Matrix, ...]
    other_values: int = 0

    @property
    def expert_values(self) -> int:
        """Number of weights of one expert."""
        return sum(matrix.values for matrix in self.matrices) + self.other_values


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """What all layers of one kind are made of.

    Attributes
    ----------
    name
        For example ``dense``, ``experts``, ``sliding window``.
    attention
        Its attention.
    matrices
        Projections of the attention, the feed-forward block, the router of the experts, shared
        experts: all that every token goes through.
    experts
        None for a dense layer.
    other_values
        Weights that are in no matrix: norms, biases.
    """

    name: str
    attention: Attention
    matrices: tuple[Matrix, ...]
    experts: Experts | None = None
    other_values: int = 0

    @property
    def values(self) -> int:
        """Number of weights."""
        experts = self.experts
        routed = 0 if experts is None else experts.num_experts * experts.expert_values
        return sum(matrix.values for matrix in self.matrices) + routed + self.other_values

    @property
    def active_values(self) -> int:
        """Number of weights that one token uses."""
        experts = self.experts
        idle = 0
        if experts is not None:
            idle = (experts.num_experts - experts.experts_per_token) * experts.expert_values
        return self.values - idle


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """An LLM by its architecture.

    Attributes
    ----------
    name
        For example ``qwen3-32b``.
    hidden_size, vocab_size
        Values of a token's hidden state, and tokens of the vocabulary.
    kinds
        The kinds of layers.
    kind_of_layer
        For each layer, the number of its kind.
    tied_embedding
        Whether the head is the embedding.
    weights
        Format of the weights in layers, where a matrix has none of its own.
    kv
        Format of the KV cache.
    activations
        Format of hidden states, of the embedding and head, of norms and biases.
    other_values
        Weights outside of layers, embedding and head: the final norm.
    max_context
        The most tokens of a request; None if it is not known.
    """

    name: str
    hidden_size: int
    vocab_size: int
    kinds: tuple[LayerKind, ...]
    kind_of_layer: tuple[int, ...]
    tied_embedding: bool
    weights: NumberFormat
    kv: NumberFormat
    activations: NumberFormat
    other_values: int = 0
    max_context: int | None = None

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.kind_of_layer)

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        return tuple(self.kinds[kind] for kind in self.kind_of_layer)

    @property
    def has_experts(self) -> bool:
        """Whether some layers have experts."""
        return any(kind.experts is not None for kind in self.kinds)

    @property
    def table_values(self) -> int:
        """Number of weights of the embedding, and of the head."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """Number of weights."""
        tables = self.table_values * (1 if self.tied_embedding else 2)
        return sum(layer.values for layer in self.layers) + tables + self.other_values

    @property
    def active_parameters(self) -> int:
        """Number of weights that one token uses; of the embedding, it uses one row."""
        layers = sum(layer.active_values for layer in self.layers)
        return layers + self.table_values + self.hidden_size + self.other_values

    def flop_per_token(self, context_tokens: float) -> float:
        """FLOP of the pass of one token that attends to a context, the head included.

        Two for each weight of a matrix that the token uses, and two for each value of the keys and
        values that each query head attends to.
        """
        each = {kind: self._layer_flop(kind, context_tokens) for kind in self.kinds}
        return sum(each[layer] for layer in self.layers) + 2 * self.table_values

    def _layer_flop(self, kind: LayerKind, context_tokens: float) -> float:
        attention, experts = kind.attention, kind.experts
        weights = sum(matrix.values for matrix in kind.matrices)
        if experts is not None:
            each = sum(matrix.values for matrix in experts.matrices)
            weights += experts.experts_per_token * each
        pair = attention.num_heads * (attention.key_dim + attention.value_dim)
        return 2 * weights + 2 * pair * attention.context(context_tokens)

    @property
    def activation_bytes_per_token(self) -> float:
        """Size of a token's hidden state."""
        return self.hidden_size * self.activations.bytes_per_value

    @property
    def table_bytes(self) -> float:
        """Size of the embedding, and of the head."""
        return self.table_values * self.activations.bytes_per_value

    def matrix_bytes(self, matrix: Matrix) -> float:
        """Size of a matrix."""
        return matrix.values * (matrix.number_format or self.weights).bytes_per_value

    def layer_bytes(self, kind: LayerKind) -> float:
        """Size of the weights of a layer of this kind."""
        size = sum(map(self.matrix_bytes, kind.matrices))
        size += kind.other_values * self.activations.bytes_per_value
        if kind.experts is not None:
            each = sum(map(self.matrix_bytes, kind.experts.matrices))
            each += kind.experts.other_values * self.activations.bytes_per_value
            size += kind.experts.num_experts * each
        return size

    def kv_copies(self, num_gpus: int) -> float:
        """How many times tensor parallelism stores a token's keys and values, of all layers."""
        stored = sum(
            kind.attention.kv_copies(num_gpus) * kind.attention.kv_values for kind in self.layers
        )
        return stored / sum(kind.attention.kv_values for kind in self.layers)

    def kv_bytes_per_token(self, kind: LayerKind) -> float:
        """Size of a token's keys and values in a layer of this kind, one copy."""
        return kind.attention.kv_values * self.kv.bytes_per_value

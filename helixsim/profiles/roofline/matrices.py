"""Times of what depends on the number of tokens only: matrices, norms, embedding, head."""

from __future__ import annotations

from helixsim.llms.architecture import Architecture, LayerKind, Matrix
from helixsim.profiles.roofline.rates import Rates

_NORMS_PER_LAYER = 2
_PASSES_OF_NORM = 4
"""A norm reads the hidden state and the residual, and writes both."""


def matrix_s(
    rates: Rates, architecture: Architecture, matrix: Matrix, tokens: float, num_gpus: int
) -> float:
    """Seconds of a product of tokens with a matrix that GPUs share.

    Weights are read once, whatever the number of tokens; each token takes two FLOP a weight.
    """
    shared = 1 if matrix.split == "none" else num_gpus
    form = matrix.number_format or architecture.weights
    flop = 2 * tokens * matrix.values / shared
    size = architecture.matrix_bytes(matrix) / shared
    bytes_per_s = rates.bytes_per_s * rates.generation.weight_share
    product_s = rates.product_s(flop, size, rates.flop_per_s(form), bytes_per_s)
    return rates.efficiency.matrix_s + product_s


def matrices_s(
    rates: Rates, architecture: Architecture, kind: LayerKind, tokens: float, num_gpus: int
) -> float:
    """Seconds of all matrices of a layer that every token goes through."""
    return sum(matrix_s(rates, architecture, matrix, tokens, num_gpus) for matrix in kind.matrices)


def small_kernels_s(
    rates: Rates, architecture: Architecture, kind: LayerKind, tokens: float, num_gpus: int
) -> float:
    """Seconds of a layer's norms, of the position encoding and of the activation function.

    Each GPU computes the norms of all tokens, and its share of the rest.
    """
    attention, width = kind.attention, architecture.activations.bytes_per_value
    heads = attention.num_heads + min(attention.num_kv_heads, attention.num_heads)
    encoded = 2 * heads * attention.key_dim / num_gpus
    inner = sum(m.inputs for m in kind.matrices if m.split == "inputs")
    inner -= attention.num_heads * attention.value_dim  # of the attention's output projection
    activated = 3 * max(inner, 0) / num_gpus  # reads the gate and the value, writes one
    norms = _NORMS_PER_LAYER * _PASSES_OF_NORM * architecture.hidden_size
    kernels = _NORMS_PER_LAYER + 1 + (1 if activated else 0)
    traffic = tokens * width * (norms + encoded + activated)
    return kernels * rates.efficiency.kernel_s + _stream_s(rates, traffic)


def embedding_s(rates: Rates, architecture: Architecture, tokens: float) -> float:
    """Seconds of the embedding: a row is read and written for each token."""
    traffic = 2 * tokens * architecture.activation_bytes_per_token
    return rates.efficiency.kernel_s + _stream_s(rates, traffic)


def final_norm_s(rates: Rates, architecture: Architecture, tokens: float) -> float:
    """Seconds of the norm after the last layer."""
    traffic = _PASSES_OF_NORM * tokens * architecture.activation_bytes_per_token
    return rates.efficiency.kernel_s + _stream_s(rates, traffic)


def head_s(rates: Rates, architecture: Architecture, sequences: float, num_gpus: int) -> float:
    """Seconds of the language model head, without the sampler."""
    head = Matrix(
        "head",
        architecture.hidden_size,
        architecture.vocab_size,
        number_format=architecture.activations,
    )
    return matrix_s(rates, architecture, head, sequences, num_gpus)


def sampler_s(rates: Rates, architecture: Architecture, sequences: float) -> float:
    """Seconds of the sampler: it goes several times over the logits, which are in FP32."""
    efficiency = rates.efficiency
    traffic = efficiency.sampler_passes * 4 * sequences * architecture.vocab_size
    return efficiency.sampler_s + _stream_s(rates, traffic)


def _stream_s(rates: Rates, num_bytes: float) -> float:
    return num_bytes / (rates.bytes_per_s * rates.efficiency.small_kernel_share)

"""Times of attention: prefills are limited by computation, decodes by reading the KV cache."""

from __future__ import annotations

from helixsim.llms.architecture import Architecture, Attention, LayerKind
from helixsim.profiles.roofline.rates import Rates


def prefill_s(
    rates: Rates,
    architecture: Architecture,
    kind: LayerKind,
    chunk: float,
    before: float,
    num_gpus: int,
) -> float:
    """Seconds of a layer's attention for one chunk.

    Parameters
    ----------
    chunk
        New tokens.
    before
        Tokens that the KV cache holds before them.
    num_gpus
        GPUs that share the heads.
    """
    attention = kind.attention
    dims = attention.key_dim + attention.value_dim
    flop = 2 * _heads(attention, num_gpus) * dims * attended_pairs(attention, chunk, before)
    size = (attention.context(before) + chunk) * _kv_bytes(architecture, kind, num_gpus)
    flop_per_s = rates.flop_per_s(architecture.activations) * rates.generation.attention_share
    bytes_per_s = rates.bytes_per_s * rates.generation.kv_share
    fixed_s = rates.generation.attention_s + rates.efficiency.prefill_s
    return fixed_s + rates.product_s(flop, size, flop_per_s, bytes_per_s)


def decode_s(
    rates: Rates,
    architecture: Architecture,
    kind: LayerKind,
    decodes: float,
    context: float,
    num_gpus: int,
) -> float:
    """Seconds of a layer's attention for a batch of decodes.

    Parameters
    ----------
    decodes
        Number of requests.
    context
        Tokens that each of them attends to, with the new one.
    num_gpus
        GPUs that share the heads.
    """
    attention = kind.attention
    attended = decodes * attention.context(context)
    # With a latent, queries are turned into its space, and meet it as key and as value.
    dims = 2 * attention.latent_dim or attention.key_dim + attention.value_dim
    flop = 2 * _heads(attention, num_gpus) * dims * attended
    flop_s = flop / (rates.peak_flop_per_s * rates.generation.kv_flop_share)
    size = attended * _kv_bytes(architecture, kind, num_gpus)
    memory_s = size / (rates.bytes_per_s * rates.generation.kv_share)
    return rates.generation.attention_s + max(flop_s, memory_s)


def attended_pairs(attention: Attention, chunk: float, before: float) -> float:
    """Pairs of a new token and a token that it attends to: itself and earlier tokens.

    A token with a window w attends to at most w tokens, with itself.
    """
    window = attention.window
    last = before + chunk
    if window is None or last <= window:
        return chunk * before + chunk * (chunk + 1) / 2
    short = max(0.0, window - before)  # these tokens have fewer before them than the window holds
    return short * before + short * (short + 1) / 2 + (chunk - short) * window


def _heads(attention: Attention, num_gpus: int) -> float:
    return max(1.0, attention.num_heads / num_gpus)


def _kv_bytes(architecture: Architecture, kind: LayerKind, num_gpus: int) -> float:
    """Size of a token's keys and values on one GPU."""
    copies = kind.attention.kv_copies(num_gpus)
    return architecture.kv_bytes_per_token(kind) * copies / num_gpus

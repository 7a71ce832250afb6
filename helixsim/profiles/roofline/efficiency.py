"""What shares of a data sheet's peaks GPUs reach: the constants of the roofline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEfficiency:
    """What GPUs of a generation reach.

    Attributes
    ----------
    flop_per_joule
        Matrix products in 16 bits that a board computes for each joule of its power limit; None
        if its power does not limit it.
    narrow_gain
        How many times faster than in 16 bits products in 8 bits are, where the peak doubles.
    weight_share
        Share of the memory bandwidth at which weights of matrices stream.
    attention_share
        Attention of prefills: share of the rate of matrix products.
    attention_s
        Fixed cost of the attention of a layer, with the write to the KV cache.
    kv_share
        Attention of decodes: share of the memory bandwidth.
    kv_flop_share
        Attention of decodes: share of the peak in 16 bits.
    expert_share
        Experts: share of the rate of matrix products.
    expert_weight_share
        Experts: share of the memory bandwidth.
    """

    flop_per_joule: float | None
    narrow_gain: float
    weight_share: float
    attention_share: float
    attention_s: float
    kv_share: float
    kv_flop_share: float
    expert_share: float
    expert_weight_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEfficiency:
    """All-reduces among the GPUs of a machine, by what links them.

    Attributes
    ----------
    latency_s
        Time of one with hardly any data, among two GPUs.
    latency_per_gpu_s
        What each further GPU adds.
    bandwidth_share
        Share of the bandwidth of the links, among two GPUs.
    """

    latency_s: float
    latency_per_gpu_s: float
    bandwidth_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """All constants of the roofline.

    Attributes
    ----------
    peak_share
        Share of the peak that large matrix products reach where power does not limit them.
    corner
        Exponent p of the rounded corner of the roofline: (compute^p + memory^p)^(1/p).
    kernel_s
        Fixed cost of a small kernel: a norm, an activation function.
    matrix_s
        Fixed cost of a product with a matrix.
    small_kernel_share
        Share of the memory bandwidth of norms and activations.
    prefill_s
        What the attention of a prefill costs beside that of decodes.
    expert_s
        Fixed cost of a layer's experts: choosing them, sorting the tokens.
    expert_rows
        Rows that the products of each expert in use waste, since tokens are filled up to whole
        tiles.
    expert_inner
        Inner size of an expert at which its products reach half their rate: products of small
        experts begin and end more often.
    sampler_s
        Fixed cost of the sampler.
    sampler_passes
        How often the sampler reads or writes the logits.
    generations
        Generation -> what its GPUs reach.
    links
        Kind of interconnect -> what all-reduces reach.
    """

    peak_share: float
    corner: float
    kernel_s: float
    matrix_s: float
    small_kernel_share: float
    prefill_s: float
    expert_s: float
    expert_rows: float
    expert_inner: float
    sampler_s: float
    sampler_passes: float
    generations: Mapping[str, GenerationEfficiency]
    links: Mapping[str, LinkEfficiency]

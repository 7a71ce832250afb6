"""How much of a machine's memory is left for KV caches.

vLLM takes a share of the memory, 0.9 by default. Weights, the largest activations of a step, and
what CUDA keeps for itself come out of it; the rest is KV cache.
"""

from __future__ import annotations

from helixsim.llms.architecture import Architecture, LayerKind

MEMORY_SHARE = 0.9
"""Share of the memory that vLLM takes (`gpu_memory_utilization`)."""

TYPICAL_RESERVED_BYTES = 1.25e9
"""What is reserved on each GPU for an LLM whose sizes are not known: as for Llama-3.1-8B, of which
vLLM 0.19 held 41,408 tokens in 0.9 x 25.25 GB of an RTX 4090."""

_CUDA_BYTES = 0.4e9
"""Context, kernels and CUDA graphs. With it, the rule gives the tokens above within 1 %."""

_SAMPLER_BYTES_PER_LOGIT = 26
"""The logits in 16 and 32 bits, sorted, their 64-bit indices, as probabilities, and summed up."""

_SMALLEST_SHARE = 0.1


def reserved_bytes(
    architecture: Architecture,
    num_gpus: int = 1,
    *,
    batched_tokens: int = 2048,
    max_sequences: int = 256,
) -> float:
    """What each GPU needs beside weights and KV cache: largest activations, and CUDA's own.

    Parameters
    ----------
    architecture
        The LLM.
    num_gpus
        GPUs that share each layer.
    batched_tokens, max_sequences
        The most tokens, and requests, of a step (`max_num_batched_tokens`, `max_num_seqs`).
    """
    width = architecture.activations.bytes_per_value
    layer = max(_layer_values(architecture, kind, num_gpus) for kind in architecture.kinds)
    sampler = max_sequences * architecture.vocab_size * _SAMPLER_BYTES_PER_LOGIT
    return _CUDA_BYTES + max(batched_tokens * layer * width, sampler)


def usable_share(
    memory_bytes: float,
    num_gpus: int = 1,
    *,
    reserved: float = TYPICAL_RESERVED_BYTES,
    share: float = MEMORY_SHARE,
) -> float:
    """Share of a machine's memory for weights and KV caches, as `kv.from_memory` takes it.

    Parameters
    ----------
    memory_bytes
        Memory of all its GPUs.
    num_gpus
        Its GPUs.
    reserved
        What each GPU needs for other things, :func:`reserved_bytes`.
    share
        Share of the memory that the engine takes.
    """
    return max(share - reserved * num_gpus / memory_bytes, _SMALLEST_SHARE)


def _layer_values(architecture: Architecture, kind: LayerKind, num_gpus: int) -> float:
    """Values of one token that are alive at once in a layer: the residual, and a block's."""
    blocks = [(m.inputs + m.outputs, 1) for m in kind.matrices]
    if kind.experts is not None:
        used = kind.experts.experts_per_token
        blocks += [(m.inputs + m.outputs, used) for m in kind.experts.matrices]
    widest = max(values * times for values, times in blocks)
    return 2 * architecture.hidden_size + widest / num_gpus

"""Times of a mixture of experts, by tokens and by the distinct experts that they use."""

from __future__ import annotations

from math import log, sqrt

from helixsim.llms.architecture import Architecture, Experts
from helixsim.profiles.roofline.rates import Rates


def experts_s(
    rates: Rates,
    architecture: Architecture,
    experts: Experts,
    tokens: float,
    distinct: float,
    num_gpus: int,
    *,
    spread: bool = False,
) -> float:
    """Seconds of a layer's experts.

    Parameters
    ----------
    tokens
        Tokens of the pass; each uses `experts_per_token` experts.
    distinct
        Distinct experts that they use together: these are read from memory.
    num_gpus
        GPUs that share the experts.
    spread
        Whether each GPU holds whole experts, rather than a part of each. The GPU with the most
        work is waited for then.
    """
    form = experts.matrices[0].number_format or architecture.weights
    uses = tokens * experts.experts_per_token / num_gpus
    read = distinct / num_gpus
    if spread and num_gpus > 1:
        uses = _largest(uses, uses * (1 - 1 / num_gpus), num_gpus)
        most = min(distinct, experts.num_experts / num_gpus)
        used_share = distinct / experts.num_experts
        read = min(_largest(read, read * (1 - used_share), num_gpus), most)
    expert_bytes = sum(map(architecture.matrix_bytes, experts.matrices))
    flop = 2 * (uses + rates.efficiency.expert_rows * read) * experts.expert_values
    inner = max(matrix.inputs for matrix in experts.matrices if matrix.split == "inputs")
    inner_of_gpu = inner if spread else inner / num_gpus
    filled = inner_of_gpu / (inner_of_gpu + rates.efficiency.expert_inner)
    flop_per_s = rates.flop_per_s(form) * rates.generation.expert_share * filled
    bytes_per_s = rates.bytes_per_s * rates.generation.expert_weight_share
    product_s = rates.product_s(flop, read * expert_bytes, flop_per_s, bytes_per_s)
    return rates.efficiency.expert_s + product_s


def _largest(mean: float, variance: float, count: int) -> float:
    """About the largest of equal random counts: mean + deviation x sqrt(2 ln count)."""
    return mean + sqrt(2 * max(variance, 0.0) * log(count))

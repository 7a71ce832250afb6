"""Operator tables from measured kernels.

The library lists the operators of an LLM, once for prefills and once for decodes, and tells the
time of each at any size. :data:`_ROLES` says what each is for us. Matrices, norms and experts take
the same time in both lists at the same number of tokens, but where an LLM runs shared experts
beside the others in decodes only: what a chunk takes more than as many decodes is in the attention
of the chunk. What all-reduces of a layer take more than their fitted line is in `dense`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from helixsim.errors import InputError
from helixsim.profiles.measured_grids import curve_of, simplified
from helixsim.profiles.operators import (
    ALL_REDUCES_PER_LAYER,
    AllReduce,
    AttentionTable,
    ExpertTable,
    LayerTables,
    OperatorCurve,
)
from helixsim.profiles.sources.hub_config import NUM_LAYERS
from helixsim.profiles.sources.kernel_library import Kernels, OperatorTime, reason_of

Role = Literal[
    "embedding", "head", "attention", "projections", "norms", "block", "experts", "exchange", "none"
]

_ROLES: Mapping[str, Role] = {
    "embedding": "embedding",
    "embedding_ar": "embedding",
    "logits_gemm": "head",
    "p2p": "none",
    "attention": "attention",
    "mla_block": "attention",
    "moe": "experts",
    "moe_overlap": "experts",
    "moe_pre_dispatch": "exchange",
    "moe_post_dispatch": "exchange",
    "ar_1": "exchange",
    "ar_2": "exchange",
    "tp_allreduce": "exchange",
    "add_norm_1": "norms",
    "add_norm_2": "norms",
    "qkv_gemm": "projections",
    "proj_gemm": "projections",
    "gate_ffn1_gemm": "block",
    "act_gate": "block",
    "ffn2_gemm": "block",
    "router_gemm": "block",
    "shared_gate_up_gemm": "block",
    "shared_act_gate": "block",
    "shared_ffn2_gemm": "block",
}
"""Operators by their names, less the phase in front: `block` is the feed-forward block without
experts, `exchange` what the GPUs of a machine send each other."""

_NORMS_PER_LAYER = 2

_STEPS = ((1, 1024), (8, 4096), (32, 16384))
"""Up to these numbers of tokens, operators are asked for at each multiple and just above it: the
library's times rise in stairs, and kernels of tuned sizes are faster in between."""
TOKENS = tuple(
    sorted(
        {at + more for step, end in _STEPS for at in range(step, end, step) for more in (0, 1)}
        | {_STEPS[-1][1]}
    )
)
"""New tokens of a pass at which the library is asked."""
SEQUENCES = tuple(range(1, 513))
TOLERANCE = 0.01
"""Share by which a curve may miss the library between the points that are kept."""
CHUNKS = (
    *(16, 64, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048, 2560, 3072),
    *(4096, 5120, 6144, 7168, 8192),
)
CHUNK_CONTEXTS = (0, 1024, 4096, 16384, 65536)
DECODES = (1, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512)
DECODE_CONTEXTS = (16, 128, 512, 1024, 2048, 4096, 16384, 65536)

_TOKEN_ROLES: tuple[Role, ...] = ("norms", "projections", "block", "experts", "exchange")
"""Operators of a layer whose times depend on the number of tokens only."""


@dataclass(frozen=True, slots=True)
class _Operator:
    """An operator in the library's lists, for one layer."""

    role: Role
    name: str
    seconds: Callable[[int, int, int], float]
    """Of a number of sequences, new tokens (or the context of decodes) of each, tokens before."""


class KernelOperators:
    """The operators of one LLM, by their roles.

    Parameters
    ----------
    kernels
        The library's lists.

    Raises
    ------
    InputError
        If an operator is unknown; all methods: if the library has no time.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._prefill = _listed(_Prefills(kernels))
        self._decode = _listed(_Decodes(kernels))

    def tokens_s(self, role: Role, num_tokens: int) -> float:
        """Seconds of the operators of a role for a layer, or once, for as many decodes."""
        return sum(found.seconds(num_tokens, 1, 0) for found in self._of(self._decode, role))

    def chunk_excess_s(self, chunk: int) -> float:
        """What a layer takes for a chunk more than for as many decodes, attention left out."""
        prefill_s = decode_s = 0.0
        for role in _TOKEN_ROLES:
            prefill_s += sum(found.seconds(1, chunk, 0) for found in self._of(self._prefill, role))
            decode_s += self.tokens_s(role, chunk)
        return max(prefill_s - decode_s, 0.0)

    def head_s(self, num_sequences: int) -> float:
        """Seconds of the head."""
        found = self._of(self._decode, "head")
        return sum(operator.seconds(num_sequences, 1, 0) for operator in found)

    def chunk_s(self, window: bool, chunk: int, context: int) -> float:
        """Seconds of a layer's attention for a chunk alone."""
        return self._attention(self._prefill, window).seconds(1, chunk, context)

    def decodes_s(self, window: bool, decodes: int, context: int) -> float:
        """Seconds of a layer's attention for decodes alone."""
        return self._attention(self._decode, window).seconds(decodes, context, 0)

    def shared_s(self, window: bool) -> float:
        """What a chunk and decodes that run together take only once.

        Where the library measured the attention with its projections, that is a decode without
        context: mostly the time in which the projections' weights are read.
        """
        attention = self._attention(self._decode, window)
        return attention.seconds(1, 1, 0) if attention.name == "mla_block" else 0.0

    def _attention(self, operators: Sequence[_Operator], window: bool) -> _Operator:
        """The attention; where windows alternate, layers with one come first."""
        found = self._of(operators, "attention")
        return found[0 if window else -1]

    @staticmethod
    def _of(operators: Sequence[_Operator], role: Role) -> list[_Operator]:
        return [operator for operator in operators if operator.role == role]


class _Prefills:
    """The list of a prefill's operators."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def __call__(self, place: int, batch: int, tokens: int, before: int) -> OperatorTime:
        return self._kernels.evaluate_context_ops(
            [place], batch_size=batch, s=tokens, prefix=before
        )[0]


class _Decodes:
    """The list of a decode's operators."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def __call__(self, place: int, batch: int, context: int, _before: int) -> OperatorTime:
        return self._kernels.evaluate_generation_ops([place], batch_size=batch, s=context)[0]


def _listed(ask: Callable[[int, int, int, int], OperatorTime]) -> tuple[_Operator, ...]:
    """All operators of a list; the library says of the first place behind it: out of range."""
    names: list[str] = []
    while True:
        try:
            names.append(ask(len(names), 1, 64, 0)[0])
        except Exception as error:
            if "out of range" in str(error):
                break
            raise InputError(reason_of(error)) from error
    plain = [name.partition("_")[2] for name in names]
    for name in plain:
        if name not in _ROLES:
            raise InputError(f"its operator '{name}' is unknown to this version of helixsim")
    attentions = sum(_ROLES[name] == "attention" for name in plain)
    return tuple(
        _Operator(_ROLES[name], name, _seconds_of(ask, place, _layers(_ROLES[name], attentions)))
        for place, name in enumerate(plain)
    )


def _layers(role: Role, attentions: int) -> float:
    """Layers that an operator's time is of."""
    if role in ("embedding", "head", "none"):
        return 1
    return NUM_LAYERS / attentions if role == "attention" else NUM_LAYERS


def _seconds_of(
    ask: Callable[[int, int, int, int], OperatorTime], place: int, layers: float
) -> Callable[[int, int, int], float]:
    def seconds(batch: int, tokens: int, before: int) -> float:
        try:
            return ask(place, batch, tokens, before)[1] * 1e-3 / layers
        except Exception as error:
            raise InputError(reason_of(error)) from error

    return seconds


def attention_table(
    operators: KernelOperators, block: KernelOperators, *, window: bool
) -> AttentionTable:
    """Attention of a layer: a chunk beside decodes takes the sum of both, less what they share."""
    excess_s = {chunk: block.chunk_excess_s(chunk) for chunk in CHUNKS}
    chunks = {
        (chunk, context): operators.chunk_s(window, chunk, context) + excess_s[chunk]
        for chunk, context in product(CHUNKS, CHUNK_CONTEXTS)
    }
    decodes = {
        (count, context): operators.decodes_s(window, count, context)
        for count, context in product(DECODES, DECODE_CONTEXTS)
    }
    axes = ((0, *CHUNKS), CHUNK_CONTEXTS, (0, *DECODES), DECODE_CONTEXTS)
    shared_s = operators.shared_s(window)
    seconds = tuple(
        chunks.get((chunk, before), 0.0)
        + decodes.get((count, context), 0.0)
        - (shared_s if chunk and count else 0.0)
        for chunk, before, count, context in product(*axes)
    )
    return AttentionTable(*axes, seconds)


def layer_tables(
    attention: KernelOperators,
    block: KernelOperators,
    *,
    window: bool,
    all_reduce: Callable[[int], float],
    experts: tuple[int, int] | None,
) -> LayerTables:
    """Times of one kind of layers.

    Parameters
    ----------
    attention, block
        Operators of an LLM with this attention, and of one with this feed-forward block: the same,
        if the library knows both together.
    window
        Whether the layers have the LLM's sliding window.
    all_reduce
        Seconds that the tables' all-reduces take already, by tokens.
    experts
        Experts of a layer and experts of a token; None for a dense block.
    """

    def dense_s(num_tokens: int) -> float:
        seconds = attention.tokens_s("norms", num_tokens)
        seconds += attention.tokens_s("projections", num_tokens)
        seconds += block.tokens_s("block", num_tokens)
        return seconds + block.tokens_s("exchange", num_tokens) - all_reduce(num_tokens)

    return LayerTables(
        _curve(dense_s, TOKENS),
        attention_table(attention, block, window=window),
        None if experts is None else _experts(block, *experts),
    )


def _experts(block: KernelOperators, count: int, used: int) -> ExpertTable:
    curve = _curve(lambda tokens: block.tokens_s("experts", tokens), TOKENS)
    return ExpertTable(count, used, curve.tokens, (count,), curve.seconds)


def fitted_all_reduce(
    exchanges: Iterable[KernelOperators], bytes_per_token: float, num_gpus: int
) -> AllReduce:
    """A line below the times of all exchanges of a layer, as two all-reduces.

    Its bandwidth is that of much data, its latency at most that of hardly any.
    """
    share = 2 * (num_gpus - 1) / num_gpus
    known = list(exchanges)
    points = [
        (
            share * tokens * bytes_per_token,
            min(found.tokens_s("exchange", tokens) for found in known) / ALL_REDUCES_PER_LAYER,
        )
        for tokens in TOKENS
    ]
    (half, half_s), (most, most_s) = points[-len(points) // 2], points[-1]
    slope = (most_s - half_s) / (most - half)
    if slope <= 0:
        raise InputError("it has no times of all-reduces")
    latency_s = min(seconds - slope * sent for sent, seconds in points)
    if latency_s < 0:
        latency_s, slope = 0.0, min(seconds / sent for sent, seconds in points)
    return AllReduce(latency_s, 1 / slope)


def once_curves(
    operators: KernelOperators,
) -> tuple[OperatorCurve, OperatorCurve, OperatorCurve]:
    """Curves of the embedding, the final norm and the head."""
    return (
        _curve(lambda tokens: operators.tokens_s("embedding", tokens), TOKENS),
        _curve(lambda tokens: operators.tokens_s("norms", tokens) / _NORMS_PER_LAYER, TOKENS),
        _curve(operators.head_s, SEQUENCES),
    )


def _curve(seconds: Callable[[int], float], points: Iterable[int]) -> OperatorCurve:
    return simplified(curve_of({point: seconds(point) for point in points}), TOLERANCE)

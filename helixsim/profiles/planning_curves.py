"""The latency profile of one layer that planners use, from operator tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from helixsim.profiles.machine import LLM, LatencyProfile
from helixsim.profiles.operators import OperatorTables

CONTEXT_PER_DECODE = 1000
"""Context of each decode, as in the published profiles."""


def planning_curves(tables: OperatorTables, llm: LLM) -> tuple[LatencyProfile, LatencyProfile]:
    """Seconds of one layer for prefills by tokens, and for decodes by their number.

    Embedding and head are spread over all layers of the LLM. A prefill is one sequence without
    earlier context, decodes have 1,000 tokens of context each. Zero tokens take as long as one:
    the weights are read for any.
    """
    mean = tables.stage(0, llm.num_layers)

    def once_s(num_tokens: int, num_sequences: int) -> float:
        both = tables.embedding(num_tokens) + tables.last_s(num_tokens, num_sequences)
        return both / llm.num_layers

    def prefill_s(num_tokens: int) -> float:
        layer_s = mean.layer_s(num_tokens, llm.activation_bytes_per_token)
        return layer_s + mean.attention_s(num_tokens, 0, 0, 0) + once_s(num_tokens, 1)

    def decode_s(num_decodes: int) -> float:
        layer_s = mean.layer_s(num_decodes, llm.activation_bytes_per_token)
        attention_s = mean.attention_s(0, 0, num_decodes, CONTEXT_PER_DECODE)
        return layer_s + attention_s + once_s(num_decodes, num_decodes)

    tokens = mean.token_points
    chunks = {at for _, kind in mean.kinds for at in kind.attention.chunk}
    decodes = {at for _, kind in mean.kinds for at in kind.attention.decodes}
    return (
        _sampled(prefill_s, tokens | chunks),
        _sampled(
            decode_s, {at for at in tokens if at <= max(decodes)} | decodes | {*tables.head.tokens}
        ),
    )


def _sampled(seconds: Callable[[int], float], points: Iterable[int]) -> LatencyProfile:
    """The profile through these points and, for the line beyond them, twice the last."""
    tokens = sorted({1, *points} - {0})
    tokens.append(2 * tokens[-1])
    return LatencyProfile((0, *tokens), (seconds(1), *(seconds(count) for count in tokens)))

"""Times of whole steps, of all layers on one machine, from operator tables."""

from __future__ import annotations

from dataclasses import dataclass

from helixsim.profiles.operators import OperatorTables


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeStep:
    """A step of an engine that holds the whole LLM.

    Attributes
    ----------
    chunk, chunk_context
        New tokens of a prefill, and tokens that the KV cache holds before them.
    decodes, decode_context
        Number of decodes, and their context, with the new token.
    """

    chunk: int = 0
    chunk_context: int = 0
    decodes: int = 0
    decode_context: int = 0


def kernels_s(
    tables: OperatorTables, num_layers: int, bytes_per_token: float, step: WholeStep
) -> float:
    """Seconds of all operators of a step, without the gap before it.

    Parameters
    ----------
    tables
        Times of the operators.
    num_layers
        Layers of the LLM.
    bytes_per_token
        Size of a token's hidden state.
    step
        The step. A prefill alone yields one token.
    """
    tokens = step.chunk + step.decodes
    sequences = step.decodes + (step.chunk > 0)
    stage = tables.stage(0, num_layers)
    layer_s = stage.layer_s(tokens, bytes_per_token) + stage.attention_s(
        step.chunk, step.chunk_context, step.decodes, step.decode_context
    )
    once_s = tables.embedding(tokens) + tables.last_s(tokens, sequences)
    return num_layers * layer_s + once_s

"""A user's prompt and its answer, and the passes through the LLM that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Phase(IntEnum):
    """The two phases of a request. Results shown to users also say prompt and decode."""

    PREFILL = 0
    DECODE = 1


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a workload, before anything has happened to it.

    Attributes
    ----------
    arrival_s
        When the user sends it, seconds from the start of the trace.
    prompt_tokens
        Length of the prompt, at least 1.
    output_tokens
        Length of the answer, at least 1. The prefill yields the first of them.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int

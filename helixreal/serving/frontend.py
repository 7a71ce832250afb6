"""What an HTTP server, or any other front end, sees of a running cluster.

Calls may come from any thread. Listeners are called from the cluster's own thread and must
return at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from helixreal.engines.engine import GREEDY, Sampling


@dataclass(frozen=True, slots=True)
class Token:
    """The next token of an answer."""

    token: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete; `reason` is ``length`` or ``stop``."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer ends here, for a reason that a user understands."""

    message: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The request was not taken.

    Attributes
    ----------
    message
        Why.
    retry_after_s
        When it may be tried again; None if it never fits.
    """

    message: str
    retry_after_s: float | None


StreamEvent = Token | Finished | Failed | Refused
Listener = Callable[[StreamEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One answer that is wanted.

    Attributes
    ----------
    prompt
        Token ids, at least one.
    max_tokens
        The answer ends with so many tokens (``length``).
    stop_tokens
        Or with one of these (``stop``), which is not part of the answer.
    sampling
        How tokens are chosen.
    """

    prompt: Sequence[int]
    max_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY


@dataclass(frozen=True, slots=True)
class Load:
    """Where the cluster stands.

    Attributes
    ----------
    running, waiting
        Requests that are being served, and that wait for room.
    kv_share
        Expected use of the fullest layer's KV cache, 0 to 1.
    nodes_up
        Name of node -> whether it is there.
    prompt_tokens, output_tokens
        Counted since the start.
    completed, failed, refused
        Requests, since the start.
    """

    running: int
    waiting: int
    kv_share: float
    nodes_up: Mapping[str, bool]
    prompt_tokens: int
    output_tokens: int
    completed: int
    failed: int
    refused: int


class Frontend(Protocol):
    """A cluster that takes requests.

    Attributes
    ----------
    model_name
        Of the LLM it serves.
    max_context_tokens
        Prompt and answer together are no longer.
    """

    model_name: str
    max_context_tokens: int

    def submit(self, generation: GenerationRequest, listener: Listener) -> int:
        """Ask for an answer; the listener hears of every token, and of exactly one end."""
        ...

    def cancel(self, request: int) -> None:
        """Nobody wants this answer any more; its listener hears nothing further."""
        ...

    def load(self) -> Load:
        """Where the cluster stands now."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether some route leads through all layers now."""
        ...

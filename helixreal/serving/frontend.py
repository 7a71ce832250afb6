"""The interface between front ends, such as the HTTP server, and a running cluster.

Methods can be called from any thread. Listeners are called from the cluster's thread and must
return at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from helixreal.engines.engine import GREEDY, Sampling, Scores

STOPPED = "the cluster has stopped"
"""The message of requests that end because the server does, in order: it is not logged."""


@dataclass(frozen=True, slots=True)
class Token:
    """The next token of an answer.

    Attributes
    ----------
    token
        Its id.
    queued_s
        For the first token: seconds that the request waited for its admission.
    scores
        Log probabilities, if the request asks for them: with the first token, of the prompt's
        tokens from the second on, too.
    """

    token: int
    queued_s: float = 0.0
    scores: Scores | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete; `reason` is ``length`` or ``stop``."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has failed; the message is shown to users."""

    message: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The request was rejected.

    Attributes
    ----------
    message
        The reason.
    retry_after_s
        Seconds after which to try again; None if the request can never be served.
    is_unavailable
        Whether the cluster serves no request at all now, for example because no route is left.
    """

    message: str
    retry_after_s: float | None
    is_unavailable: bool = False


StreamEvent = Token | Finished | Failed | Refused
Listener = Callable[[StreamEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A request for one answer.

    Attributes
    ----------
    prompt
        Token ids, at least one.
    max_tokens
        The answer ends after this number of tokens (``length``).
    stop_tokens
        The answer ends before the first of these tokens (``stop``).
    sampling
        How tokens are sampled.
    """

    prompt: Sequence[int]
    max_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a cluster.

    Attributes
    ----------
    running, waiting
        Active requests, and requests that wait for KV capacity.
    kv_share
        Expected use of the fullest layer's KV cache, 0 to 1.
    nodes_up
        Name of node -> whether its worker is ready.
    prompt_tokens, output_tokens
        Tokens since the start.
    completed, failed, refused
        Requests since the start.
    restarts
        Restarts of requests since the start: after a preemption, or the loss of a node.
    cache_asked_tokens, cache_hit_tokens
        Tokens looked up in prefix caches since the start, and found there.
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
    restarts: int = 0
    cache_asked_tokens: int = 0
    cache_hit_tokens: int = 0


class Frontend(Protocol):
    """A cluster that takes requests.

    Attributes
    ----------
    model_name
        Name of the LLM.
    max_context_tokens
        Limit of the tokens of a prompt and its answer together.
    vocabulary
        Token ids are below this number; None if the engines do not read them.
    """

    model_name: str
    max_context_tokens: int
    vocabulary: int | None

    def submit(self, generation: GenerationRequest, listener: Listener) -> int:
        """Submit a request; the listener receives every token and exactly one final event."""
        ...

    def cancel(self, request: int) -> None:
        """Cancel a request; its listener is not called any more."""
        ...

    def load(self) -> Load:
        """The load of the cluster now."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a route covers all layers now."""
        ...

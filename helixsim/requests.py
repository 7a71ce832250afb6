"""A user's prompt and its answer, and the passes through the LLM that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
        Length of the answer, at least 1.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A node's part of a route: it runs the layers ``[start_layer, end_layer)``."""

    node: int
    start_layer: int
    end_layer: int

    @property
    def num_layers(self) -> int:
        """How many layers run here."""
        return self.end_layer - self.start_layer


class Route:
    """The path of a request: stages whose layers follow one another from 0 to the last.

    A policy that decides whole routes hands out one object per distinct path, so that requests
    on the same path share it; a route that is decided hop by hop grows while its request runs.
    """

    __slots__ = ("stages",)

    def __init__(self, stages: list[Stage]) -> None:
        self.stages = stages

    @property
    def end_layer(self) -> int:
        """The layer at which the route goes on, 0 for an empty one."""
        return self.stages[-1].end_layer if self.stages else 0


class Request:
    """One request while it is being served: changed by the coordinator, carried by the nodes.

    Attributes
    ----------
    index
        Number in order of creation.
    prompt_tokens, output_tokens
        Lengths of the prompt and of the answer.
    arrival_s
        When the user sent it.
    attempt
        How many times it has been begun again.
    iteration
        The pass it is in, which is also how many tokens of the answer are there: 0 is the
        prefill, then one number per decode.
    last_iteration
        The pass with which it ends.
    is_prefill
        Whether tokens that are known go through the layers: those of the prompt and, if it has
        been begun again, those of the answer so far. Else it is in a decode.
    prefill_tokens, chunk_tokens
        Tokens that its prefill has in all, and the most that go through the layers at once.
    step_tokens
        Tokens that go through the layers now: the prefill or a chunk of it, later one.
    context_tokens
        Tokens that the KV cache holds of it before these.
    dispatched_s
        When the pass it is in left the coordinator: the first chunk of a prefill; if it has been
        begun again, the first time.
    first_dispatch_s, first_token_s
        When its prefill left the coordinator, and came back. NaN before.
    route
        The path it takes.
    onward
        Where it leaves each machine to, by the machine's number. It belongs to the body that
        carries requests around, which puts its own objects there; decisions do not read it.
    via_link, sent_s
        The number of the link that it came over, and when that link began to send it. Kept up
        to date only for policies that learn from transit times.
    """

    __slots__ = (
        "arrival_s",
        "attempt",
        "chunk_tokens",
        "context_tokens",
        "dispatched_s",
        "first_dispatch_s",
        "first_token_s",
        "index",
        "is_prefill",
        "iteration",
        "last_iteration",
        "onward",
        "output_tokens",
        "prefill_tokens",
        "prompt_tokens",
        "route",
        "sent_s",
        "step_tokens",
        "via_link",
    )

    def __init__(
        self,
        index: int,
        arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        last_iteration: int,
        chunk_tokens: int | None = None,
    ) -> None:
        self.index = index
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.attempt = 0
        self.iteration = 0
        self.last_iteration = last_iteration
        self.prefill_tokens = prompt_tokens
        self.split_prefill(chunk_tokens)
        self.dispatched_s = float("nan")
        self.first_dispatch_s = float("nan")
        self.first_token_s = float("nan")
        self.route: Route | None = None
        self.onward: Mapping[int, Any] = {}
        self.via_link = -1
        self.sent_s = float("nan")

    @property
    def longest_context(self) -> int:
        """Tokens that its KV cache comes to hold on each layer."""
        return self.prompt_tokens + self.last_iteration

    @property
    def num_restarts(self) -> int:
        """How many attempts after the first have been sent; one without a route has not."""
        return self.attempt - (self.attempt > 0 and self.route is None)

    @property
    def is_last_chunk(self) -> bool:
        """Whether its prefill is through with the tokens that are in the layers now."""
        return self.context_tokens + self.step_tokens == self.prefill_tokens

    def split_prefill(self, chunk_tokens: int | None) -> None:
        """Stand before a prefill in chunks of at most so many tokens; None for all at once."""
        self.is_prefill = True
        self.chunk_tokens = chunk_tokens or self.prefill_tokens
        self.step_tokens = min(self.chunk_tokens, self.prefill_tokens)
        self.context_tokens = 0

    def next_chunk(self) -> None:
        """Go on to the next chunk of the prefill."""
        self.context_tokens += self.step_tokens
        self.step_tokens = min(self.chunk_tokens, self.prefill_tokens - self.context_tokens)

    def restarted(self, chunk_tokens: int | None) -> Request:
        """A new attempt, which starts with a prefill of all tokens known so far."""
        new = Request(
            self.index,
            self.arrival_s,
            self.prompt_tokens,
            self.output_tokens,
            self.last_iteration,
        )
        new.attempt = self.attempt + 1
        new.iteration = self.iteration
        new.prefill_tokens = self.prompt_tokens + self.iteration
        new.split_prefill(chunk_tokens)
        new.dispatched_s = self.dispatched_s
        new.first_dispatch_s = self.first_dispatch_s
        new.first_token_s = self.first_token_s
        return new

    def abandon(self) -> None:
        """End this attempt: a pass of it that still returns counts as its last."""
        self.last_iteration = self.iteration

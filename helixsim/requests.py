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
    iteration
        The pass it is in: 0 is the prefill, then one number per decode.
    last_iteration
        The pass with which it ends.
    step_tokens
        Tokens that go through the layers in this pass: the prompt, later one.
    context_tokens
        Tokens that the KV cache holds of it before this pass.
    dispatched_s
        When the pass it is in left the coordinator.
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
        "context_tokens",
        "dispatched_s",
        "first_dispatch_s",
        "first_token_s",
        "index",
        "iteration",
        "last_iteration",
        "onward",
        "output_tokens",
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
    ) -> None:
        self.index = index
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.iteration = 0
        self.last_iteration = last_iteration
        self.step_tokens = prompt_tokens
        self.context_tokens = 0
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

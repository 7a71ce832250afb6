"""A user's prompt and its answer, and the passes through the LLM that it takes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """What a request may share with others: keys of its leading blocks.

    A key stands for all tokens up to the end of its block: requests whose first n keys are equal
    begin with the same ``n x block_tokens`` tokens, as the ``hash_ids`` of Mooncake traces say it.

    Attributes
    ----------
    keys
        One for each block that can be shared, from the start of the prompt.
    block_tokens
        Tokens that a key stands for.
    num_tokens
        Tokens that all keys together stand for, where the last stands for fewer than the others.
        In a conversation, the answer can be among them.
    """

    keys: tuple[Hashable, ...]
    block_tokens: int
    num_tokens: int | None = None

    @property
    def shared_tokens(self) -> int:
        """Tokens that the keys stand for."""
        whole = len(self.keys) * self.block_tokens
        return whole if self.num_tokens is None else min(self.num_tokens, whole)


@dataclass(frozen=True, slots=True)
class SessionTurn:
    """A request that follows the end of another, as the next turn of a session.

    Attributes
    ----------
    delay_s
        From the end of the turn before it to its arrival.
    prompt_tokens, output_tokens
        Lengths of the whole prompt and of the answer, at least 1 each.
    prefix, priority
        As :class:`TraceRequest`.
    """

    delay_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: SharedPrefix | None = None
    priority: int = 0


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
    prefix
        What its prompt may share with others; None if nothing is known of it.
    priority
        Requests with a lower number go first, where a node schedules by priority.
    user_class
        Name of the class of users that it is from; empty without classes.
    region
        Where its user is; None if it is not known.
    later_turns
        Requests of the same session, each of which arrives some time after the end of the one
        before it; empty for a request by itself.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: SharedPrefix | None = None
    priority: int = 0
    user_class: str = ""
    region: str | None = None
    later_turns: tuple[SessionTurn, ...] = field(default=(), kw_only=True)

    @property
    def turns(self) -> tuple[TraceRequest | SessionTurn, ...]:
        """The request and its later turns."""
        return self, *self.later_turns


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
    """One request while it is being served: changed by the coordinator, passed on by the executor.

    One counter, `num_computed_tokens`, covers chunks and restarts, as in vLLM: a request is
    through with its prefill when all its tokens are computed.

    Where decodes loop through the nodes without waiting for the coordinator, `is_prefill`,
    `num_new_tokens`, `num_computed_tokens` and `num_generated_tokens` belong to the scheduler of
    the first node, and the coordinator counts the tokens that reach it in `num_output_tokens`.

    Attributes
    ----------
    index
        Number in order of creation.
    prompt_tokens, output_tokens
        Lengths of the prompt and of the answer.
    arrival_s
        When the user sent it.
    attempt
        How many times it has been restarted.
    num_output_tokens
        Tokens of the answer that are known. It is also the number of the pass that the request is
        in: 0 for the prefill of the first attempt, then one number for each decode.
    num_generated_tokens
        Tokens of the answer that the nodes have made, where decodes loop.
    num_decodes
        Decodes that it runs in all: the pass with this number is its last.
    num_preemptions
        How many times a node has taken it out for want of KV blocks.
    num_cached_tokens
        Tokens of its prompt that a prefix cache held when it was admitted first.
    priority
        Requests with a lower number go first, where a node schedules by priority.
    user_class
        Name of the class of users that it is from; empty without classes.
    front_end
        The number of the front end at which it entered, among the front ends: its route begins and
        ends there.
    prefix
        What its prompt may share with others; None if nothing is known of it.
    is_prefill
        Whether known tokens go through the layers: the prompt and, after a restart, the answer so
        far. Otherwise the request is in a decode.
    max_chunk_tokens
        The most tokens of its prefill that go through the layers at once.
    num_new_tokens
        Tokens that go through the layers in this pass: the prefill or a chunk of it, or one.
    num_computed_tokens
        Tokens that the KV caches hold before this pass.
    dispatched_s
        When the pass left its front end; for a prefill in chunks, the first chunk; after a
        restart, the first attempt at the pass.
    first_dispatch_s, first_token_s
        When its prefill left its front end, and returned. NaN before.
    route
        The path it takes.
    onward
        Number of a machine -> where the request goes on to from there. It belongs to the executor,
        which puts its own objects there; decisions do not read it.
    via_link, sent_s
        The number of the link that it came over, and when that link began to send it. Current
        only for policies that need transit times.
    """

    __slots__ = (
        "arrival_s",
        "attempt",
        "dispatched_s",
        "first_dispatch_s",
        "first_token_s",
        "front_end",
        "index",
        "is_prefill",
        "max_chunk_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_decodes",
        "num_generated_tokens",
        "num_new_tokens",
        "num_output_tokens",
        "num_preemptions",
        "onward",
        "output_tokens",
        "prefix",
        "priority",
        "prompt_tokens",
        "route",
        "sent_s",
        "user_class",
        "via_link",
    )

    def __init__(
        self,
        index: int,
        arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        num_decodes: int,
        max_chunk_tokens: int | None = None,
    ) -> None:
        self.index = index
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.attempt = 0
        self.num_output_tokens = 0
        self.num_generated_tokens = 0
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.priority = 0
        self.user_class = ""
        self.front_end = 0
        self.prefix: SharedPrefix | None = None
        self.num_decodes = num_decodes
        self.split_prefill(max_chunk_tokens)
        self.dispatched_s = float("nan")
        self.first_dispatch_s = float("nan")
        self.first_token_s = float("nan")
        self.route: Route | None = None
        self.onward: Mapping[int, Any] = {}
        self.via_link = -1
        self.sent_s = float("nan")

    @property
    def origin(self) -> Request:
        """The request that holds KV blocks and ends: itself, but for a :class:`PrefillChunk`."""
        return self

    @property
    def num_tokens(self) -> int:
        """Tokens that are known: of the prompt and of the answer so far."""
        return self.prompt_tokens + self.num_output_tokens

    @property
    def longest_context(self) -> int:
        """Tokens that its KV cache comes to hold on each layer."""
        return self.prompt_tokens + self.num_decodes

    @property
    def num_restarts(self) -> int:
        """How many attempts after the first have been sent; one without a route has not."""
        return self.attempt - (self.attempt > 0 and self.route is None)

    @property
    def yields_token(self) -> bool:
        """Whether the pass that it is in computes the last token that is known, so yields one."""
        known = self.prompt_tokens + self.num_generated_tokens
        return self.num_computed_tokens + self.num_new_tokens == known

    @property
    def is_last_pass(self) -> bool:
        """Whether the pass that it is in yields the last token of the answer."""
        return self.num_generated_tokens == self.num_decodes and self.yields_token

    def block_key(self, number: int, block_tokens: int) -> Hashable:
        """What stands in one block of its KV cache: blocks with equal keys hold the same tokens.

        Parameters
        ----------
        number
            Of the block, from 0.
        block_tokens
            Tokens of a block.
        """
        prefix = self.prefix
        if prefix is not None:
            end = (number + 1) * block_tokens
            if end <= prefix.shared_tokens:
                return prefix.keys[(end - 1) // prefix.block_tokens], number
        return self.index, number, None

    @property
    def is_last_chunk(self) -> bool:
        """Whether its prefill ends with the tokens that are in the layers now."""
        return self.num_computed_tokens + self.num_new_tokens == self.num_tokens

    @property
    def longest_pass_tokens(self) -> int:
        """The most tokens that go through the layers at once in any pass that is to come."""
        return min(self.max_chunk_tokens, self.num_tokens) if self.is_prefill else 1

    def split_prefill(self, max_chunk_tokens: int | None) -> None:
        """Prepare for a prefill in chunks of at most this number of tokens; None for one chunk."""
        self.is_prefill = True
        self.max_chunk_tokens = max_chunk_tokens or self.num_tokens
        self.num_new_tokens = min(self.max_chunk_tokens, self.num_tokens)
        self.num_computed_tokens = 0

    def next_chunk(self) -> None:
        """Go on to the next chunk of the prefill."""
        self.num_computed_tokens += self.num_new_tokens
        left = self.num_tokens - self.num_computed_tokens
        self.num_new_tokens = min(self.max_chunk_tokens, left)

    def stream(self) -> list[PrefillChunk]:
        """Let the prefill leave as chunks, back to back, without waiting for one to return.

        The request itself is the last of them, which yields the token.

        Returns
        -------
        list
            The chunks before it, in order.
        """
        chunks = []
        while not self.is_last_chunk:
            chunks.append(PrefillChunk(self))
            self.next_chunk()
        return chunks

    def restarted(self, max_chunk_tokens: int | None) -> Request:
        """A new attempt, which starts with a prefill of all tokens known so far."""
        new = Request(
            self.index,
            self.arrival_s,
            self.prompt_tokens,
            self.output_tokens,
            self.num_decodes,
        )
        new.attempt = self.attempt + 1
        new.num_output_tokens = new.num_generated_tokens = self.num_output_tokens
        new.num_preemptions = self.num_preemptions
        new.num_cached_tokens = self.num_cached_tokens
        new.priority, new.prefix, new.user_class = self.priority, self.prefix, self.user_class
        new.front_end = self.front_end
        new.split_prefill(max_chunk_tokens)
        new.dispatched_s = self.dispatched_s
        new.first_dispatch_s = self.first_dispatch_s
        new.first_token_s = self.first_token_s
        return new

    def abandon(self) -> None:
        """End this attempt: a pass of it that still returns counts as its last."""
        self.num_decodes = self.num_output_tokens


class PrefillChunk(Request):
    """A chunk of a request's prefill that travels ahead of the request itself.

    It follows the route of its request, is over when it leaves the last layer, and yields no token:
    the last chunk, which does, is the request. Chunks of a request enter each node in order.

    Attributes
    ----------
    origin
        The request.
    """

    __slots__ = ("origin",)

    origin: Request  # a slot in place of the property

    def __init__(self, request: Request) -> None:
        self.origin = request
        self.index = request.index
        self.arrival_s = request.arrival_s
        self.prompt_tokens = request.prompt_tokens
        self.output_tokens = request.output_tokens
        self.attempt = request.attempt
        self.num_output_tokens = request.num_output_tokens
        self.num_generated_tokens = request.num_generated_tokens
        self.num_decodes = request.num_decodes
        self.num_preemptions = request.num_preemptions
        self.num_cached_tokens = 0
        self.priority, self.prefix = request.priority, request.prefix
        self.user_class = request.user_class
        self.front_end = request.front_end
        self.is_prefill = True
        self.max_chunk_tokens = request.max_chunk_tokens
        self.num_computed_tokens = request.num_computed_tokens
        self.num_new_tokens = request.num_new_tokens
        self.dispatched_s = request.dispatched_s
        self.first_dispatch_s = request.first_dispatch_s
        self.first_token_s = request.first_token_s
        self.via_link, self.sent_s = -1, float("nan")

    @property
    def route(self) -> Route | None:  # type: ignore[override]
        """The route of its request."""
        return self.origin.route

    @property
    def onward(self) -> Mapping[int, Any]:  # type: ignore[override]
        """Where its request goes on to from each machine."""
        return self.origin.onward

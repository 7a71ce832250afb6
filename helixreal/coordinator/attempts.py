"""The tokens of a request, its attempts, and prompts for workloads that give only lengths."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from helixreal.engines.engine import GREEDY, Sampling
from helixreal.net import messages
from helixreal.serving.frontend import Listener
from helixsim.requests import Request


@dataclass(slots=True)
class Generation:
    """The tokens of a request, from its first attempt to its last.

    Attributes
    ----------
    tokens
        Token ids of the prompt, then of the answer so far.
    prompt_tokens
        Number of tokens of the prompt.
    stop_tokens
        The answer ends before the first of these tokens.
    sampling
        How tokens are chosen.
    listener
        Called with every stream event; None if no client waits for the answer.
    stopped
        Whether a stop token has come.
    num_stalls
        How often it has begun anew because a pass was lost in flight.
    """

    tokens: array[int]
    prompt_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY
    listener: Listener | None = None
    stopped: bool = False
    num_stalls: int = 0

    @property
    def context(self) -> bytes:
        """The tokens for the last stage, if the sampling needs them (int32, little-endian)."""
        if not self.sampling.needs_context:
            return b""
        return struct.pack(f"<{len(self.tokens)}i", *self.tokens)


class Attempt:
    """One attempt to serve a request: from its prefill to its end, its preemption or a node's loss.

    Attributes
    ----------
    request
        The request in the control plane.
    key
        Identifies the attempt in messages; workers keep its KV blocks under this key.
    generation
        Tokens of the request.
    route
        Stages of its route.
    progress_s
        When its last pass left or returned, in seconds of the run.
    """

    __slots__ = ("generation", "key", "progress_s", "request", "route")

    def __init__(self, request: Request, key: int, generation: Generation) -> None:
        self.request = request
        self.key = key
        self.generation = generation
        self.route: list[messages.Stage] = []
        self.progress_s = 0.0

    @property
    def first(self) -> int:
        """Number of the node at which its passes enter."""
        return self.route[0].node

    def pass_of(self, request: Request) -> tuple[messages.Pass, Sequence[int]]:
        """The pass that its request is in, or a chunk in a stream; and its token ids."""
        generation = self.generation
        start, num_tokens = request.num_computed_tokens, request.num_new_tokens
        prefill = request.is_prefill
        sent = messages.Pass(
            self.key,
            start,
            num_tokens,
            prefill,
            not prefill or start + num_tokens == request.num_tokens,
            self.route if prefill else None,
            self._sampling_params() if prefill else None,
            is_streamed=request is not self.request,
            context=generation.context if prefill and not start else b"",
        )
        return sent, generation.tokens[start : start + num_tokens]

    def whole(self) -> tuple[messages.Pass, Sequence[int]]:
        """All that the first node needs where decodes loop, and the token ids that are known."""
        request, tokens = self.request, self.generation.tokens
        left = request.num_decodes + 1 - request.num_output_tokens
        answer = messages.Answer(left, request.priority, request.arrival_s)
        sent = messages.Pass(
            self.key,
            0,
            len(tokens),
            True,
            True,
            self.route,
            self._sampling_params(),
            self.first,
            left == 1,
            answer,
        )
        return sent, tokens

    def _sampling_params(self) -> Sampling | None:
        generation = self.generation
        if generation.sampling is GREEDY:
            return None
        changes: dict[str, Any] = {"prompt_tokens": generation.prompt_tokens}
        if len(generation.tokens) > generation.prompt_tokens:
            changes["prompt_logprobs"] = None  # an earlier attempt has told them
        return msgspec.structs.replace(generation.sampling, **changes)


PromptMaker = Callable[[int, int], "array[int]"]
"""(index of a request, number of tokens) -> token ids of its prompt."""


def blank_prompts(number: int, num_tokens: int) -> array[int]:
    """Prompts of zeros, for engines that do not read token ids, after a number of their own.

    So no prefix cache takes one for the beginning of another.
    """
    return array("i", [number + 1]) + array("i", bytes(4 * (num_tokens - 1)))


def drawn_prompts(seed: int, vocabulary: int) -> PromptMaker:
    """Prompts of random tokens; each depends only on the seed and the index of its request."""

    def make(number: int, num_tokens: int) -> array[int]:
        rng = Random(f"{seed}/{number}")
        return array("i", (rng.randrange(vocabulary) for _ in range(num_tokens)))

    return make

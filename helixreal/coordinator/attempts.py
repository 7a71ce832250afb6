"""Requests that a cluster serves: their tokens, and who hears of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

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
        How many of them are the prompt.
    stop_tokens
        An answer ends before one of these.
    sampling
        How tokens are chosen.
    listener
        Who hears of every token; None if nobody.
    stopped
        Whether a stop token has come.
    """

    tokens: array[int]
    prompt_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY
    listener: Listener | None = None
    stopped: bool = False


class Attempt:
    """One start of a request: from its prefill to its end, or to the loss of a node on its way.

    Attributes
    ----------
    request
        As the coordinator decides about it.
    key
        Under which workers keep its caches.
    generation
        Its tokens.
    route
        Its stages.
    """

    __slots__ = ("generation", "key", "request", "route")

    def __init__(self, request: Request, key: int, generation: Generation) -> None:
        self.request = request
        self.key = key
        self.generation = generation
        self.route: list[messages.Stage] = []

    @property
    def first(self) -> int:
        """The node that its passes enter."""
        return self.route[0].node

    def next_pass(self) -> tuple[messages.Pass, Sequence[int]]:
        """The pass that is to be sent now, and its token ids."""
        request, generation = self.request, self.generation
        start, num_tokens = request.num_computed_tokens, request.num_new_tokens
        prefill = request.is_prefill
        sampling_params = None
        sampling = generation.sampling
        if prefill and sampling is not GREEDY:
            sampling_params = messages.SamplingParams(
                sampling.temperature, sampling.top_p, sampling.seed
            )
        sent = messages.Pass(
            self.key,
            start,
            num_tokens,
            prefill,
            not prefill or start + num_tokens == request.num_tokens,
            self.route if prefill else None,
            sampling_params,
        )
        return sent, generation.tokens[start : start + num_tokens]


PromptMaker = Callable[[int, int], "array[int]"]
"""(number of a request, tokens) -> token ids of a prompt."""


def blank_prompts(number: int, num_tokens: int) -> array[int]:
    """Prompts for engines that do not look at them."""
    return array("i", bytes(4 * num_tokens))


def drawn_prompts(seed: int, vocabulary: int) -> PromptMaker:
    """Prompts of tokens drawn at random; each depends on the seed and its number alone."""

    def make(number: int, num_tokens: int) -> array[int]:
        rng = Random(f"{seed}/{number}")
        return array("i", (rng.randrange(vocabulary) for _ in range(num_tokens)))

    return make

"""What a node runs at once: batches of requests, and the steps that they make up.

A node scheduler composes a :class:`Step`, a performance model says how long it takes, and an
executor (simulated or real) runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from helixsim.requests import Request


class Batch:
    """Requests that move together.

    Attributes
    ----------
    requests
        In order.
    num_prompts, prompt_tokens
        How many of them are in their prefill, and the tokens of these that go through the layers.
        All others are in a decode.
    """

    __slots__ = ("num_prompts", "prompt_tokens", "requests")

    def __init__(self, requests: list[Request], num_prompts: int, prompt_tokens: int) -> None:
        self.requests = requests
        self.num_prompts = num_prompts
        self.prompt_tokens = prompt_tokens

    @classmethod
    def of(cls, requests: list[Request]) -> Batch:
        """Group requests and count the prompts among them."""
        num_prompts = prompt_tokens = 0
        for request in requests:
            if request.is_prefill:
                num_prompts += 1
                prompt_tokens += request.num_new_tokens
        return Batch(requests, num_prompts, prompt_tokens)

    @property
    def num_decodes(self) -> int:
        """How many of the requests are in a decode."""
        return len(self.requests) - self.num_prompts

    @property
    def num_tokens(self) -> int:
        """Tokens that go through a layer: prompt tokens, and one for each decode."""
        return self.prompt_tokens + len(self.requests) - self.num_prompts

    @property
    def context_tokens(self) -> int:
        """Sum of the tokens that the KV caches of the decodes hold."""
        if self.num_prompts:
            return sum([r.num_computed_tokens for r in self.requests if not r.is_prefill])
        return sum([request.num_computed_tokens for request in self.requests])

    @property
    def chunk_pairs(self) -> int:
        """Pairs of a new token and a token of an earlier chunk of its prefill, to attend to."""
        return sum(
            [r.num_new_tokens * r.num_computed_tokens for r in self.requests if r.is_prefill]
        )

    def part(self, requests: list[Request]) -> Batch:
        """A group of some of these requests."""
        return Batch.of(requests) if self.num_prompts else Batch(requests, 0, 0)


class Step:
    """What a node runs next, from its start to its end, without looking at anything new.

    A step has one or several passes, one after another, each through the same layers. Where
    requests enter in the middle of these layers they join their pass there.

    Attributes
    ----------
    passes
        A batch for each pass; may be empty.
    start_layer, end_layer
        Every pass runs ``[start_layer, end_layer)``.
    is_last
        Whether requests that are through have left the node's last layer.
    received_tokens
        Tokens whose hidden states reached the node since the last step, as far as this step has
        to copy them.
    preempted
        Requests that were taken out, for want of KV blocks, when the step was composed.
    failed
        Requests that this node can never run, each with the reason.
    entry_layers
        Request -> layer at which it enters, where that is not `start_layer`.
    """

    __slots__ = (
        "_bounds",
        "end_layer",
        "entry_layers",
        "failed",
        "is_last",
        "passes",
        "preempted",
        "received_tokens",
        "start_layer",
    )

    def __init__(
        self,
        passes: list[Batch],
        bounds: Sequence[int],
        *,
        is_last: bool = True,
        received_tokens: int = 0,
        entry_layers: Mapping[Request, int] | None = None,
    ) -> None:
        self.passes = passes
        self._bounds = bounds
        self.start_layer = bounds[0]
        self.end_layer = bounds[-1]
        self.is_last = is_last
        self.received_tokens = received_tokens
        self.entry_layers: Mapping[Request, int] = entry_layers or {}
        self.preempted: list[Request] = []
        self.failed: list[tuple[Request, str]] = []

    @property
    def num_layers(self) -> int:
        """Layers that every pass runs."""
        return self.end_layer - self.start_layer

    @property
    def num_requests(self) -> int:
        """Requests in all passes."""
        return sum(len(batch.requests) for batch in self.passes)

    def passes_that_end(self, ends: Sequence[float]) -> list[int]:
        """Numbers of the passes whose end is an event, given when each ends.

        A pass without requests is none, but the last one is if it keeps the node busy for a while.
        """
        last = len(ends) - 1
        return [
            number
            for number, batch in enumerate(self.passes)
            if batch.requests or (number == last and ends[last] > ends[number - 1])
        ]

    def segments(self, batch: Batch) -> Iterator[tuple[int, int, Batch]]:
        """A pass by stretches of layers: (start layer, end layer, the requests inside there)."""
        if not self.entry_layers:
            yield self.start_layer, self.end_layer, batch
            return
        joining: dict[int, list[Request]] = {}
        for request in batch.requests:
            layer = self.entry_layers.get(request, self.start_layer)
            joining.setdefault(layer, []).append(request)
        inside: list[Request] = []
        for layer, following in pairwise(self._bounds):
            inside = inside + joining.get(layer, [])
            yield layer, following, Batch.of(inside)

"""What a node runs next: groups of requests, queues of them, and the limits of a batch.

Used by the simulated node and by the real worker alike.
"""

from __future__ import annotations

from helixsim.profiles.machine import Capacity
from helixsim.requests import Request


class Batch:
    """Requests that move together, and their running totals.

    Attributes
    ----------
    requests
        In order.
    num_prompts, prompt_tokens
        How many of them are in their prefill, and the tokens of those prompts.
    num_decodes, decode_context
        How many are in a decode, and the sum of their context lengths in tokens.
    """

    __slots__ = ("decode_context", "num_decodes", "num_prompts", "prompt_tokens", "requests")

    def __init__(
        self,
        requests: list[Request],
        num_prompts: int,
        prompt_tokens: int,
        num_decodes: int,
        decode_context: int,
    ) -> None:
        self.requests = requests
        self.num_prompts = num_prompts
        self.prompt_tokens = prompt_tokens
        self.num_decodes = num_decodes
        self.decode_context = decode_context

    @classmethod
    def of(cls, requests: list[Request]) -> Batch:
        """Group requests and count them."""
        num_prompts = prompt_tokens = decode_context = 0
        for request in requests:
            if request.iteration:
                decode_context += request.context_tokens
            else:
                num_prompts += 1
                prompt_tokens += request.prompt_tokens
        return cls(
            requests, num_prompts, prompt_tokens, len(requests) - num_prompts, decode_context
        )


class BatchQueue:
    """Requests that wait at one layer of a node, in order of their coming."""

    __slots__ = ("decode_context", "num_decodes", "num_prompts", "prompt_tokens", "requests")

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.num_prompts = 0
        self.prompt_tokens = 0
        self.num_decodes = 0
        self.decode_context = 0

    def __len__(self) -> int:
        """Count the requests that wait."""
        return len(self.requests)

    def add(self, batch: Batch) -> None:
        """Let a group queue up behind those that wait."""
        if self.requests:
            self.requests.extend(batch.requests)
        else:
            self.requests = batch.requests
        self.num_prompts += batch.num_prompts
        self.prompt_tokens += batch.prompt_tokens
        self.num_decodes += batch.num_decodes
        self.decode_context += batch.decode_context

    def take(self, limits: Capacity) -> Batch:
        """Remove and return what runs next.

        The queue is scanned in order. A request that does not fit the limits is passed over,
        not waited for: a short one behind it may still join.
        """
        if (
            self.num_prompts <= limits.max_prompts
            and self.prompt_tokens <= limits.max_prompt_tokens
            and self.num_decodes <= limits.max_decode_tokens
            and self.decode_context <= limits.max_decode_context
        ):
            batch = Batch(
                self.requests,
                self.num_prompts,
                self.prompt_tokens,
                self.num_decodes,
                self.decode_context,
            )
            self.requests = []
            self.num_prompts = self.prompt_tokens = self.num_decodes = self.decode_context = 0
            return batch
        return self._take_some(limits)

    def _take_some(self, limits: Capacity) -> Batch:
        num_prompts = prompt_tokens = num_decodes = decode_context = 0
        taken: list[Request] = []
        left: list[Request] = []
        for request in self.requests:
            if request.iteration:
                context = decode_context + request.context_tokens
                if num_decodes < limits.max_decode_tokens and context <= limits.max_decode_context:
                    num_decodes += 1
                    decode_context = context
                    taken.append(request)
                    continue
            else:
                tokens = prompt_tokens + request.prompt_tokens
                if num_prompts < limits.max_prompts and tokens <= limits.max_prompt_tokens:
                    num_prompts += 1
                    prompt_tokens = tokens
                    taken.append(request)
                    continue
            left.append(request)
        self.requests = left
        self.num_prompts -= num_prompts
        self.prompt_tokens -= prompt_tokens
        self.num_decodes -= num_decodes
        self.decode_context -= decode_context
        return Batch(taken, num_prompts, prompt_tokens, num_decodes, decode_context)

"""What a node runs next: groups of requests, queues of them, and the limits of a batch.

Used by the simulated node and by the real worker alike.
"""

from __future__ import annotations

from helixsim.profiles.machine import Capacity
from helixsim.requests import Request


class Batch:
    """Requests that move together.

    Attributes
    ----------
    requests
        In order.
    num_prompts, prompt_tokens
        How many of them are in their prefill, and the tokens of those prompts. All others are
        in a decode.
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
            if not request.iteration:
                num_prompts += 1
                prompt_tokens += request.prompt_tokens
        return cls(requests, num_prompts, prompt_tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens that go through a layer: those of the prompts, and one for each decode."""
        return self.prompt_tokens + len(self.requests) - self.num_prompts

    def part(self, requests: list[Request]) -> Batch:
        """A group of some of these requests."""
        return Batch.of(requests) if self.num_prompts else Batch(requests, 0, 0)


class BatchQueue:
    """Requests that wait at one layer of a node, in order of their coming.

    Parameters
    ----------
    limits
        What a batch may hold at most.
    """

    __slots__ = ("_limits", "_num_prompts", "_prompt_tokens", "requests")

    def __init__(self, limits: Capacity) -> None:
        self._limits = limits
        self.requests: list[Request] = []
        self._num_prompts = 0
        self._prompt_tokens = 0

    def __len__(self) -> int:
        """Count the requests that wait."""
        return len(self.requests)

    def add(self, batch: Batch) -> None:
        """Let a group queue up behind those that wait; its list becomes the queue's own."""
        if self.requests:
            self.requests.extend(batch.requests)
        else:
            self.requests = batch.requests
        self._num_prompts += batch.num_prompts
        self._prompt_tokens += batch.prompt_tokens

    def take(self, longest_context: int) -> Batch:
        """Remove and return what runs next.

        The queue is scanned in order. A request that does not fit the limits is passed over,
        not waited for: a short one behind it may still join.

        Parameters
        ----------
        longest_context
            No request holds more tokens than this.
        """
        limits, requests, num_prompts = self._limits, self.requests, self._num_prompts
        num_decodes = len(requests) - num_prompts
        if (
            num_prompts <= limits.max_prompts
            and self._prompt_tokens <= limits.max_prompt_tokens
            and num_decodes <= limits.max_decode_tokens
            and (
                num_decodes * longest_context <= limits.max_decode_context
                or _context(requests) <= limits.max_decode_context
            )
        ):
            batch = Batch(requests, num_prompts, self._prompt_tokens)
            self.requests = []
            self._num_prompts = self._prompt_tokens = 0
            return batch
        return self._take_some()

    def _take_some(self) -> Batch:
        limits = self._limits
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
        self._num_prompts -= num_prompts
        self._prompt_tokens -= prompt_tokens
        return Batch(taken, num_prompts, prompt_tokens)


def _context(requests: list[Request]) -> int:
    """Sum of the context lengths of the decodes; a prefill has none yet."""
    return sum([request.context_tokens for request in requests])

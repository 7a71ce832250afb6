"""What a node runs next: groups of requests, queues of them, and the limits of a batch.

Used by the simulated node and by the real worker alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from helixsim.profiles.machine import Capacity
from helixsim.requests import Request


class Batch:
    """Requests that move together.

    Attributes
    ----------
    requests
        In order.
    num_prompts, prompt_tokens
        How many of them are in their prefill, and the tokens of those that go through the
        layers. All others are in a decode.
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
                prompt_tokens += request.step_tokens
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

    Attributes
    ----------
    waiting
        All that wait, as one group; None if nobody does.
    """

    __slots__ = ("_limits", "waiting")

    def __init__(self, limits: Capacity) -> None:
        self._limits = limits
        self.waiting: Batch | None = None

    def __len__(self) -> int:
        """Count the requests that wait."""
        return 0 if self.waiting is None else len(self.waiting.requests)

    def add(self, batch: Batch) -> None:
        """Let a group queue up behind those that wait; it becomes the queue's own."""
        waiting = self.waiting
        if waiting is None:
            self.waiting = batch
        else:
            waiting.requests.extend(batch.requests)
            waiting.num_prompts += batch.num_prompts
            waiting.prompt_tokens += batch.prompt_tokens

    def keep(self, wanted: Callable[[Request], bool]) -> None:
        """Drop those who are not wanted any more."""
        if self.waiting is not None:
            kept = [request for request in self.waiting.requests if wanted(request)]
            self.waiting = Batch.of(kept) if kept else None

    def take(self, longest_context: int) -> Batch:
        """Remove and return what runs next; somebody must wait.

        The queue is scanned in order. A request that does not fit the limits is passed over,
        not waited for: a short one behind it may still join.

        Parameters
        ----------
        longest_context
            No request holds more tokens than this.
        """
        limits, waiting = self._limits, self.waiting
        assert waiting is not None
        requests, num_prompts = waiting.requests, waiting.num_prompts
        num_decodes = len(requests) - num_prompts
        if (
            num_prompts <= limits.max_prompts
            and waiting.prompt_tokens <= limits.max_prompt_tokens
            and num_decodes <= limits.max_decode_tokens
            and (
                num_decodes * longest_context <= limits.max_decode_context
                or _context(waiting) <= limits.max_decode_context
            )
        ):
            self.waiting = None
            return waiting
        return self._take_some(waiting)

    def _take_some(self, waiting: Batch) -> Batch:
        limits = self._limits
        num_prompts = prompt_tokens = num_decodes = decode_context = 0
        taken: list[Request] = []
        left: list[Request] = []
        for request in waiting.requests:
            if not request.is_prefill:
                context = decode_context + request.context_tokens
                if num_decodes < limits.max_decode_tokens and context <= limits.max_decode_context:
                    num_decodes += 1
                    decode_context = context
                    taken.append(request)
                    continue
            else:
                tokens = prompt_tokens + request.step_tokens
                if num_prompts < limits.max_prompts and tokens <= limits.max_prompt_tokens:
                    num_prompts += 1
                    prompt_tokens = tokens
                    taken.append(request)
                    continue
            left.append(request)
        assert taken, "a request was admitted that fits no batch"
        waiting.requests = left
        waiting.num_prompts -= num_prompts
        waiting.prompt_tokens -= prompt_tokens
        return Batch(taken, num_prompts, prompt_tokens)


class NodeQueues:
    """The queues of one node: one at each layer where requests may enter.

    These layers part the node's range into segments. A batch runs a segment, then joins those
    who wait at the next; segments take turns.

    Parameters
    ----------
    start_layer, end_layer
        The node holds ``[start_layer, end_layer)``.
    entry_layers
        Where requests may enter.
    limits
        What a batch may hold at most.

    Attributes
    ----------
    queues
        In order of their layers.
    bounds
        Where segments begin, and `end_layer`: segment i runs ``[bounds[i], bounds[i + 1])``.
    """

    __slots__ = ("_at", "bounds", "queues")

    def __init__(
        self, start_layer: int, end_layer: int, entry_layers: Iterable[int], limits: Capacity
    ) -> None:
        starts = sorted({start_layer, *entry_layers})
        self.bounds = (*starts, end_layer)
        self.queues = [BatchQueue(limits) for _ in starts]
        self._at = dict(zip(starts, self.queues, strict=True))

    def __len__(self) -> int:
        """Count the requests that wait."""
        return sum(len(queue) for queue in self.queues)

    def enter(self, layer: int, batch: Batch) -> None:
        """Let a group queue up where it enters."""
        self._at[layer].add(batch)

    def leave(self, segment: int, batch: Batch) -> bool:
        """Take a batch that is through a segment; whether it is through the node, too."""
        if segment + 1 == len(self.queues):
            return True
        self.queues[segment + 1].add(batch)
        return False

    def keep(self, wanted: Callable[[Request], bool]) -> None:
        """Drop those who are not wanted any more, wherever they wait."""
        for queue in self.queues:
            queue.keep(wanted)

    def following(self, segment: int) -> int:
        """The segment whose turn it is after one; -1 if nobody waits anywhere."""
        queues = self.queues
        for number in (*range(segment + 1, len(queues)), *range(segment + 1)):
            if queues[number].waiting is not None:
                return int(number)
        return -1


def _context(batch: Batch) -> int:
    """Sum of the context lengths of the decodes."""
    if batch.num_prompts:
        return sum([r.context_tokens for r in batch.requests if not r.is_prefill])
    return sum([request.context_tokens for request in batch.requests])

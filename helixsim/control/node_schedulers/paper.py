"""The node scheduler of the published system: batches layer by layer.

The node's layers fall into segments, divided where requests may enter. A batch runs a segment,
then joins the requests that wait at the next; segments take turns. A queue is scanned in order,
and a request that does not fit the limits of a batch is passed over, not waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from helixsim.control.kv_cache import KvCache
from helixsim.control.node_schedulers.scheduler import NodeSchedulerInputs
from helixsim.profiles.machine import Capacity
from helixsim.requests import Request
from helixsim.steps import Batch, Step


class BatchQueue:
    """Requests that wait at one layer of a node, in order of arrival.

    Parameters
    ----------
    limits
        What a batch may hold at most.

    Attributes
    ----------
    waiting
        All waiting requests, as one group; None if there are none.
    """

    __slots__ = ("_limits", "waiting")

    def __init__(self, limits: Capacity) -> None:
        self._limits = limits
        self.waiting: Batch | None = None

    def __len__(self) -> int:
        """Count the requests that wait."""
        return 0 if self.waiting is None else len(self.waiting.requests)

    def add(self, batch: Batch) -> None:
        """Append a group to the queue; it becomes the queue's own."""
        waiting = self.waiting
        if waiting is None:
            self.waiting = batch
        else:
            waiting.requests.extend(batch.requests)
            waiting.num_prompts += batch.num_prompts
            waiting.prompt_tokens += batch.prompt_tokens

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more."""
        if self.waiting is not None:
            kept = [request for request in self.waiting.requests if is_wanted(request)]
            self.waiting = Batch.of(kept) if kept else None

    def take(self, longest_context: int) -> Batch:
        """Remove and return the next batch; some request must wait.

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
                or waiting.context_tokens <= limits.max_decode_context
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
                context = decode_context + request.num_computed_tokens
                if num_decodes < limits.max_decode_tokens and context <= limits.max_decode_context:
                    num_decodes += 1
                    decode_context = context
                    taken.append(request)
                    continue
            else:
                tokens = prompt_tokens + request.num_new_tokens
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


class PaperScheduler:
    """Composes steps of one pass over one segment; see :class:`.scheduler.NodeScheduler`.

    The published system keeps no account of KV blocks on its nodes: with `kv`, as a real node has
    it, a request without blocks for its tokens is preempted when its batch would start.

    Attributes
    ----------
    queues
        One for each layer at which requests enter, in order.
    """

    counts_kv = False

    __slots__ = (
        "_at",
        "_bounds",
        "_contexts",
        "_last",
        "_layers",
        "_name",
        "_received_tokens",
        "_segment",
        "_step",
        "kv",
        "queues",
        "running",
    )

    def __init__(self, inputs: NodeSchedulerInputs) -> None:
        self._name = inputs.name
        starts = sorted({inputs.start_layer, *inputs.entry_layers})
        self._bounds = (*starts, inputs.end_layer)
        self._layers = tuple(pairwise(self._bounds))
        self.queues = [self._make_queue(inputs.limits) for _ in starts]
        self._at = dict(zip(starts, self.queues, strict=True))
        self._contexts = inputs.contexts
        self._received_tokens = 0
        self._segment = self._last = len(starts) - 1
        self.kv: KvCache | None = inputs.kv
        self.running: Step | None = None
        # One object for all steps: a batch costs hundreds of thousands of times.
        self._step = Step([Batch([], 0, 0)], self._bounds)

    def _make_queue(self, limits: Capacity) -> BatchQueue:
        return BatchQueue(limits)

    # -- requests come and go ------------------------------------------------------------------

    def enter(self, layer: int, batch: Batch) -> None:
        """Append a group to the queue of the layer where it enters."""
        # Spelled out, as this runs hundreds of thousands of times: batch.num_tokens.
        self._received_tokens += batch.prompt_tokens + len(batch.requests) - batch.num_prompts
        self._at[layer].add(batch)

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more, wherever they are on this node."""
        for queue in self.queues:
            queue.drop_unless(is_wanted)
        if self.running is not None:
            batch = self.running.passes[0]
            kept = [request for request in batch.requests if is_wanted(request)]
            self.running.passes[0] = Batch.of(kept)
        if self.kv is not None:
            self.kv.drop_unless(is_wanted)

    def release(self, request: Request) -> bool:
        """Take back what a request held that has ended."""
        return self.kv is not None and self.kv.release(request)

    def reset(self) -> None:
        """Forget everything, as a node that has failed."""
        for queue in self.queues:
            queue.waiting = None
        self.running = None
        self._received_tokens = 0
        self._segment = self._last
        if self.kv is not None:
            self.kv.clear()

    # -- steps ---------------------------------------------------------------------------------

    def schedule(self) -> Step | None:
        """The next batch of the next segment, in turn, at which requests wait."""
        step = self._step
        if self.kv is not None:
            return self._schedule_with_blocks(step, self.kv)
        return step if self._take_next(step) else None

    def _take_next(self, step: Step) -> bool:
        """Make the next batch the running step; whether there is one."""
        queues, segment = self.queues, self._segment
        if len(queues) > 1:
            segment = self._next_segment()
        if queues[segment].waiting is None:
            self.running = None
            return False
        self._segment = segment
        step.passes[0] = queues[segment].take(self._contexts.longest)
        step.start_layer, step.end_layer = self._layers[segment]
        step.is_last = segment == self._last
        step.received_tokens = 0
        if segment == 0:
            step.received_tokens, self._received_tokens = self._received_tokens, 0
        self.running = step
        return True

    def _schedule_with_blocks(self, step: Step, kv: KvCache) -> Step | None:
        """The same, with blocks for every request; a request without blocks is preempted."""
        step.preempted.clear()
        step.failed.clear()
        while self._take_next(step):
            if self._allocate(step, kv):
                return step
            self._received_tokens += step.received_tokens  # nothing ran that could copy them
        return step if step.preempted or step.failed else None

    def finish_pass(self, step: Step, number: int) -> Batch | None:
        """Take the batch that is through its segment; it, if it is through the node, too."""
        batch = step.passes[0]
        self.running = None
        if not batch.requests:
            return None
        if step.is_last:
            return batch
        self.queues[self._segment + 1].add(batch)
        return None

    def _next_segment(self) -> int:
        """The next segment, in turn, at which requests wait; this one if none wait."""
        queues, segment = self.queues, self._segment
        for number in (*range(segment + 1, len(queues)), *range(segment)):
            if queues[number].waiting is not None:
                return int(number)
        return segment

    def _allocate(self, step: Step, kv: KvCache) -> bool:
        """Give every request blocks for its tokens; whether any request stays."""
        batch = step.passes[0]
        gone: set[Request] = set()
        for request in batch.requests:
            holder = request.origin
            if holder in gone:
                continue
            tokens = request.num_computed_tokens + request.num_new_tokens
            missing = kv.missing(holder, tokens, step.start_layer)
            if missing + kv.held(holder) > kv.num_blocks:
                step.failed.append((holder, f"{self._name} has too little KV cache for it"))
            elif missing > kv.num_free:
                holder.num_preemptions += 1
                step.preempted.append(holder)
            else:
                if missing:
                    kv.allocate(holder, missing)
                continue
            kv.release(holder)
            gone.add(holder)
        if gone:
            staying = [request for request in batch.requests if request.origin not in gone]
            step.passes[0] = batch = Batch.of(staying)
            self._take_out(gone)
        return bool(batch.requests)

    def _take_out(self, gone: set[Request]) -> None:
        """Take out what waits of requests that were preempted or have failed: their chunks."""
        for queue in self.queues:
            queue.drop_unless(lambda request: request.origin not in gone)

    # -- gauges --------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Requests that have entered and wait for a step."""
        return sum(len(queue) for queue in self.queues)

    @property
    def queue_length(self) -> int:
        """Requests that wait at the node's first layer, as the published policies count them."""
        return len(self.queues[0])

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a step."""
        return sum(queue.waiting.num_tokens for queue in self.queues if queue.waiting is not None)

    def validate(self) -> None:
        """Check the invariants ``one-place`` and ``kv-conserved`` on this node."""
        waiting = [
            request
            for queue in self.queues
            if queue.waiting is not None
            for request in queue.waiting.requests
        ]
        running = self.running.passes[0].requests if self.running is not None else []
        inside = [*waiting, *running]
        assert len(set(inside)) == len(inside), "one-place: a request waits and runs"
        if self.kv is not None:
            self.kv.validate()

"""The node scheduler of an engine of today on the later nodes of a route.

What a request computes in a pass is decided on the first node of its route
(:mod:`helixsim.control.node_schedulers.vllm`). Here passes run in the order of their arrival, all
that have arrived and fit the token budget in one step. A pass takes the KV blocks that it needs. If
there are too few, the first pass of a request waits while the node has something else to run; for
others the request that came last is preempted. The coordinator begins preempted requests anew.
"""

from __future__ import annotations

from collections.abc import Callable

from helixsim.control.node_schedulers.scheduler import NodeSchedulerInputs
from helixsim.requests import Request
from helixsim.steps import Batch, Step


class VllmStageScheduler:
    """Composes the steps of a later node; see :class:`.scheduler.NodeScheduler`."""

    counts_kv = True
    decodes_loop = True

    def __init__(self, inputs: NodeSchedulerInputs) -> None:
        assert inputs.kv is not None
        self.kv = inputs.kv
        self.running: Step | None = None
        self._name = inputs.name
        self._bounds = (*sorted({inputs.start_layer, *inputs.entry_layers}), inputs.end_layer)
        self._max_tokens = inputs.engine.max_num_batched_tokens
        self._max_seqs = inputs.engine.max_num_seqs
        self._queue: list[Request] = []
        self._entry: dict[Request, int] = {}
        self._received_tokens = 0

    # -- requests come and go ------------------------------------------------------------------

    def enter(self, layer: int, batch: Batch) -> None:
        """Take passes that have arrived at the node."""
        for request in batch.requests:
            self._entry[request] = layer
            if not request.num_computed_tokens:
                self.kv.release(request)  # it is computed from the start
        self._queue += batch.requests
        self._received_tokens += batch.num_tokens

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more; a step that runs goes on without them."""
        self._queue = [request for request in self._queue if is_wanted(request)]
        self._entry = {r: layer for r, layer in self._entry.items() if is_wanted(r)}
        if self.running is not None:
            batch = self.running.passes[0]
            self.running.passes[0] = Batch.of([r for r in batch.requests if is_wanted(r)])
        self.kv.drop_unless(is_wanted)

    def release(self, request: Request) -> bool:
        """Take back what a request held that has ended."""
        self._entry.pop(request, None)
        if request in self._queue:
            self._queue.remove(request)
        return self.kv.release(request)

    def reset(self) -> None:
        """Forget all requests, as a node that has failed."""
        self.running = None
        self._queue.clear()
        self._entry.clear()
        self._received_tokens = 0
        self.kv.clear()

    # -- steps ---------------------------------------------------------------------------------

    def schedule(self) -> Step | None:
        """Compose the next step of the passes that have arrived, in order."""
        step = Step([Batch([], 0, 0)], self._bounds)
        taken: list[Request] = []
        left: list[Request] = []
        budget = self._max_tokens
        for request in list(self._queue):
            if request not in self._entry:
                continue  # preempted for one before it
            if (
                len(taken) == self._max_seqs
                or (taken and request.num_new_tokens > budget)
                or not self._has_blocks(request, step, taken)
            ):
                left.append(request)
                continue
            taken.append(request)
            budget -= request.num_new_tokens
        if not taken:
            # What they wait for may wait for them in turn, elsewhere.
            for request in left:
                self._preempt(request, step)
        self._queue = [request for request in left if request in self._entry]
        if taken:
            step.received_tokens, self._received_tokens = self._received_tokens, 0
            step.passes[0] = Batch.of(taken)
            start = self._bounds[0]
            step.entry_layers = {r: self._entry[r] for r in taken if self._entry[r] > start}
            self.running = step
        else:
            self.running = None
        return step if taken or step.preempted or step.failed else None

    def _has_blocks(self, request: Request, step: Step, taken: list[Request]) -> bool:
        """Give a pass its blocks; False if it waits, is preempted, or can never run."""
        kv = self.kv
        num_tokens = request.num_computed_tokens + request.num_new_tokens
        missing = kv.missing(request, num_tokens, self._entry[request])
        held = kv.held(request)
        if missing + held > kv.num_blocks:
            step.failed.append((request, f"{self._name} has too little KV cache for it"))
            self._take_out(request)
            return False
        while missing > kv.num_free:
            if not held:
                return False
            victim = next(
                (r for r in kv.latest() if isinstance(r, Request) and r not in taken), request
            )
            self._preempt(victim, step)
            if victim is request:
                return False
        if missing:
            kv.allocate(request, missing)
        return True

    def _preempt(self, request: Request, step: Step) -> None:
        if request in step.preempted:
            return
        request.num_preemptions += 1
        step.preempted.append(request)
        self._take_out(request)

    def _take_out(self, request: Request) -> None:
        self.kv.release(request)
        self._entry.pop(request, None)

    def finish_pass(self, step: Step, number: int) -> Batch | None:
        """Take the pass that has run: its requests leave the node."""
        self.running = None
        batch = step.passes[0]
        for request in batch.requests:
            if request.is_last_pass:
                self.kv.release(request)
            self._entry.pop(request, None)
        return batch if batch.requests else None

    # -- gauges --------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Requests whose passes have arrived and wait for a step."""
        return len(self._queue)

    @property
    def queue_length(self) -> int:
        """Requests that a new one would wait behind."""
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a step."""
        return sum(request.num_new_tokens for request in self._queue)

    def validate(self) -> None:
        """Check the invariants ``one-place`` and ``kv-conserved`` on this node."""
        running = self.running.passes[0].requests if self.running is not None else []
        inside = [*self._queue, *running]
        assert len(set(inside)) == len(inside), "one-place: a request waits and runs"
        self.kv.validate()

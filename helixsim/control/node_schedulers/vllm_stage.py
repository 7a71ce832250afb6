"""The node scheduler of an engine of today for passes that begin elsewhere.

What a request computes in a pass is decided on the first node of its route
(:mod:`helixsim.control.node_schedulers.vllm`). On later nodes passes run in the order of their
arrival, all that have arrived and fit the token budget in one step. A pass takes the KV blocks that
it needs. If there are too few, the first pass of a request waits while the node has something else
to run; for others the request that came last is preempted. The coordinator begins requests anew
that are preempted here.
"""

from __future__ import annotations

from collections.abc import Callable

from helixsim.control.kv_cache import KvCache
from helixsim.control.node_schedulers.scheduler import NodeSchedulerInputs
from helixsim.requests import Request
from helixsim.steps import Batch, Step


class PassQueue:
    """Passes that have arrived from other nodes, and the blocks of their requests.

    Parameters
    ----------
    name
        Of the node, for messages.
    kv
        The node's KV blocks.
    max_seqs
        The most requests in a step.
    preempt
        Called with a request to be preempted for others; it must leave the node.
    """

    def __init__(
        self,
        name: str,
        kv: KvCache,
        max_seqs: int,
        preempt: Callable[[Request, Step], None],
    ) -> None:
        self._name = name
        self._kv = kv
        self._max_seqs = max_seqs
        self._preempt_other = preempt
        self._waiting: list[Request] = []
        self.entry: dict[Request, int] = {}
        """Layer at which a request enters, for requests that wait or run."""
        self._received_tokens = 0

    def __len__(self) -> int:
        """Count the passes that wait."""
        return len(self._waiting)

    @property
    def requests(self) -> list[Request]:
        """Requests whose passes wait, in order of arrival."""
        return self._waiting

    def enter(self, layer: int, batch: Batch) -> None:
        """Take passes that have arrived at the node."""
        for request in batch.requests:
            self.entry[request] = layer
            if not request.num_computed_tokens:
                self._kv.release(request)  # it is computed from the start
        self._waiting += batch.requests
        self._received_tokens += batch.num_tokens

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop passes of requests that are not wanted any more."""
        self._waiting = [request for request in self._waiting if is_wanted(request)]
        self.entry = {r: layer for r, layer in self.entry.items() if is_wanted(r)}

    def clear(self) -> None:
        """Forget all passes."""
        self._waiting.clear()
        self.entry.clear()
        self._received_tokens = 0

    def take(self, step: Step, taken: list[Request], budget: int) -> int:
        """Add passes to the requests of a step, in order, while they fit; the budget left."""
        left: list[Request] = []
        entry, size = self.entry, self._kv.block_tokens
        num_before = len(taken)
        for request in self._waiting:
            if request not in entry:
                continue  # preempted for one before it
            new = request.num_new_tokens
            if len(taken) >= self._max_seqs or (taken and new > budget):
                left.append(request)
                continue
            # A decode in the middle of a block needs no further one.
            has_room = not request.is_prefill and request.num_computed_tokens % size
            if not (has_room or self._has_blocks(request, step, taken)):
                left.append(request)
                continue
            taken.append(request)
            budget -= new
        if not taken:
            # What they wait for may wait for them in turn, elsewhere.
            for request in left:
                self.preempt(request, step)
        self._waiting = [request for request in left if request in entry]
        if len(taken) > num_before:
            step.received_tokens, self._received_tokens = self._received_tokens, 0
        return budget

    def finish(self, request: Request) -> None:
        """Take note that a pass has run."""
        if request.is_last_pass:
            self._kv.release(request)
        self.entry.pop(request, None)

    def _has_blocks(self, request: Request, step: Step, taken: list[Request]) -> bool:
        """Give a pass its blocks; False if it waits, is preempted, or can never run."""
        kv = self._kv
        num_tokens = request.num_computed_tokens + request.num_new_tokens
        missing = kv.missing(request, num_tokens, self.entry[request])
        held = kv.held(request)
        if missing + held > kv.num_blocks:
            step.failed.append((request, f"{self._name} has too little KV cache for it"))
            self.leave(request)
            return False
        while missing > kv.num_free:
            if not held:
                return False
            victim = next(
                (r for r in kv.latest() if isinstance(r, Request) and r not in taken), request
            )
            if victim is request:
                self.preempt(request, step)
                return False
            self._preempt_other(victim, step)
        if missing:
            kv.allocate(request, missing)
        return True

    def preempt(self, request: Request, step: Step) -> None:
        """Take a request out; the coordinator is to begin it anew."""
        if request in step.preempted:
            return
        request.num_preemptions += 1
        step.preempted.append(request)
        self.leave(request)

    def leave(self, request: Request) -> None:
        """Forget a request, and take its blocks back."""
        self._kv.release(request)
        self.entry.pop(request, None)


class VllmStageScheduler:
    """Composes the steps of a node that no route begins at; a :class:`.scheduler.NodeScheduler`."""

    counts_kv = True
    decodes_loop = True

    def __init__(self, inputs: NodeSchedulerInputs) -> None:
        assert inputs.kv is not None
        self.kv = inputs.kv
        self.running: Step | None = None
        self._bounds = (*sorted({inputs.start_layer, *inputs.entry_layers}), inputs.end_layer)
        self._max_tokens = inputs.engine.max_num_batched_tokens
        self._passes = PassQueue(inputs.name, self.kv, inputs.engine.max_num_seqs, self._preempt)

    def enter(self, layer: int, batch: Batch) -> None:
        """Take passes that have arrived at the node."""
        self._passes.enter(layer, batch)

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more; a step that runs goes on without them."""
        self._passes.drop_unless(is_wanted)
        if self.running is not None:
            batch = self.running.passes[0]
            self.running.passes[0] = Batch.of([r for r in batch.requests if is_wanted(r)])
        self.kv.drop_unless(is_wanted)

    def release(self, request: Request) -> bool:
        """Take back what a request held that has ended."""
        if request in self._passes.entry:
            self._passes.drop_unless(lambda other: other is not request)
        return self.kv.release(request)

    def reset(self) -> None:
        """Forget all requests, as a node that has failed."""
        self.running = None
        self._passes.clear()
        self.kv.clear()

    def schedule(self) -> Step | None:
        """Compose the next step of the passes that have arrived, in order."""
        self.running = None
        if not self._passes:
            return None
        step = Step([Batch([], 0, 0)], self._bounds)
        taken: list[Request] = []
        self._passes.take(step, taken, self._max_tokens)
        if taken:
            step.passes[0] = Batch.of(taken)
            step.entry_layers = entry_layers(self._passes.entry, self._bounds, taken)
            self.running = step
        return step if taken or step.preempted or step.failed else None

    def _preempt(self, request: Request, step: Step) -> None:
        self._passes.preempt(request, step)

    def finish_pass(self, step: Step, number: int) -> Batch | None:
        """Take the pass that has run: its requests leave the node."""
        self.running = None
        batch = step.passes[0]
        for request in batch.requests:
            self._passes.finish(request)
        return batch if batch.requests else None

    # -- gauges --------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Requests whose passes have arrived and wait for a step."""
        return len(self._passes)

    @property
    def queue_length(self) -> int:
        """Requests that a new one would wait behind."""
        return len(self._passes)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a step."""
        return sum(request.num_new_tokens for request in self._passes.requests)

    def validate(self) -> None:
        """Check the invariants ``one-place`` and ``kv-conserved`` on this node."""
        running = self.running.passes[0].requests if self.running is not None else []
        inside = [*self._passes.requests, *running]
        assert len(set(inside)) == len(inside), "one-place: a request waits and runs"
        self.kv.validate()


def entry_layers(
    entry: dict[Request, int], bounds: tuple[int, ...], taken: list[Request]
) -> dict[Request, int]:
    """Where requests of a step enter that do not enter at the node's first layer."""
    if len(bounds) == 2:  # nothing enters elsewhere
        return {}
    return {r: entry[r] for r in taken if entry.get(r, bounds[0]) > bounds[0]}

"""The node scheduler of the paper's prototype engine: steps of prefills and decodes.

A step takes all decodes that have arrived and the prompts that fit: the prefills in one pass and
the decodes in a second (``batching: separate``), or both in one pass (``mixed``). KV blocks are
given when a request's tokens need them. Where there are too few, the request that came last is
preempted: for a decode, and for a prompt of which chunks are through already. Other prompts wait.
"""

from __future__ import annotations

from collections.abc import Callable

from helixsim.control.node_schedulers.scheduler import NodeSchedulerInputs
from helixsim.requests import Request
from helixsim.steps import Batch, Step


class PrototypeScheduler:
    """Composes steps over all layers of the node; see :class:`.scheduler.NodeScheduler`."""

    counts_kv = True
    composes_steps = True

    def __init__(self, inputs: NodeSchedulerInputs) -> None:
        assert inputs.kv is not None
        self._name = inputs.name
        self._bounds = (*sorted({inputs.start_layer, *inputs.entry_layers}), inputs.end_layer)
        self._is_mixed = inputs.engine.batching == "mixed"
        self._max_tokens = inputs.engine.max_num_batched_tokens
        self._max_decodes = inputs.limits.max_decode_tokens
        self.composer = inputs.composer
        self._ends_llm = inputs.end_layer >= inputs.num_llm_layers
        self.kv = inputs.kv
        self.running: Step | None = None
        self._prompts: list[Request] = []
        self._decodes: list[Request] = []
        self._entry: dict[Request, int] = {}
        self._received_tokens = 0

    # -- requests come and go ------------------------------------------------------------------

    def enter(self, layer: int, batch: Batch) -> None:
        """Take requests that have arrived at the node."""
        if layer:  # the coordinator, which sends to layer 0, sends token ids, not hidden states
            self._received_tokens += batch.num_tokens
        if not batch.num_prompts:
            self._decodes += batch.requests
            return
        for request in batch.requests:
            if request.is_prefill:
                self._prompts.append(request)
                self._entry[request.origin] = layer
            else:
                self._decodes.append(request)

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more, wherever they are on this node."""
        self._prompts = [request for request in self._prompts if is_wanted(request)]
        self._decodes = [request for request in self._decodes if is_wanted(request)]
        self._entry = {
            request: layer for request, layer in self._entry.items() if is_wanted(request)
        }
        if self.running is not None:
            self.running.passes = [
                Batch.of([request for request in batch.requests if is_wanted(request)])
                for batch in self.running.passes
            ]
        self.kv.drop_unless(is_wanted)
        if self.composer is not None:
            self.composer.drop_unless(is_wanted)

    def release(self, request: Request) -> bool:
        """Take back the blocks of a request that has ended."""
        if self.composer is not None:
            self.composer.forget(request)
        self._entry.pop(request, None)
        return self.kv.release(request)

    def reset(self) -> None:
        """Forget everything, as a node that has failed."""
        self._prompts, self._decodes, self._entry = [], [], {}
        self._received_tokens = 0
        self.running = None
        self.kv.clear()
        if self.composer is not None:
            self.composer.drop_unless(lambda request: False)

    # -- steps ---------------------------------------------------------------------------------

    def schedule(self) -> Step | None:
        """All decodes, and the prompts that fit."""
        step = Step([], self._bounds)
        decodes = self._take_decodes(step)
        prompts = self._take_prompts(step, decodes)
        self.running = None
        if not prompts and not decodes:
            return step if step.preempted or step.failed else None
        groups = [prompts + decodes] if self._is_mixed else [prompts, decodes]
        if self.composer is not None:
            groups.reverse()  # decodes do not wait for the chunks that run beside them
        step.passes = [Batch.of(requests) for requests in groups]
        step.received_tokens, self._received_tokens = self._received_tokens, 0
        if len(self._bounds) > 2:
            first = self._bounds[0]
            step.entry_layers = {
                request: self._entry.get(request.origin, first)
                for requests in groups
                for request in requests
            }
        self.running = step
        return step

    def finish_pass(self, step: Step, number: int) -> Batch | None:
        """Every pass runs all layers: its requests are through the node."""
        batch = step.passes[number]
        step.passes[number] = Batch([], 0, 0)
        if not batch.requests:
            return None
        if self.composer is None or not batch.num_prompts:
            return batch
        return self.composer.through(batch, ends_llm=self._ends_llm)

    def waits_for_more(self) -> bool:
        """Whether the next step would be of decodes only, and of fewer than it may have."""
        return (
            self.composer is not None
            and not self._prompts
            and 0 < len(self._decodes) < self.composer.max_decodes
        )

    def _take_decodes(self, step: Step) -> list[Request]:
        """The decodes whose next token has a block, other requests being preempted if need be."""
        kv, entry, first = self.kv, self._entry, self._bounds[0]
        most = self._max_decodes
        if self.composer is not None:
            most = min(most, self.composer.max_decodes)
        taken = self._decodes[:most]
        for request in taken:
            if request.num_computed_tokens % kv.block_tokens == 0 and request in self._decodes:
                missing = kv.missing(
                    request,
                    request.num_computed_tokens + request.num_new_tokens,
                    entry.get(request, first),
                )
                if self._make_room(step, request, missing, self._decodes):
                    kv.allocate(request, missing)
        if step.preempted:  # others do not take their places: they were given no blocks
            gone = set(step.preempted)
            taken = [request for request in taken if request not in gone]
        del self._decodes[: len(taken)]
        return taken

    def _take_prompts(self, step: Step, decodes: list[Request]) -> list[Request]:
        """The first prompts, as far as a pass and the KV cache have room; others wait.

        Prompts of which chunks are through go first, and do not wait: else two of them might wait
        for each other, each holding the blocks that the other needs.
        """
        room = self._max_tokens - (len(decodes) if self._is_mixed else 0)
        if self.composer is not None:
            room = min(room, self.composer.prefill_tokens(len(self._prompts)))
        kv = self.kv
        taken: list[Request] = []
        self._prompts.sort(key=lambda request: not kv.held(request.origin))
        while self._prompts:
            request = self._prompts[0]
            if taken and request.num_new_tokens > room:
                break
            holder = request.origin
            missing = kv.missing(
                holder, request.num_computed_tokens + request.num_new_tokens, self._entry[holder]
            )
            if missing + kv.held(holder) > kv.num_blocks:
                step.failed.append((holder, f"{self._name} has too little KV cache for it"))
                self._take_out(holder)
                continue
            if missing > kv.num_free:
                if not request.num_computed_tokens:
                    break
                if not self._make_room(step, request, missing, self._prompts, decodes, taken):
                    continue  # it has been preempted itself
            kv.allocate(holder, missing)
            room -= request.num_new_tokens
            taken.append(self._prompts.pop(0))
        return taken

    def _make_room(
        self, step: Step, request: Request, num_blocks: int, *groups: list[Request]
    ) -> bool:
        """Preempt the requests that came last until there is room, as engines do.

        It may be the request itself that has to go; whether it stays. Victims leave `groups`, too.
        """
        while num_blocks > self.kv.num_free and request in groups[0]:
            victim = next(self.kv.latest(), request.origin)
            assert isinstance(victim, Request)
            victim.num_preemptions += 1
            step.preempted.append(victim)
            self._take_out(victim)
            for group in groups:
                _remove(victim, group)
        return request in groups[0]

    def _take_out(self, holder: Request) -> None:
        """Take a request and its chunks out."""
        self.release(holder)
        for group in (self._prompts, self._decodes):
            _remove(holder, group)

    # -- gauges --------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Requests that have entered and wait for a step."""
        return len(self._prompts) + len(self._decodes)

    @property
    def queue_length(self) -> int:
        """Requests that wait for a step, wherever they enter."""
        return self.num_waiting

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a step."""
        return sum(request.num_new_tokens for request in self._prompts) + len(self._decodes)

    def validate(self) -> None:
        """Check the invariants ``one-place`` and ``kv-conserved`` on this node."""
        running = (
            [r for batch in self.running.passes for r in batch.requests] if self.running else []
        )
        inside = [*self._prompts, *self._decodes, *running]
        assert len(set(inside)) == len(inside), (
            "one-place: a request waits and runs, or waits twice"
        )
        self.kv.validate()


def _remove(holder: Request, group: list[Request]) -> None:
    """Remove a request and its chunks from a list."""
    group[:] = [request for request in group if request.origin is not holder]

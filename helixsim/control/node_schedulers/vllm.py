"""The node scheduler of an engine of today, after vLLM v1 (``vllm/v1/core/sched/scheduler.py``).

The first node of a route keeps one list of running requests and one queue of waiting ones, and one
counter for each request, `num_computed_tokens`. A step has a token budget. Running requests come
first: each gets the tokens that it still has to compute, as far as the budget lasts: a decode has
one, a prefill a chunk. If no KV block is left, the request that came last is preempted: it gives
all its blocks back and goes to the head of the queue, to be computed again. Then waiting
requests are admitted, in order, while budget, `max_num_seqs` and blocks last: the whole of what
is known of a request must fit into free blocks, blocks that a prefix cache has cost nothing.
Nothing is admitted in a step that preempted.

A decode that is through goes on in the next step, without waiting for the coordinator. Where a
route has further stages, a request is in one step at a time, and no more groups of requests are
in flight than the route has stages.

Routes that begin on another node may lead through this one as well. Their passes come after the
running requests and before new ones (:mod:`helixsim.control.node_schedulers.vllm_stage`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import cast

from helixsim.control.node_schedulers.groups import Groups
from helixsim.control.node_schedulers.scheduler import (
    RETURNS,
    NodeScheduler,
    NodeSchedulerInputs,
)
from helixsim.control.node_schedulers.vllm_stage import (
    PassQueue,
    VllmStageScheduler,
    entry_layers,
)
from helixsim.control.prefix_cache import PrefixCache
from helixsim.requests import Request
from helixsim.steps import Batch, Step


class VllmScheduler:
    """Composes the steps of the first node of a route; see :class:`.scheduler.NodeScheduler`."""

    counts_kv = True
    decodes_loop = True

    def __init__(self, inputs: NodeSchedulerInputs) -> None:
        assert inputs.kv is not None
        engine = inputs.engine
        self.kv = _blocks_of_all_layers(inputs)
        self.running: Step | None = None
        self._name = inputs.name
        self._bounds = (*sorted({inputs.start_layer, *inputs.entry_layers}), inputs.end_layer)
        self._is_whole = inputs.end_layer >= inputs.num_llm_layers
        self._max_tokens = engine.max_num_batched_tokens
        self._max_seqs = engine.max_num_seqs
        self._by_priority = engine.scheduling == "priority"
        # A step is composed while the one before it runs, so from what was there when that began.
        self._looks_ahead = engine.async_scheduling and self._is_whole
        self._admitted: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._arrived: list[Request] = []
        self._finished: dict[Request, None] = {}
        self._groups = Groups()
        self._passes = PassQueue(self._name, self.kv, self._max_seqs, self._preempt_for_pass)
        self._may_admit_next = False

    # -- requests come and go ------------------------------------------------------------------

    def enter(self, layer: int, batch: Batch) -> None:
        """Take new requests, requests that are back from the last stage, and passes of others."""
        if layer == RETURNS:
            for request in batch.requests:
                if self._groups.is_back(request):
                    _advance(request)
        elif layer > self._bounds[0]:
            self._passes.enter(layer, batch)
        else:
            self._arrived += batch.requests

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more; a step that runs goes on without them."""
        self._admitted = [request for request in self._admitted if is_wanted(request)]
        self._waiting = deque(request for request in self._waiting if is_wanted(request))
        self._arrived = [request for request in self._arrived if is_wanted(request)]
        for request in [request for request in self._finished if not is_wanted(request)]:
            del self._finished[request]
        self._groups.drop_unless(is_wanted)
        self._passes.drop_unless(is_wanted)
        if self.running is not None:
            batch = self.running.passes[0]
            self.running.passes[0] = Batch.of([r for r in batch.requests if is_wanted(r)])
        self.kv.drop_unless(is_wanted)

    def release(self, request: Request) -> bool:
        """Take back what a request held that has ended, here or by a decision elsewhere."""
        if request.num_generated_tokens > request.num_decodes or request in self._finished:
            return False  # it has ended here; its blocks come back with the next step
        if self.kv.held(request) or request in self._waiting or request in self._arrived:
            self.drop_unless(lambda other: other is not request)
            return True
        return False

    def reset(self) -> None:
        """Forget all requests and the prefix cache, as a node that has failed."""
        self.running = None
        self._admitted.clear()
        self._waiting.clear()
        self._arrived.clear()
        self._finished.clear()
        self._groups = Groups()
        self._passes.clear()
        self.kv.forget()

    # -- steps ---------------------------------------------------------------------------------

    def schedule(self) -> Step | None:
        """Compose the next step: running requests, then waiting ones that are admitted."""
        if len(self._groups.away) == len(self._admitted) and not (
            self._waiting or self._arrived or self._finished or self._passes
        ):
            self.running = None
            return None  # all requests are at later stages, if there are any
        step = Step([Batch([], 0, 0)], self._bounds)
        if not (self._looks_ahead and self._admitted):
            self._release_finished()
            self._take_arrived(step)
        batch = step.passes[0]
        self._may_admit_next = False
        self._compose(step)
        if self._looks_ahead and (self._finished or self._arrived):
            self._release_finished()
            self._take_arrived(step)
            if batch.requests:
                self._may_admit_next |= bool(self._waiting)
            else:
                self._compose(step)
        self.running = step if batch.requests else None
        if not self._is_whole and batch.requests:
            own = [request for request in batch.requests if request not in self._passes.entry]
            if own:
                self._groups.send_away(own)
        return step if batch.requests or step.preempted or step.failed else None

    def _release_finished(self) -> None:
        for request in self._finished:
            self.kv.release(request)
        self._finished.clear()

    def _take_arrived(self, step: Step) -> None:
        """Let requests that have arrived wait for their admission."""
        kv = self.kv
        for request in self._arrived:
            if kv.missing(request, request.longest_context) > kv.num_blocks:
                step.failed.append((request, f"{self._name} has too little KV cache for it"))
                continue
            self._waiting.append(request)
        if self._arrived and self._by_priority:
            self._waiting = deque(sorted(self._waiting, key=_priority))
        self._arrived.clear()

    def _compose(self, step: Step) -> None:
        batch = step.passes[0]
        taken = batch.requests
        budget, size = self._max_tokens, self.kv.block_tokens
        admitted, kv, away = self._admitted, self.kv, self._groups.away
        victims: list[Request] = []
        has_room = self._groups.is_room_for(admitted)
        position = 0
        while has_room and position < len(admitted) and budget:
            request = admitted[position]
            if request in away:
                position += 1
                continue
            computed = request.num_computed_tokens
            new = request.prompt_tokens + request.num_generated_tokens - computed
            new = min(new, budget)
            missing = -(-(computed + new) // size) - -(-computed // size)
            if missing:
                if missing > kv.num_free:
                    self._preempt_for(request, missing, victims, taken)
                    budget = self._max_tokens - sum(r.num_new_tokens for r in taken)
                    if request in victims:
                        continue
                    position = admitted.index(request)
                kv.allocate(request, missing)
            if (computed + new) // size > computed // size:
                kv.know(request, computed + new)
            request.num_new_tokens = new
            taken.append(request)
            budget -= new
            position += 1
        if victims:
            self._take_out(victims, step)
        if self._passes:
            budget = self._passes.take(step, taken, budget)
        if has_room and not victims and budget > 0:
            self._admit(taken, budget)
        if self._passes.entry:
            step.entry_layers = entry_layers(self._passes.entry, self._bounds, taken)
        for request in taken:
            if request.is_prefill:
                batch.num_prompts += 1
                batch.prompt_tokens += request.num_new_tokens

    def _admit(self, taken: list[Request], budget: int) -> None:
        kv, waiting, size = self.kv, self._waiting, self.kv.block_tokens
        # Ahead of time, requests of the step that runs keep their place, too, if they end with it.
        max_seqs = self._max_seqs - len(self._finished)
        while waiting and budget and kv.num_free and len(self._admitted) < max_seqs:
            request = waiting[0]
            tokens = request.prompt_tokens + request.num_generated_tokens
            # One token at least has to be computed: without it there is no next one.
            found = kv.found(request, tokens - 1) if self._is_whole else []
            if kv.num_needed(tokens, found) > kv.num_free:
                break
            waiting.popleft()
            cached = len(found) * size
            new = min(tokens - cached, budget)
            kv.adopt(request, found, tokens)
            kv.allocate(request, -(-(cached + new) // size) - len(found))
            kv.know(request, cached + new)
            request.is_prefill = True
            request.num_computed_tokens = cached
            request.num_new_tokens = new
            if not request.num_generated_tokens and not request.num_preemptions:
                request.num_cached_tokens = cached
            self._admitted.append(request)
            taken.append(request)
            budget -= new

    def finish_pass(self, step: Step, number: int) -> Batch | None:
        """Take the pass that has run.

        On a node that holds all layers, requests that began here return if they have a new token,
        and go on by themselves. All others leave: for the next stage of their routes, or, from the
        last layer, for the first.
        """
        self.running = None
        batch = step.passes[0]
        if not batch.requests:
            return None
        entry = self._passes.entry
        through = [request for request in batch.requests if request in entry] if entry else []
        own = batch.requests
        if through:
            own = [request for request in own if request not in entry]
            for request in through:
                self._passes.finish(request)
        if self._is_whole:
            tokens = [request for request in own if _advance(request)]
            ended = [r for r in tokens if r.num_generated_tokens > r.num_decodes]
            batch = Batch.of([*tokens, *through])
        else:
            ended = [request for request in own if request.is_last_pass]
            for request in ended:
                self._groups.leave(request)
        if ended:
            gone = set(ended)
            self._admitted = [request for request in self._admitted if request not in gone]
            self._finished.update(dict.fromkeys(ended))
        return batch if batch.requests else None

    # -- preemption ----------------------------------------------------------------------------

    def _preempt_for(
        self, request: Request, num_blocks: int, victims: list[Request], taken: list[Request]
    ) -> None:
        """Preempt, the last to have come first, until there is room or the request itself is."""
        admitted = self._admitted
        while num_blocks > self.kv.num_free and request not in victims:
            victim = max(admitted, key=_priority) if self._by_priority else admitted[-1]
            admitted.remove(victim)
            self._groups.leave(victim)
            if victim in taken:
                taken.remove(victim)
                self.kv.unlearn(victim, victim.num_computed_tokens)
            self.kv.release(victim)
            victims.append(victim)

    def _preempt_for_pass(self, request: Request, step: Step) -> None:
        """Preempt a request for a pass that began elsewhere."""
        if request in self._finished:
            del self._finished[request]
            self.kv.release(request)
            return
        if request not in self._admitted:
            self._passes.preempt(request, step)
            return
        self._admitted.remove(request)
        self._groups.leave(request)
        self.kv.release(request)
        self._take_out([request], step)

    def _take_out(self, victims: list[Request], step: Step) -> None:
        """Let preempted requests wait here, or have the coordinator begin them anew."""
        self._may_admit_next = True  # their blocks may be enough for another one that waits
        for victim in victims:
            victim.num_preemptions += 1
            if self._is_whole:
                victim.num_computed_tokens = 0
                victim.is_prefill = True
                self._waiting.appendleft(victim)
            else:
                step.preempted.append(victim)
        if self._by_priority:
            self._waiting = deque(sorted(self._waiting, key=_priority))

    # -- steps that repeat -----------------------------------------------------------------------

    def num_repeats(self, step: Step) -> int:
        """How many times a step that has just been composed would be composed again as it is.

        Only of decodes, on a node that holds all layers, and as long as nothing arrives: until a
        request ends, or blocks may run short. Waiting requests stay where they are: they find less
        room each time.
        """
        batch = step.passes[0]
        if not self._is_whole or batch.num_prompts or self._may_admit_next or self._passes.entry:
            return 0
        requests = batch.requests
        if len(requests) < len(self._admitted) or step.preempted or step.failed:
            return 0
        left = min([r.num_decodes - r.num_generated_tokens for r in requests])
        blocks_each = self.kv.num_free // len(requests)
        return min(left, blocks_each * self.kv.block_tokens)

    def repeat(self, step: Step, num_steps: int) -> None:
        """Account for a step, and as many repetitions of it less one, as if each had been composed.

        The step that follows, which is composed like them, runs then.
        """
        size, kv = self.kv.block_tokens, self.kv
        requests = step.passes[0].requests
        filled: list[tuple[int, int]] = []
        for place, request in enumerate(requests):
            computed = request.num_computed_tokens
            # Step j (from 0) computes the token at position `computed + j`.
            first = -(computed + 1) % size
            filled += [(j, place) for j in range(first, num_steps + 1, size) if j]
            first = -computed % size
            filled += [(j, place) for j in range(first or size, num_steps + 1, size)]
            request.num_computed_tokens = computed + num_steps
            request.num_generated_tokens += num_steps
        filled.sort()
        for j, place in filled:
            request = requests[place]
            computed = request.num_computed_tokens - num_steps + j
            if computed % size == 0:
                kv.allocate(request, 1)
            else:
                kv.know(request, computed + 1)

    # -- gauges --------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Requests that have entered and have not been admitted."""
        return len(self._waiting) + len(self._arrived) + len(self._passes)

    @property
    def queue_length(self) -> int:
        """Requests that a new one would wait behind, or run with."""
        return self.num_waiting + len(self._admitted)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a step."""
        waiting = sum(
            r.prompt_tokens + r.num_generated_tokens for r in (*self._waiting, *self._arrived)
        )
        waiting += sum(request.num_new_tokens for request in self._passes.requests)
        return waiting + sum(
            r.prompt_tokens + r.num_generated_tokens - r.num_computed_tokens for r in self._admitted
        )

    def validate(self) -> None:
        """Check the invariants ``one-place`` and ``kv-conserved`` on this node."""
        inside = [
            *self._admitted,
            *self._waiting,
            *self._arrived,
            *self._finished,
            *self._passes.requests,
        ]
        assert len(set(inside)) == len(inside), "one-place: a request waits and runs"
        running = self.running.passes[0].requests if self.running is not None else []
        known = {*self._admitted, *self._passes.entry}
        assert set(running) <= known, "one-place: a request runs that is not admitted"
        for request in self._admitted:
            num_tokens = request.num_computed_tokens
            if request in running or request in self._groups.away:
                num_tokens += request.num_new_tokens
            blocks = -(-num_tokens // self.kv.block_tokens)
            assert self.kv.held(request) == blocks, "kv-conserved: more or fewer blocks than tokens"
        self.kv.validate()


def _advance(request: Request) -> bool:
    """Count the tokens of a pass as computed; whether it has yielded a token of the answer."""
    computed = request.num_computed_tokens + request.num_new_tokens
    request.num_computed_tokens = computed
    if computed < request.prompt_tokens + request.num_generated_tokens:
        return False
    request.num_generated_tokens += 1
    request.is_prefill = False
    return True


def _priority(request: Request) -> tuple[int, float, int]:
    return request.priority, request.arrival_s, request.index


def _blocks_of_all_layers(inputs: NodeSchedulerInputs) -> PrefixCache:
    """The node's KV cache in blocks that span all its layers: every request enters at the first."""
    kv, num_layers = inputs.kv, inputs.end_layer - inputs.start_layer
    assert kv is not None
    if not isinstance(kv, PrefixCache):
        kv = PrefixCache(kv.num_blocks // num_layers, kv.block_tokens)
    is_whole = inputs.end_layer >= inputs.num_llm_layers
    kv.is_enabled = inputs.engine.enable_prefix_caching and is_whole
    return kv


class VllmSchedulers:
    """Makes the scheduler of a node: one for first nodes of routes, one for all others."""

    counts_kv = True
    decodes_loop = True

    def __call__(self, inputs: NodeSchedulerInputs) -> NodeScheduler:
        """Make it."""
        made = VllmStageScheduler(inputs) if inputs.start_layer else VllmScheduler(inputs)
        return cast(NodeScheduler, made)


vllm_schedulers = VllmSchedulers()

"""The published node scheduler with step composition: chunks of prefills, and some of the decodes.

Segments, queues and the limits of a batch are as in
:mod:`helixsim.control.node_schedulers.paper`. A batch takes the first decodes or the first chunks,
in turn, each kind in order and as far as
:mod:`helixsim.control.node_schedulers.composition` lets it, so that neither starves the other.
"""

from __future__ import annotations

from collections.abc import Callable

from helixsim.control.node_schedulers.composition import StepComposer
from helixsim.control.node_schedulers.paper import BatchQueue, PaperScheduler
from helixsim.control.node_schedulers.scheduler import NodeScheduler, NodeSchedulerInputs
from helixsim.profiles.machine import Capacity
from helixsim.requests import Request
from helixsim.steps import Batch, Step


class ComposedQueue(BatchQueue):
    """Requests that wait at one layer, of which a batch takes what a composer allows."""

    __slots__ = ("_composer", "_decodes_went")

    def __init__(self, limits: Capacity, composer: StepComposer) -> None:
        super().__init__(limits)
        self._composer = composer
        self._decodes_went = False

    def take(self, longest_context: int) -> Batch:
        """Remove and return the next batch; some request must wait.

        Decodes and prefills take turns where both wait: in one batch they would take as long
        as one after the other, and leave together.
        """
        waiting = self.waiting
        assert waiting is not None
        if not waiting.num_prompts:
            return self._take_decodes(waiting, longest_context)
        if waiting.num_prompts == len(waiting.requests):
            return self._take_prompts(waiting)
        others = waiting.requests
        takes_prompts = self._decodes_went = not self._decodes_went
        chosen = Batch.of([r for r in others if r.is_prefill is not takes_prompts])
        rest = Batch.of([r for r in others if r.is_prefill is takes_prompts])
        self.waiting = chosen
        batch = (
            self._take_decodes(chosen, longest_context)
            if takes_prompts
            else self._take_prompts(chosen)
        )
        left = self.waiting
        self.waiting = rest
        if left is not None:
            self.add(left)
        return batch

    def _take_decodes(self, waiting: Batch, longest_context: int) -> Batch:
        limits, requests = self._limits, waiting.requests
        most = min(limits.max_decode_tokens, self._composer.max_decodes)
        if min(len(requests), most) * longest_context > limits.max_decode_context:
            most = self._num_that_fit(requests[:most])
        if len(requests) <= most:
            self.waiting = None
            return waiting
        self.waiting = Batch(requests[most:], 0, 0)
        return Batch(requests[:most], 0, 0)

    def _num_that_fit(self, requests: list[Request]) -> int:
        """How many of the first requests may have their contexts in one batch, at least one."""
        left = self._limits.max_decode_context
        for number, request in enumerate(requests):
            left -= request.num_computed_tokens
            if left < 0:
                return max(number, 1)
        return len(requests)

    def _take_prompts(self, waiting: Batch) -> Batch:
        """The first chunks, as far as their tokens are allowed.

        The limit of prompts in a batch is not for chunks: it is for whole prompts, of which each
        may have as many tokens as a batch.
        """
        limits, requests = self._limits, waiting.requests
        left = min(limits.max_prompt_tokens, self._composer.prefill_tokens(len(requests)))
        number = 0
        for request in requests:
            left -= request.num_new_tokens
            if number and left < 0:
                break
            number += 1
        if number == len(requests):
            self.waiting = None
            return waiting
        self.waiting = Batch.of(requests[number:])
        return Batch.of(requests[:number])


class ComposedPaperScheduler(PaperScheduler):
    """Composes steps of one pass over one segment; see :class:`.scheduler.NodeScheduler`.

    Attributes
    ----------
    composer
        Says what a step may take.
    """

    __slots__ = ("_ends_llm", "composer")

    def __init__(self, inputs: NodeSchedulerInputs) -> None:
        assert inputs.composer is not None
        self.composer = inputs.composer
        self._ends_llm = inputs.end_layer >= inputs.num_llm_layers
        super().__init__(inputs)

    def _make_queue(self, limits: Capacity) -> BatchQueue:
        return ComposedQueue(limits, self.composer)

    def waits_for_more(self) -> bool:
        """Whether the next step would be of decodes only, and of fewer than it may have."""
        num_waiting = 0
        for queue in self.queues:
            if queue.waiting is not None:
                if queue.waiting.num_prompts:
                    return False
                num_waiting += len(queue.waiting.requests)
        return 0 < num_waiting < self.composer.max_decodes

    def finish_pass(self, step: Step, number: int) -> Batch | None:
        """Take the batch that is through its segment; what of it goes on from here, if anything."""
        batch = PaperScheduler.finish_pass(self, step, number)
        if batch is None or not batch.num_prompts:
            return batch
        return self.composer.through(batch, ends_llm=self._ends_llm)

    def _take_out(self, gone: set[Request]) -> None:
        super()._take_out(gone)
        self.composer.drop_unless(lambda request: request not in gone)

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more, wherever they are on this node."""
        super().drop_unless(is_wanted)
        self.composer.drop_unless(is_wanted)

    def release(self, request: Request) -> bool:
        """Take back what a request held that has ended."""
        self.composer.forget(request)
        return super().release(request)

    def reset(self) -> None:
        """Forget everything, as a node that has failed."""
        super().reset()
        self.composer.drop_unless(lambda request: False)


class PaperSchedulers:
    """Makes the scheduler of a node: with step composition, or as published."""

    counts_kv = False
    composes_steps = True

    def __call__(self, inputs: NodeSchedulerInputs) -> NodeScheduler:
        """Make it."""
        return PaperScheduler(inputs) if inputs.composer is None else ComposedPaperScheduler(inputs)


paper_schedulers = PaperSchedulers()

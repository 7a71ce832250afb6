"""When a simulated node begins a step of few decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from helixsim.control.node_schedulers import NodeScheduler
from helixsim.control.node_schedulers.burst_wait import BurstWait, ComposingScheduler
from helixsim.models.links import DeliveryQueue, Transfer
from helixsim.steps import Step


class StepStart(BurstWait):
    """Says when a node begins its next step: all times of arrival are known in advance here.

    Parameters
    ----------
    scheduler
        Composes the steps.
    inbox
        Where requests arrive.
    """

    def __init__(self, scheduler: ComposingScheduler, inbox: DeliveryQueue) -> None:
        super().__init__(scheduler, inbox.last_of_burst)
        self._inbox = inbox

    @classmethod
    def of(cls, scheduler: NodeScheduler, inbox: DeliveryQueue) -> StepStart | None:
        """For a scheduler that limits its steps; None for others."""
        if getattr(scheduler, "composer", None) is None:
            return None
        return cls(cast("ComposingScheduler", scheduler), inbox)

    def took(self, transfers: list[Transfer]) -> None:
        """Take note of what has arrived."""
        for transfer in transfers:
            sent_s = transfer.sent_s
            if len(sent_s) > 1:
                self.composer.arrived(len(sent_s), sent_s[-1] - sent_s[0])
            self._last_arrival_s = max(self._last_arrival_s, transfer.last_arrival_s)

    def looks_s(self, first_s: float) -> float:
        """When an idle node with nothing to run looks at what arrives from `first_s` on.

        Once the decodes that follow one another are there, or as many as a step may have: whatever
        it could do before then is to wait for them. A prefill it sees at once.
        """
        looks_s = self.begins_after_s(first_s)
        transfers, num_coming = self._inbox.transfers, 0
        for transfer in transfers:
            num_coming += len(transfer.sent_s)
            if transfer.num_prompts:
                looks_s = min(looks_s, transfer.first_arrival_s)
        if num_coming >= (most := self.composer.max_decodes):
            looks_s = min(looks_s, _nth_arrival_s(transfers, most))
        return looks_s

    def begins(self, step: Step, now: float, ends: Sequence[float]) -> None:
        """Take note of a step that begins now, and when its passes end."""
        self.has_begun()
        if len(ends) == 1:  # as most are
            if not step.passes[0].num_prompts:
                self.composer.ran(ends[0] - now)
            return
        for batch, end in zip(step.passes, ends, strict=True):
            if batch.requests and not batch.num_prompts:
                self.composer.ran(end - now)
            now = end


def _nth_arrival_s(transfers: list[Transfer], number: int) -> float:
    """When this number of requests has arrived, of transfers that have at least as many."""
    if len(transfers) == 1:
        return transfers[0].sent_s[number - 1] + transfers[0].latency_s
    arrivals = [sent + each.latency_s for each in transfers for sent in each.sent_s]
    arrivals.sort()
    return arrivals[number - 1]

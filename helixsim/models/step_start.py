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
            self.arrived(len(sent_s), sent_s[-1] - sent_s[0], transfer.last_arrival_s)

    def begins(self, step: Step, now: float, ends: Sequence[float]) -> None:
        """Take note of a step that begins now, and when its passes end."""
        self.has_begun()
        for batch, end in zip(step.passes, ends, strict=True):
            if batch.requests and not batch.num_prompts:
                self.composer.ran(end - now)
            now = end

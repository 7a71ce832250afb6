"""When an idle node begins a step of few decodes: a wait for the requests right behind them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Protocol, cast

from helixsim.control.node_schedulers import NodeScheduler
from helixsim.control.node_schedulers.composition import StepComposer
from helixsim.models.links import DeliveryQueue, Transfer
from helixsim.steps import Step


class ComposingScheduler(NodeScheduler, Protocol):
    """A node scheduler that limits its steps by what it sees.

    Attributes
    ----------
    composer
        Says what a step may take, and how long it may wait.
    """

    composer: StepComposer

    def waits_for_more(self) -> bool:
        """Whether the next step would be of decodes only, and of fewer than it may have."""
        ...


class StepStart:
    """Says when a node begins its next step, and keeps its composer informed.

    A node does not see what is in flight. It waits until nothing has come for a moment; that
    moment is known in advance here, as all times of arrival are.

    Parameters
    ----------
    scheduler
        Composes the steps.
    inbox
        Where requests arrive.

    Attributes
    ----------
    composer
        The scheduler's.
    """

    def __init__(self, scheduler: ComposingScheduler, inbox: DeliveryQueue) -> None:
        self._scheduler = scheduler
        self.composer = scheduler.composer
        self._inbox = inbox
        self._last_arrival_s = -inf
        self._could_begin_s = inf

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
            self.composer.arrived(len(sent_s), sent_s[-1] - sent_s[0])
            self._last_arrival_s = max(self._last_arrival_s, transfer.last_arrival_s)

    def begins_s(self, now: float) -> float:
        """When the next step begins, not before now, unless something more arrives till then."""
        if not self._scheduler.waits_for_more():
            self._could_begin_s = inf
            return now
        self._could_begin_s = min(self._could_begin_s, now)
        quiet_s = self.composer.quiet_s
        if not quiet_s:
            return now
        end_s = self._could_begin_s + self.composer.max_wait_s
        last_s = self._inbox.last_of_burst(self._last_arrival_s, quiet_s, end_s)
        return max(min(last_s + quiet_s, end_s), now)

    def begins(self, step: Step, now: float, ends: Sequence[float]) -> None:
        """Take note of a step that begins now, and when its passes end."""
        self._could_begin_s = inf
        for batch, end in zip(step.passes, ends, strict=True):
            if batch.requests and not batch.num_prompts:
                self.composer.ran(end - now)
            now = end

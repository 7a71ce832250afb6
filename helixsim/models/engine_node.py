"""A node whose worker runs step after step: an engine, with any node scheduler.

The worker looks for messages only between steps. Its scheduler composes the next step from what
has arrived; the passes of a step leave the node one after another. With nothing to run the worker
polls, and a message waits until the current round of polling has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, inf
from typing import Protocol

from helixsim.control.node_schedulers import NodeScheduler
from helixsim.models.event_loop import ExactEnvironment
from helixsim.models.links import MUTE, DeliveryQueue, Transfer, interleaved
from helixsim.models.node import NodeState, StepNode, enter_one_by_one
from helixsim.models.step_start import StepStart
from helixsim.physics.performance_model import StepTimer
from helixsim.placement.topology import PlacedNode
from helixsim.requests import Request
from helixsim.steps import Step


class Reports(Protocol):
    """Takes what a node reports to the coordinator."""

    def report_step(self, step: Step) -> None:
        """A step was composed for which requests were preempted, or which found some to fail."""
        ...


class EngineNode(StepNode):
    """A worker and its GPU; see :class:`.node.SimulatedNode`.

    Parameters
    ----------
    timer
        Says how long steps take, and a round of polling.
    reports
        Takes what the coordinator has to know of a step.
    """

    def __init__(
        self,
        environment: ExactEnvironment,
        node: PlacedNode,
        scheduler: NodeScheduler,
        timer: StepTimer,
        inbox: DeliveryQueue,
        reports: Reports,
    ) -> None:
        super().__init__(environment, node, scheduler, inbox)
        self._time_step = timer.time_step
        self._round_s = timer.poll_s
        self._reports = reports
        self._idle_since = 0.0
        self._step: Step | None = None
        self._pass_ends: list[tuple[float, int]] = []
        self._start = StepStart.of(scheduler, inbox)
        inbox.announce = self._wake_for

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more; the step that runs takes its time still."""
        kv = self.scheduler.kv
        num_free = 0 if kv is None else kv.num_free
        super().drop_unless(is_wanted)
        if kv is not None and kv.num_free > num_free:
            self._look_again()

    def fail(self, now: float) -> None:
        """Stop, forget all requests, and take nothing in."""
        super().fail(now)
        self._step, self._pass_ends = None, []

    # -- what happens ------------------------------------------------------------------------

    def _wake_for(self, transfer: Transfer) -> None:
        """Idle, learn of a transfer that arrives before any known so far."""
        arrival = transfer.first_arrival_s
        self._inbox.announce_before_s = arrival
        if not self._round_s:
            self._wake_at(arrival)
            return
        rounds = ceil((arrival - self._idle_since) / self._round_s)
        at = self._idle_since + max(rounds, 0) * self._round_s
        self._wake_at(min(at, self._wakes_at))  # it looks again when a wait ends, too

    def _wake(self) -> None:
        """A pass is through, or an idle worker ends a round of polling."""
        now = self._environment._now
        if now != self._wakes_at:
            return  # an earlier event made this one superfluous
        step, number = self._step, -1
        if self._pass_ends:
            assert step is not None
            _, number = self._pass_ends.pop(0)
            if step.is_last or self._pass_ends:
                self._finish_pass(step, number, now)
            if self._pass_ends:
                self._wake_at(self._pass_ends[0][0])
                return
        if self._before_looking is not None:
            self._before_looking(now)
        self._state = NodeState.BUSY
        self._inbox.announce_before_s = MUTE
        if self._inbox.transfers:
            self._take_in(now)
        if number >= 0 and step is not None and not step.is_last:
            # Requests that wait at a layer stand before the requests that a pass brings there.
            self._finish_pass(step, number, now)
        self._begin_step(now)

    def _take_in(self, now: float) -> None:
        """Hand the scheduler the requests that have arrived by now."""
        transfers = self._inbox.take(now)
        if self._start is not None:
            self._start.took(transfers)
            if len(transfers) > 1 and interleaved(transfers):  # chunks stay in order
                enter_one_by_one(self.scheduler, transfers)
                return
        for transfer in transfers:
            self.scheduler.enter(transfer.entry_layer, transfer)

    def _finish_pass(self, step: Step, number: int, now: float) -> None:
        """Send on the requests of a pass that are through the node."""
        batch = self.scheduler.finish_pass(step, number)
        if batch is not None:
            self._egress.depart(batch, now)

    def _begin_step(self, now: float) -> None:
        """Run what the scheduler composes, or idle."""
        start = self._start
        if start is not None and (at := start.begins_s(now)) > now:
            self._step = None
            self._idle_since = now
            self._wait_until(at, now)
            return
        step = self.scheduler.schedule()
        if step is not None and (step.preempted or step.failed):
            self._reports.report_step(step)
        if step is None or not step.num_requests:
            self._idle(now)
            return
        self._step = step
        ends, _ = self._time_step(step, now)
        end = ends[-1]
        self._pass_ends = [(ends[number], number) for number in step.passes_that_end(ends)]
        for batch in step.passes:
            if batch.requests:
                self.num_batches += 1
                self.num_tokens += batch.num_tokens if step.is_last else 0
        if start is not None:
            self._awaits_more = False
            start.begins(step, now, ends)
        self._busy_s += end - now
        self._busy_until = end
        self._wake_at(self._pass_ends[0][0])

    def _idle(self, now: float) -> None:
        self._state = NodeState.IDLE
        self._idle_since = now
        self._wakes_at = self._inbox.announce_before_s = inf
        transfer = self._inbox.next_arrival()
        if transfer is not None:
            self._wake_for(transfer)
        if self._when_idle is not None:
            self._when_idle()

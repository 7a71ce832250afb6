"""A node under the paper's physics: one event for each batch and segment of layers.

A batch that starts a segment cannot change before its end, so each segment is one event, however
many layers it has. An idle node is woken by the first arrival.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from helixsim.control.node_schedulers.paper import PaperScheduler
from helixsim.models.event_loop import ExactEnvironment
from helixsim.models.links import MUTE, DeliveryQueue, Transfer, interleaved
from helixsim.models.node import NodeState, SimulatedNode, enter_merged
from helixsim.models.step_start import StepStart
from helixsim.physics.performance_model import StepTimer
from helixsim.placement.topology import PlacedNode
from helixsim.requests import Request


class PaperNode(SimulatedNode):
    """Runs the steps of the paper's scheduler; see :class:`.node.SimulatedNode`.

    Parameters
    ----------
    timer
        Says how long steps take.
    """

    scheduler: PaperScheduler

    def __init__(
        self,
        environment: ExactEnvironment,
        node: PlacedNode,
        scheduler: PaperScheduler,
        timer: StepTimer,
        inbox: DeliveryQueue,
    ) -> None:
        super().__init__(environment, node, scheduler, inbox)
        self._time_step = timer.time_step
        self._start = StepStart.of(scheduler, inbox)
        inbox.announce = self._wake_for

    @property
    def queue_length(self) -> int:
        """Requests that have arrived by now and wait at its first layer."""
        if self._inbox.transfers:
            self._take_in(self._environment._now)
        return self.scheduler.queue_length

    def busy_s(self, now: float) -> float:
        """How long it has computed since the start of the run."""
        ahead = self._wakes_at - now if self._state is NodeState.BUSY else 0.0
        return self._busy_s - max(ahead, 0.0)

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more; the step that runs takes its time still."""
        super().drop_unless(is_wanted)
        self._look_again()

    def release(self, request: Request) -> None:
        """Take back what a request held that has ended."""
        super().release(request)
        self._look_again()

    def _look_again(self) -> None:
        """Idle, decide anew when to begin: with fewer requests here, a step is full earlier."""
        if self._start is None or self._state is not NodeState.IDLE:
            return
        if self.scheduler.num_waiting:
            now = self._environment._now
            self._wakes_at = now
            self._event.schedule(now, now)
        elif (transfer := self._inbox.next_arrival()) is not None:
            self._wake_for(transfer)

    # -- what happens ------------------------------------------------------------------------

    def _wake_for(self, transfer: Transfer) -> None:
        """Idle, learn of a transfer that arrives before any known so far."""
        sent = transfer.sent_s[0]
        at = sent + transfer.latency_s
        start = self._start
        # Behind the coordinator it does not know all that is in flight.
        if start is not None and self._before_looking is None and not self.scheduler.num_waiting:
            looks_s = start.looks_s(at)
            if looks_s > at:
                self._wakes_at = self._inbox.announce_before_s = looks_s
                self._event.schedule(looks_s, self._environment._now)
                return
        self._wakes_at = self._inbox.announce_before_s = at
        self._event.schedule_numbered(at, sent, transfer.number)

    def _wake(self) -> None:
        """A batch is through, or requests have come to an idle node."""
        now = self._environment._now
        if now != self._wakes_at:
            return  # an earlier arrival made this event superfluous
        if self._before_looking is not None:
            self._before_looking(now)
        if self._inbox.transfers:
            self._take_in(now)
        scheduler = self.scheduler
        step = scheduler.running
        if step is not None:
            batch = scheduler.finish_pass(step, 0)
            if batch is not None:
                self._egress.depart(batch, now)
        start = self._start
        if start is not None and (at := start.begins_s(now)) > now:
            self._wait_until(at, now)
            return
        step = scheduler.schedule()
        if step is None:
            self._idle(now)
            return
        batch = step.passes[0]
        (end,), last_start = self._time_step(step, now)
        if step.is_last:
            self.num_tokens += batch.prompt_tokens + len(batch.requests) - batch.num_prompts
        if start is not None:
            self._awaits_more = False
            start.begins(step, now, (end,))
        self._busy_s += end - now
        self.num_batches += 1
        self._state = NodeState.BUSY
        self._wakes_at = end
        self._inbox.announce_before_s = MUTE
        self._event.schedule(end, last_start)

    def _take_in(self, now: float) -> None:
        """Hand the scheduler the requests that have arrived by now."""
        transfers = self._inbox.take(now)
        if self._start is not None:
            self._start.took(transfers)
        if len(transfers) > 1 and interleaved(transfers):
            enter_merged(self.scheduler, transfers)
            return
        for transfer in transfers:
            self.scheduler.enter(transfer.entry_layer, transfer)

    def _idle(self, now: float) -> None:
        self._state = NodeState.IDLE
        self._wakes_at = self._inbox.announce_before_s = inf
        transfer = self._inbox.next_arrival()
        if transfer is not None:
            self._wake_for(transfer)
        if self._when_idle is not None:
            self._when_idle()

"""A node of an engine of today: decodes go on in the next step, without the coordinator.

On a node that holds all layers a request stays until its answer is complete; its tokens stream to
the coordinator beside. On a longer route the last node sends the token to the first node and to
the coordinator at once.

Steps that repeat, decodes only and nothing else due in the model, are not simulated one by one:
the times of their ends are summed as they would be, and the scheduler accounts for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol, cast

from helixsim.control.node_schedulers import NodeScheduler
from helixsim.models.engine_node import Reports
from helixsim.models.event_loop import ExactEnvironment
from helixsim.models.links import MUTE, DeliveryQueue, Transfer
from helixsim.models.node import NodeState, StepNode
from helixsim.models.token_stream import ReturnPaths, TokenStream
from helixsim.physics.performance_model import StepTimer
from helixsim.placement.topology import PlacedNode
from helixsim.requests import Request
from helixsim.steps import Step


class RepeatingScheduler(NodeScheduler, Protocol):
    """A node scheduler that knows for how long its steps stay the same."""

    def num_repeats(self, step: Step) -> int:
        """How many times a step that has just been composed would be composed again as it is."""
        ...

    def repeat(self, step: Step, num_steps: int) -> None:
        """Account for as many steps that are through; the next one like them runs."""
        ...


class RepeatingTimer(StepTimer, Protocol):
    """A step timer that times steps of decodes by their numbers, to the same last bit."""

    def decodes_end(self, start: float, num_decodes: int, context_sum: int, longest: int) -> float:
        """When a step that starts then is through; each context has its new token."""
        ...


class LoopingNode(StepNode):
    """A worker and its GPU; see :class:`.node.SimulatedNode`.

    Parameters
    ----------
    timer
        Says how long steps take.
    reports
        Takes what the coordinator has to know of a step.
    stream, ways_back
        Where tokens go, if the node holds the last layer.
    """

    repeats = True
    """Whether steps that repeat are summed; the results are the same."""

    def __init__(
        self,
        environment: ExactEnvironment,
        node: PlacedNode,
        scheduler: NodeScheduler,
        timer: StepTimer,
        inbox: DeliveryQueue,
        reports: Reports,
        stream: TokenStream | None,
        ways_back: ReturnPaths | None,
    ) -> None:
        super().__init__(environment, node, scheduler, inbox)
        self._timer = timer
        self._reports = reports
        self._stream = stream
        self._ways_back = ways_back
        self._is_whole = stream is not None and node.start_layer == 0
        self._can_repeat = (
            self._is_whole and hasattr(scheduler, "num_repeats") and hasattr(timer, "decodes_end")
        )
        self._step: Step | None = None
        inbox.announce = self._wake_for

    # -- requests that leave otherwise ---------------------------------------------------------

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more; the step that runs takes its time still."""
        super().drop_unless(is_wanted)
        self._look_again()

    def fail(self, now: float) -> None:
        """Stop, forget all requests, and take nothing in."""
        super().fail(now)
        self._step = None

    # -- what happens ------------------------------------------------------------------------

    def _wake_for(self, transfer: Transfer) -> None:
        """Idle, learn of a transfer that arrives before any known so far."""
        self._inbox.announce_before_s = transfer.first_arrival_s
        self._wake_at(transfer.first_arrival_s)

    def _wake(self) -> None:
        """A step is through, or something has arrived at an idle node."""
        now = self._environment._now
        if now != self._wakes_at:
            return  # an earlier event made this one superfluous
        if self._step is not None:
            step, self._step = self._step, None
            self._finish(step, now)
        self._state = NodeState.BUSY
        self._inbox.announce_before_s = MUTE
        for transfer in self._inbox.take(now) if self._inbox.transfers else ():
            self.scheduler.enter(transfer.entry_layer, transfer)
        self._begin_step(now)

    def _finish(self, step: Step, now: float) -> None:
        """Send on the requests, or their tokens, that are through."""
        batch = self.scheduler.finish_pass(step, 0)
        if batch is None:
            return
        if self._stream is None:
            self._egress.depart(batch, now)
            return
        own: list[Request] = []
        others = batch.requests
        if self._is_whole:
            index = self.index
            own = [r for r in others if r.route is not None and r.route.stages[0].node == index]
            if len(own) == len(others):
                others = []
            else:
                inside = set(own)
                others = [request for request in others if request not in inside]
        tokens, is_notable = own, False
        for request in own:  # counted on to their next pass already
            number = request.num_generated_tokens
            if number == 1 or number > request.num_decodes:
                is_notable = True
                break
        if others:
            tokens, some_notable = self._send_back(others, now)
            tokens, is_notable = [*own, *tokens], is_notable or some_notable
        if tokens:
            self._stream.send(tokens, now, is_notable=is_notable)

    def _send_back(self, requests: list[Request], now: float) -> tuple[list[Request], bool]:
        """Send requests back that began elsewhere.

        Returns the requests that have a token, and whether it is a first or a last one.
        """
        goes_on: list[Request] = []
        yielding: list[Request] = []
        is_notable = False
        for request in requests:
            yields = not request.is_prefill or request.yields_token
            number = request.num_generated_tokens
            if yields:
                yielding.append(request)
                is_notable = is_notable or not number or number == request.num_decodes
            if not yields or number < request.num_decodes:
                goes_on.append(request)
        if goes_on:
            assert self._ways_back is not None
            self._ways_back.send(goes_on, now)
        return yielding, is_notable

    def _begin_step(self, now: float) -> None:
        """Run what the scheduler composes, or idle."""
        step = self.scheduler.schedule()
        if step is not None and (step.preempted or step.failed):
            self._reports.report_step(step)
        if step is None or not (step.passes[0].requests or step.num_requests):
            self._idle(now)
            return
        ends, _ = self._timer.time_step(step, now)
        end = ends[-1]
        if self._can_repeat and self.repeats:
            now, end = self._sum_repeats(step, now, end)
        self._step = step
        self._count(step, now, end)
        self._wakes_at = end
        self._event.schedule(end, self._environment._now)

    def _count(self, step: Step, now: float, end: float) -> None:
        self.num_batches += 1
        self.num_tokens += step.passes[0].num_tokens
        self._busy_s += end - now
        self._busy_until = end

    def _sum_repeats(self, step: Step, start: float, end: float) -> tuple[float, float]:
        """Let steps pass that nothing else in the model comes between.

        Returns when the step that runs then begins and ends: the first one that something else
        may come before the end of, or that changes something.
        """
        horizon = self._environment.next_s
        transfer = self._inbox.next_arrival()
        if transfer is not None:
            horizon = min(horizon, transfer.first_arrival_s)
        if end >= horizon:
            return start, end
        scheduler = cast("RepeatingScheduler", self.scheduler)
        most = scheduler.num_repeats(step)
        if not most:
            return start, end
        assert self._stream is not None
        timer = cast("RepeatingTimer", self._timer)
        requests = step.passes[0].requests
        num = len(requests)
        contexts = [request.num_computed_tokens + 1 for request in requests]
        context_sum, longest = sum(contexts), max(contexts)
        done = 0
        while done < most and end < horizon:
            self._count(step, start, end)
            self._stream.send(requests, end, is_notable=False)
            done += 1
            start = end
            end = timer.decodes_end(start, num, context_sum + done * num, longest + done)
        if done:
            scheduler.repeat(step, done)
        return start, end

    def _idle(self, now: float) -> None:
        self._state = NodeState.IDLE
        self._wakes_at = self._inbox.announce_before_s = inf
        transfer = self._inbox.next_arrival()
        if transfer is not None:
            self._wake_for(transfer)

"""The node executor of a worker: carries out the steps that its node scheduler composes.

It has no sockets and no clock: the caller passes the time in and sends what the executor hands to
its outbox. The :class:`~helixsim.control.node_schedulers.NodeScheduler` is that of the simulator.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import ceil
from typing import Protocol, cast

from helixreal.engines.engine import Row, Scores
from helixreal.engines.failures import EngineLostError, reason_of
from helixreal.worker.runner import Runner
from helixreal.worker.sequences import TO_COORDINATOR, ArrivingPass, SequenceState
from helixreal.worker.step_run import Outcome, PassRows
from helixsim.control.node_schedulers import NodeScheduler
from helixsim.control.node_schedulers.burst_wait import (
    BurstWait,
    ComposingScheduler,
    last_of_burst,
)
from helixsim.control.prefix_cache import PrefixCache
from helixsim.requests import Request
from helixsim.steps import Batch, Step

_DROPPED_REMEMBERED = 10_000
"""Keys of dropped requests that an executor remembers; passes in flight are far fewer."""


class Outbox(Protocol):
    """Sends what an executor hands over."""

    def send_passes(self, target: int, sequences: list[SequenceState], now: float) -> None:
        """Send passes to the next node, or :data:`TO_COORDINATOR`."""
        ...

    def send_tokens(
        self, keys: list[int], tokens: list[int], now: float, scores: dict[int, Scores]
    ) -> None:
        """Send tokens of answers to the coordinator, where decodes loop; `scores` by key."""
        ...

    def send_back(self, first: int, keys: list[int], tokens: list[int], now: float) -> None:
        """Send tokens, -1 for none, to the first node of their routes, where decodes loop."""
        ...

    def out_of_blocks(self, keys: list[int]) -> None:
        """Report requests that must be restarted, mostly because KV blocks ran out."""
        ...

    def failed(self, keys: list[int], reason: str) -> None:
        """Report requests that cannot continue."""
        ...


@dataclass(slots=True)
class Gauges:
    """Counters of an executor; see :class:`helixsim.metrics.gauges.NodeGauges`."""

    busy_s: float = 0.0
    num_tokens: int = 0
    num_batches: int = 0
    num_running: int = 0
    num_waiting: int = 0


class NodeExecutor:
    """Takes passes, runs the scheduler's steps on the engine, and sends passes on.

    Parameters
    ----------
    scheduler
        Composes the node's steps.
    runner
        Runs steps on the engine.
    outbox
        Sends passes and reports.
    time_scale
        Seconds of the run per second by the clock; a runner's slack is by the clock.

    Attributes
    ----------
    scheduler
        The node scheduler.
    sequences
        The requests on this node, by key.
    gauges
        Counters for heartbeats.
    lag_s
        The longest delay between a due time and its processing, in seconds of the run.
    """

    def __init__(
        self, scheduler: NodeScheduler, runner: Runner, outbox: Outbox, time_scale: float = 1.0
    ) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._outbox = outbox
        self._slack_s = runner.slack_s * time_scale
        self._poll_s = runner.poll_s
        self._arrivals: list[tuple[float, int, SequenceState, ArrivingPass | int, int]] = []
        self._numbers = count()
        self._message = 0
        self._wait: BurstWait | None = None
        self._wait_ends_s: float | None = None
        self._decode_passes: set[int] = set()
        if getattr(scheduler, "composer", None) is not None:
            self._wait = BurstWait(cast("ComposingScheduler", scheduler), self._last_of_burst)
        self._step: Step | None = None
        self._passes: list[tuple[int, PassRows]] = []
        self._began_s = 0.0
        self._dropped: dict[int, None] = {}
        self._gone: set[SequenceState] = set()
        self._must_schedule = False
        self.sequences: dict[int, SequenceState] = {}
        self.gauges = Gauges()
        self.lag_s = 0.0

    # -- arrivals and drops --------------------------------------------------------------------

    def next_message(self) -> None:
        """Take note that the passes that are added now come in a message of their own."""
        self._message += 1

    def add_arrival(
        self, sequence: SequenceState, arriving: ArrivingPass | int, due_s: float
    ) -> None:
        """Add a pass, or a token that has come back, that arrives at time `due_s`."""
        heappush(self._arrivals, (due_s, next(self._numbers), sequence, arriving, self._message))
        if self._wait_ends_s is not None:
            self._wait_ends_s = min(self._wait_ends_s, self._noticed_at(due_s))

    def _last_of_burst(self, since_s: float, gap_s: float, until_s: float) -> float:
        """See :func:`helixsim.control.node_schedulers.burst_wait.last_of_burst`."""
        return last_of_burst((each[0] for each in self._arrivals), since_s, gap_s, until_s)

    def drop(self, keys: Sequence[int]) -> None:
        """Drop requests. Their passes in the running step complete, but are not sent on.

        While a step runs, the engine reads block tables: blocks are released when its pass ends.
        """
        self._remember_dropped(keys)
        self._gone.update([self.sequences.pop(key) for key in keys if key in self.sequences])
        if self._gone and self._step is None:
            self._must_schedule = self._take_out_gone()

    def _remember_dropped(self, keys: Sequence[int]) -> None:
        for key in keys:
            self._dropped[key] = None
        while len(self._dropped) > _DROPPED_REMEMBERED:
            del self._dropped[next(iter(self._dropped))]

    def _take_out_gone(self) -> bool:
        """Take dropped requests out of the scheduler; whether others may run now."""
        gone, self._gone = self._gone, set()
        kv = self.scheduler.kv
        num_free = 0 if kv is None else kv.num_free
        self.scheduler.drop_unless(lambda request: request.origin not in gone)
        # Waiting requests may fit into the freed blocks.
        return kv is not None and kv.num_free > num_free and self.scheduler.num_waiting > 0

    def was_dropped(self, key: int) -> bool:
        """Whether a request was dropped: a pass of it that still arrives would hold its blocks."""
        return key in self._dropped

    # -- time --------------------------------------------------------------------------------

    def next_event_s(self) -> float | None:
        """Time of the next known event; None if there is none."""
        if self._step is not None:
            return self._runner.end_s
        if self._must_schedule:
            return self._began_s
        if self._wait_ends_s is not None:
            return self._wait_ends_s
        return self._noticed_at(self._arrivals[0][0]) if self._arrivals else None

    @property
    def is_running(self) -> bool:
        """Whether a step runs on the engine."""
        return self._step is not None

    def _noticed_at(self, arrival_s: float) -> float:
        """When an idle node notices an arrival: at the end of the round of polling."""
        round_s = self._poll_s
        if not round_s:
            return arrival_s
        rounds = ceil((arrival_s - self._began_s) / round_s)
        return self._began_s + max(rounds, 0) * round_s

    def advance(self, now: float) -> None:
        """Process all events that are due.

        Raises
        ------
        EngineLostError
            If the engine has failed for good.
        """
        if (reason := self._runner.lost) is not None:
            raise EngineLostError(f"the engine has failed: {reason}")
        while True:
            due = self.next_event_s()
            if due is None or due > now:
                break
            must_schedule, self._must_schedule = self._must_schedule, False
            at = now if must_schedule else max(due, now - self._slack_s)
            if not must_schedule:
                self.lag_s = max(self.lag_s, now - due)
            if self._step is None:
                at = max(at, self._began_s)
            if self._passes and self._wait is not None:
                self._note_time(self._wait, due)
            if len(self._passes) <= 1:
                # Arrived requests queue before requests that a pass brings to their entry layer.
                self._admit_arrivals(at)
            if self._step is not None:
                self._end_pass(at)
            if self._step is None:
                self._begin_step(at)
        self.gauges.num_waiting = self.scheduler.num_waiting + len(self._arrivals)

    def _admit_arrivals(self, now: float) -> None:
        """Pass arrived requests to the scheduler, in order of arrival."""
        layer, group = 0, list[Request]()
        bursts: dict[int, list[float]] = {}
        while self._arrivals and self._arrivals[0][0] <= now:
            due_s, _, sequence, arriving, message = heappop(self._arrivals)
            if self.sequences.get(sequence.key) is not sequence.origin:
                continue  # dropped in flight
            if self._wait is not None:
                bursts.setdefault(message, []).append(due_s)
            sequence.begin_pass(arriving)
            if group and sequence.entry_layer != layer:
                self.scheduler.enter(layer, Batch.of(group))
                group = []
            layer = sequence.entry_layer
            group.append(sequence)
        if group:
            self.scheduler.enter(layer, Batch.of(group))
        if self._wait is not None:
            for times in bursts.values():
                self._wait.arrived(len(times), times[-1] - times[0], times[-1])

    def _note_time(self, wait: BurstWait, end_s: float) -> None:
        """Tell the composer how long the pass has taken that ends now, if it was of decodes."""
        if self._passes[0][0] in self._decode_passes:
            wait.composer.ran(max(end_s - self._began_s, 0.0))

    def _begin_step(self, now: float) -> None:
        """Start the next step of the scheduler, if it composes one and need not wait for more."""
        self._began_s = now
        self._wait_ends_s = None
        wait = self._wait
        if wait is not None and (at := wait.begins_s(now)) > now:
            self._wait_ends_s = at
            return
        step = self.scheduler.schedule()
        if step is None:
            return
        self._report(step)
        if not step.num_requests:
            return
        if wait is not None:
            wait.has_begun()
            self._decode_passes = {
                number
                for number, batch in enumerate(step.passes)
                if batch.requests and not batch.num_prompts
            }
        passes = [_rows(step, batch) for batch in step.passes]
        self._step = step
        numbers = self._runner.start(now, step, passes)
        self._passes = [(number, passes[number]) for number in numbers]
        gauges = self.gauges
        gauges.num_batches += sum(bool(batch.requests) for batch in step.passes)
        gauges.num_running = step.num_requests
        if step.is_last:
            gauges.num_tokens += sum(batch.num_tokens for batch in step.passes)

    def _report(self, step: Step) -> None:
        """Report and remove the requests that the scheduler preempted or failed."""
        if step.preempted:
            self._outbox.out_of_blocks(self._remove(step.preempted))
        for request, reason in step.failed:
            self._outbox.failed(self._remove([request]), reason)

    def _remove(self, requests: Sequence[Request]) -> list[int]:
        """Forget requests; passes of them that still arrive are ignored."""
        keys = {request.key: None for request in requests if isinstance(request, SequenceState)}
        for key in keys:
            self.sequences.pop(key, None)
        self._remember_dropped(list(keys))
        return list(keys)

    def _end_pass(self, now: float) -> None:
        """Finish the current pass, and send on the requests that leave the node."""
        step = self._step
        assert step is not None
        if self._gone:
            self._take_out_gone()
        number, rows = self._passes.pop(0)
        outcome = self._runner.finish()
        self.gauges.busy_s += max(now - self._began_s, 0.0)
        self._began_s = now
        if outcome.fatal is not None:
            raise EngineLostError(f"the engine has failed: {reason_of(outcome.fatal)}")
        if not self._passes:
            self._step = None
            self.gauges.num_running = 0
        if outcome.failures or outcome.stale:
            self._take_out_failed(outcome)
        for sequence, row in rows.rows.items():
            assert isinstance(sequence, SequenceState)
            sequence.take_result(row)
        batch = self.scheduler.finish_pass(step, number)
        if batch is not None:
            self._send_on(batch, now)

    def _take_out_failed(self, outcome: Outcome) -> None:
        """Take the requests out that the engine could not run; the others go on."""
        out = {*outcome.failures, *outcome.stale}
        self.scheduler.drop_unless(lambda request: request.origin not in out)
        if isinstance(self.scheduler.kv, PrefixCache):
            self.scheduler.kv.distrust()
        by_reason: dict[str, list[Request]] = {}
        for request in self._here(outcome.failures):
            by_reason.setdefault(outcome.failures[request], []).append(request)
        for reason, requests in by_reason.items():
            self._outbox.failed(self._remove(requests), reason)
        if stale := self._here(outcome.stale):
            self._outbox.out_of_blocks(self._remove(stale))

    def _here(self, requests: Iterable[Hashable]) -> list[Request]:
        """The requests that have not been dropped, by key."""
        here = [
            request
            for request in requests
            if isinstance(request, SequenceState) and self.sequences.get(request.key) is request
        ]
        return [*sorted(here, key=lambda request: request.key)]

    def _send_on(self, batch: Batch, now: float) -> None:
        groups: dict[int, list[SequenceState]] = {}
        for sequence in batch.requests:
            assert isinstance(sequence, SequenceState)
            following = sequence.next_stages
            if not following:
                sequence.note_token()
            target = following[0].node if following else TO_COORDINATOR
            groups.setdefault(target, []).append(sequence)
        for target, group in groups.items():
            self._outbox.send_passes(target, group, now)


def _rows(step: Step, batch: Batch) -> PassRows:
    """The rows of a pass of a step."""
    rows: dict[Request, Row] = {
        request: request.row() for request in batch.requests if isinstance(request, SequenceState)
    }
    return PassRows(
        rows,
        [
            (start, end, [rows[request] for request in inside.requests])
            for start, end, inside in step.segments(batch)
        ],
    )

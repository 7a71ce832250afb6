"""What a worker does with the passes that reach its node: no sockets here, and no clock.

It is told the time, and hands out what is to be sent. Queues, batches and their limits are
those of the simulated node (:class:`helixsim.control.batching.NodeQueues`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from helixreal.engines.engine import GREEDY, Payload, Row, Sampling
from helixreal.net.messages import Place
from helixreal.worker.runner import Runner, Segment
from helixsim.control.batching import Batch, NodeQueues
from helixsim.profiles.machine import Capacity
from helixsim.requests import Request

_ANY_CONTEXT = 2**62
HOME = -1
"""Where passes go from the last layer, in place of a node's number."""


@dataclass(slots=True)
class Guest:
    """A request that has caches here.

    Attributes
    ----------
    entry_layer, end_layer
        What it runs here.
    onward
        The stages behind this one.
    sampling
        How its tokens are chosen.
    """

    entry_layer: int
    end_layer: int
    onward: Sequence[Place]
    sampling: Sampling = GREEDY


class Visit(Request):
    """One pass of a request at a node, as batching sees it."""

    __slots__ = ("guest", "key", "payload", "sender", "sent_on_s", "wants_token")

    def __init__(
        self,
        key: int,
        position: int,
        num_tokens: int,
        guest: Guest,
        payload: Payload,
        *,
        is_prefill: bool,
        wants_token: bool,
    ) -> None:
        super().__init__(key, 0.0, num_tokens, 1, last_iteration=0)
        self.is_prefill = is_prefill
        self.step_tokens = num_tokens
        self.context_tokens = position
        self.key = key
        self.guest = guest
        self.payload = payload
        self.wants_token = wants_token
        self.sender = HOME
        self.sent_on_s = 0.0

    def row(self) -> Row:
        """As the engine takes it."""
        return Row(
            self.key,
            self.context_tokens,
            self.step_tokens,
            self.payload,
            self.wants_token,
            self.guest.sampling,
        )


class Outbox:
    """Where a station puts what is to be sent."""

    def depart(self, target: int, visits: list[Visit], now: float) -> None:
        """Send passes to the next node, or :data:`HOME`."""
        raise NotImplementedError

    def no_room(self, keys: list[int]) -> None:
        """Report that there are no KV blocks for these."""
        raise NotImplementedError

    def trouble(self, keys: list[int], reason: str) -> None:
        """Report that these cannot go on."""
        raise NotImplementedError


@dataclass(slots=True)
class Gauges:
    """What a station has done so far; see :class:`helixsim.metrics.gauges.NodeGauges`."""

    busy_s: float = 0.0
    num_tokens: int = 0
    num_batches: int = 0
    num_running: int = 0
    num_waiting: int = 0


class Station:
    """Queues passes, lets the engine run batches of them, and sends them on.

    Parameters
    ----------
    start_layer, end_layer, entry_layers, limits
        Of the node.
    runner
        Lets the engine work.
    time_scale
        Seconds of the run per second by the clock; a runner's slack is by the clock.

    Attributes
    ----------
    guests
        Requests that have caches here, by key.
    gauges
        What has been done.
    lag_s
        The longest that it noticed something late, in time of the run.
    """

    def __init__(
        self,
        start_layer: int,
        end_layer: int,
        entry_layers: Sequence[int],
        limits: Capacity,
        runner: Runner,
        outbox: Outbox,
        time_scale: float = 1.0,
    ) -> None:
        self._queues = NodeQueues(start_layer, end_layer, entry_layers, limits)
        self._last = len(self._queues.queues) - 1
        self._runner = runner
        self._outbox = outbox
        self._slack_s = runner.slack_s * time_scale
        self._coming: list[tuple[float, int, int, Visit]] = []
        self._numbers = count()
        self._batch: Batch | None = None
        self._segment = self._last
        self._began_s = 0.0
        self._received_tokens = 0
        self._leaving: list[int] = []
        self.guests: dict[int, Guest] = {}
        self.gauges = Gauges()
        self.lag_s = 0.0

    # -- who comes and goes ------------------------------------------------------------------

    def expect(self, visit: Visit, due_s: float) -> None:
        """Take a pass that arrives at that time."""
        layer = visit.guest.entry_layer
        heappush(self._coming, (due_s, next(self._numbers), layer, visit))

    def drop(self, keys: Sequence[int]) -> None:
        """Forget requests; what they have in a batch that runs is let through and not sent on."""
        for key in keys:
            if self.guests.pop(key, None) is not None:
                self._leaving.append(key)
        if self._batch is None:
            self._release()

    def _release(self) -> None:
        engine = self._runner.engine
        assert engine is not None
        for key in self._leaving:
            engine.release(key)
        self._leaving.clear()

    # -- time --------------------------------------------------------------------------------

    def next_event_s(self) -> float | None:
        """When something is to be done, as far as that is known."""
        if self._batch is not None:
            return self._runner.end_s
        return self._coming[0][0] if self._coming else None

    def advance(self, now: float) -> None:
        """Do everything that is due by now."""
        while True:
            due = self.next_event_s()
            if due is None or due > now:
                break
            self.lag_s = max(self.lag_s, now - due)
            at = max(due, now - self._slack_s)
            if self._batch is None:
                at = max(at, self._began_s)
            self._take_in(at)  # who waits at a layer stands before who comes to it with a batch
            if self._batch is not None:
                self._end_batch(at)
            self._start_next(at)
        self.gauges.num_waiting = len(self._queues) + len(self._coming)

    def _take_in(self, now: float) -> None:
        by_layer: dict[int, list[Request]] = {}
        while self._coming and self._coming[0][0] <= now:
            _, _, layer, visit = heappop(self._coming)
            if self.guests.get(visit.key) is not visit.guest:
                continue  # dropped on its way
            by_layer.setdefault(layer, []).append(visit)
            self._received_tokens += visit.step_tokens
        for layer, visits in by_layer.items():
            self._queues.enter(layer, Batch.of(visits))

    def _start_next(self, now: float) -> None:
        while (segment := self._queues.following(self._segment)) >= 0:
            self._segment = segment
            batch = self._with_room(self._queues.queues[segment].take(_ANY_CONTEXT))
            if batch is not None:
                self._start(batch, segment, now)
                return

    def _with_room(self, batch: Batch) -> Batch | None:
        """Those of a batch who are still here and have blocks for their pass."""
        engine = self._runner.engine
        assert engine is not None
        staying: list[Request] = []
        no_room: list[int] = []
        for visit in batch.requests:
            assert isinstance(visit, Visit)
            if self.guests.get(visit.key) is not visit.guest:
                continue
            if engine.reserve(visit.key, visit.context_tokens + visit.step_tokens):
                staying.append(visit)
            else:
                no_room.append(visit.key)
        if no_room:
            self.drop(no_room)
            self._outbox.no_room(no_room)
        if len(staying) == len(batch.requests):
            return batch
        return Batch.of(staying) if staying else None

    def _start(self, batch: Batch, segment: int, now: float) -> None:
        bounds = self._queues.bounds
        received = 0
        if segment == 0:
            received, self._received_tokens = self._received_tokens, 0
        rows = [visit.row() for visit in batch.requests if isinstance(visit, Visit)]
        self._batch = batch
        self._began_s = now
        self._runner.start(
            now, batch, rows, Segment(bounds[segment], bounds[segment + 1], received)
        )
        gauges = self.gauges
        gauges.num_batches += 1
        gauges.num_running = len(batch.requests)
        if segment == self._last:
            gauges.num_tokens += batch.num_tokens

    def _end_batch(self, now: float) -> None:
        batch, self._batch = self._batch, None
        assert batch is not None
        outcome = self._runner.finish()
        self.gauges.busy_s += max(now - self._began_s, 0.0)
        self.gauges.num_running = 0
        self._began_s = now
        self._release()
        visits = [visit for visit in batch.requests if isinstance(visit, Visit)]
        if outcome.failure is not None:
            keys = [visit.key for visit in visits]
            self.drop(keys)
            self._outbox.trouble(keys, f"{type(outcome.failure).__name__}: {outcome.failure}")
            return
        staying: list[Visit] = []
        for visit, payload in zip(visits, outcome.payloads, strict=True):
            if self.guests.get(visit.key) is visit.guest:
                visit.payload = payload
                staying.append(visit)
        if not staying:
            return
        if len(staying) < len(visits):
            batch = Batch.of(list[Request](staying))
        if self._queues.leave(self._segment, batch):
            self._send_on(staying, now)

    def _send_on(self, visits: list[Visit], now: float) -> None:
        groups: dict[int, list[Visit]] = {}
        for visit in visits:
            onward = visit.guest.onward
            groups.setdefault(onward[0].node if onward else HOME, []).append(visit)
        for target, group in groups.items():
            self._outbox.depart(target, group, now)

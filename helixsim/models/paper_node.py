"""A node that computes: batches run through its layers, one after another.

The layers of a node fall into segments, divided where requests may enter. A batch that starts a
segment cannot change before its end, so each segment is one event, however many layers it has.
The node visits, in turn, the next segment at which somebody waits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import inf

from helixsim.control.batching import Batch, NodeQueues
from helixsim.control.coordinator import ContextBound
from helixsim.models.egress import Port
from helixsim.models.event_loop import Alarm, ExactEnvironment
from helixsim.models.links import Inbox, Passenger, Train, interleaved, merge
from helixsim.physics import StepTimer
from helixsim.placement.topology import PlacedNode
from helixsim.requests import Request


class Gpu:
    """The compute of one node.

    Parameters
    ----------
    environment
        Where time passes.
    node
        Its layers and limits.
    entry_layers
        Layers at which requests may enter, beside its first.
    timer
        Says how long batches take.
    inbox
        Where requests arrive.
    contexts
        Knows the longest context there may be.

    Attributes
    ----------
    index
        Number of the node.
    num_batches, num_tokens
        What it has run: batches through a segment, and tokens through its last layer.
    """

    def __init__(
        self,
        environment: ExactEnvironment,
        node: PlacedNode,
        entry_layers: set[int],
        timer: StepTimer,
        inbox: Inbox,
        contexts: ContextBound,
    ) -> None:
        self._environment = environment
        self.index = node.index
        self._node = NodeQueues(node.start_layer, node.end_layer, entry_layers, node.capacity)
        self._queues = self._node.queues
        self._num_layers = [end - start for start, end in pairwise(self._node.bounds)]
        self._finish = timer.finish
        self._contexts = contexts
        self._inbox = inbox
        inbox.announce = self._wake_for
        self._alarm = Alarm(environment, self._wake)
        self._wakes_at = inf
        self._running: Batch | None = None
        self._segment = len(self._queues) - 1
        self._received_tokens = 0
        self._port: Port
        self._before_looking: Callable[[float], None] | None = None
        self._when_idle: Callable[[], None] | None = None
        self._has_other_sources = False
        self._busy_s = 0.0
        self.num_batches = 0
        self.num_tokens = 0

    def connect(
        self,
        port: Port,
        before_looking: Callable[[float], None] | None = None,
        when_idle: Callable[[], None] | None = None,
        *,
        num_sources: int,
    ) -> None:
        """Give it its way out.

        A node behind the coordinator lets that catch up before it looks at who has come, and
        tells it when it idles. `num_sources` says how many machines send to it.
        """
        self._port = port
        self._before_looking = before_looking
        self._when_idle = when_idle
        self._has_other_sources = num_sources > 1

    # -- gauges ------------------------------------------------------------------------------

    @property
    def is_unaware(self) -> bool:
        """Whether it idles and does not know when the coordinator sends it something."""
        return self._running is None and (self._wakes_at == inf or self._has_other_sources)

    @property
    def num_waiting(self) -> int:
        """Requests that have arrived and wait for a batch, taken in or not."""
        if self._wakes_at == -inf:
            return 0  # it is dead, and takes no notice of those who come
        now = self._environment._now
        return len(self._node) + sum(train.num_arrived(now) for train in self._inbox.trains)

    @property
    def num_running(self) -> int:
        """Requests in the batch that runs."""
        return 0 if self._running is None else len(self._running.requests)

    def busy_s(self, now: float) -> float:
        """How long it has computed since the start of the run."""
        computes = self._inbox.wakes_at == -inf
        ahead = self._wakes_at - now if computes else 0.0
        return self._busy_s - max(ahead, 0.0)

    def waiting_at_first_layer(self, now: float) -> int:
        """Requests that have arrived by now and wait at its first layer."""
        if self._inbox.trains:
            self._take_in(now)
        return len(self._queues[0])

    # -- faults ------------------------------------------------------------------------------

    def keep(self, wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more; the batch that runs takes its time still."""
        self._inbox.keep(wanted)
        self._node.keep(wanted)
        self._port.keep(wanted)
        if self._running is not None:
            kept = [request for request in self._running.requests if wanted(request)]
            self._running = Batch.of(kept) if kept else None

    def die(self, now: float) -> None:
        """Stop, forget everybody, and take no notice of those who come."""
        self._busy_s = self.busy_s(now)
        self._wakes_at = self._inbox.wakes_at = -inf
        self._running = None
        self._segment = len(self._queues) - 1
        self._forget()
        self._port.keep(lambda request: False)

    def revive(self, now: float) -> None:
        """Start again; those who have come by now are lost."""
        self._inbox.take(now)
        self._forget()
        self._idle()

    def _forget(self) -> None:
        self._node.keep(lambda request: False)
        self._received_tokens = 0

    # -- what happens ------------------------------------------------------------------------

    def _wake_for(self, train: Train) -> None:
        """Idle, learn of a train that arrives before any known so far."""
        sent = train.sent_s[0]
        at = sent + train.latency_s
        self._wakes_at = self._inbox.wakes_at = at
        self._alarm.set_for(at, sent, train.number)

    def _wake(self) -> None:
        """A batch is through, or somebody has come to an idle node."""
        now = self._environment._now
        if now != self._wakes_at:
            return  # an earlier arrival made this call superfluous
        if self._before_looking is not None:
            self._before_looking(now)
        if self._inbox.trains:
            self._take_in(now)
        batch, segment = self._running, self._segment
        if batch is not None and self._node.leave(segment, batch):
            self._port.depart(batch, now)
        segment = self._node.following(segment)
        if segment < 0:
            self._idle()
        else:
            self._start(segment, now)

    def _take_in(self, now: float) -> None:
        """Let everybody queue up who has arrived by now."""
        trains = self._inbox.take(now)
        if len(trains) > 1 and interleaved(trains):
            self._take_in_interleaved(trains)
            return
        for train in trains:
            self._received_tokens += train.prompt_tokens + len(train.requests) - train.num_prompts
            self._node.enter(train.entry_layer, train)

    def _take_in_interleaved(self, trains: list[Train]) -> None:
        entry = {train.number: train.entry_layer for train in trains}
        by_layer: dict[int, list[Passenger]] = {}
        for passenger in merge(trains):
            by_layer.setdefault(entry[passenger[3]], []).append(passenger)
        for layer, passengers in by_layer.items():
            batch = Batch.of([passenger[5] for passenger in passengers])
            self._received_tokens += batch.num_tokens
            self._node.enter(layer, batch)

    def _start(self, segment: int, now: float) -> None:
        """Run the next batch of a segment."""
        batch = self._queues[segment].take(self._contexts.longest)
        received = 0
        if segment == 0:
            received, self._received_tokens = self._received_tokens, 0
        if segment == len(self._queues) - 1:  # wherever they enter, here they all come through
            self.num_tokens += batch.prompt_tokens + len(batch.requests) - batch.num_prompts
        end, last_start = self._finish(now, batch, self._num_layers[segment], received)
        self._segment = segment
        self._running = batch
        self._busy_s += end - now
        self.num_batches += 1
        self._wakes_at = end
        self._inbox.wakes_at = -inf
        self._alarm.set(end, last_start)

    def _idle(self) -> None:
        self._running = None
        self._wakes_at = self._inbox.wakes_at = inf
        train = self._inbox.next_arrival()
        if train is not None:
            self._wake_for(train)
        if self._when_idle is not None:
            self._when_idle()

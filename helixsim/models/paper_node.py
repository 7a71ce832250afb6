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
from helixsim.models.egress import Egress
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.links import Delivery, DeliveryQueue, Transfer, interleaved, merge
from helixsim.physics import StepTimer
from helixsim.placement.topology import PlacedNode
from helixsim.requests import Request


class PaperNode:
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
        inbox: DeliveryQueue,
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
        self._event = ReusableEvent(environment, self._wake)
        self._wakes_at = inf
        self._running: Batch | None = None
        self._segment = len(self._queues) - 1
        self._received_tokens = 0
        self._port: Egress
        self._before_looking: Callable[[float], None] | None = None
        self._when_idle: Callable[[], None] | None = None
        self._has_other_sources = False
        self._busy_s = 0.0
        self.num_batches = 0
        self.num_tokens = 0

    def connect(
        self,
        port: Egress,
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
        return len(self._node) + sum(
            transfer.num_arrived(now) for transfer in self._inbox.transfers
        )

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
        if self._inbox.transfers:
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

    def _wake_for(self, transfer: Transfer) -> None:
        """Idle, learn of a train that arrives before any known so far."""
        sent = transfer.sent_s[0]
        at = sent + transfer.latency_s
        self._wakes_at = self._inbox.wakes_at = at
        self._event.set_for(at, sent, transfer.number)

    def _wake(self) -> None:
        """A batch is through, or somebody has come to an idle node."""
        now = self._environment._now
        if now != self._wakes_at:
            return  # an earlier arrival made this call superfluous
        if self._before_looking is not None:
            self._before_looking(now)
        if self._inbox.transfers:
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
        transfers = self._inbox.take(now)
        if len(transfers) > 1 and interleaved(transfers):
            self._take_in_interleaved(transfers)
            return
        for transfer in transfers:
            self._received_tokens += (
                transfer.prompt_tokens + len(transfer.requests) - transfer.num_prompts
            )
            self._node.enter(transfer.entry_layer, transfer)

    def _take_in_interleaved(self, transfers: list[Transfer]) -> None:
        entry = {transfer.number: transfer.entry_layer for transfer in transfers}
        by_layer: dict[int, list[Delivery]] = {}
        for delivery in merge(transfers):
            by_layer.setdefault(entry[delivery[3]], []).append(delivery)
        for layer, deliveries in by_layer.items():
            batch = Batch.of([delivery[5] for delivery in deliveries])
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
        self._event.set(end, last_start)

    def _idle(self) -> None:
        self._running = None
        self._wakes_at = self._inbox.wakes_at = inf
        transfer = self._inbox.next_arrival()
        if transfer is not None:
            self._wake_for(transfer)
        if self._when_idle is not None:
            self._when_idle()

"""What all simulated nodes have in common: a state, a scheduler, gauges."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from itertools import groupby
from math import inf

from helixsim.control.node_schedulers import NodeScheduler
from helixsim.models.egress import Egress
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.links import MUTE, DeliveryQueue, Transfer, merge
from helixsim.placement.topology import PlacedNode
from helixsim.requests import Request
from helixsim.steps import Batch


class NodeState(Enum):
    """What a simulated node does."""

    IDLE = "idle"
    """It has nothing to run."""
    BUSY = "busy"
    """A step runs."""
    DOWN = "down"
    """It has failed: it runs nothing and takes nothing in."""


def enter_merged(scheduler: NodeScheduler, transfers: list[Transfer]) -> None:
    """Hand a scheduler what has arrived over several links at a time, in order of arrival."""
    entry = {transfer.number: transfer.entry_layer for transfer in transfers}
    by_layer: dict[int, list[Request]] = {}
    for delivery in merge(transfers):
        by_layer.setdefault(entry[delivery[3]], []).append(delivery[5])
    for layer, requests in by_layer.items():
        scheduler.enter(layer, Batch.of(requests))


def enter_one_by_one(scheduler: NodeScheduler, transfers: list[Transfer]) -> None:
    """The same, for a scheduler with one queue for all layers, where each place in it counts."""
    entry = {transfer.number: transfer.entry_layer for transfer in transfers}
    for layer, group in groupby(merge(transfers), lambda delivery: entry[delivery[3]]):
        scheduler.enter(layer, Batch.of([delivery[5] for delivery in group]))


class SimulatedNode:
    """A node that carries out what its scheduler composes; subclasses let time pass.

    It is a :class:`helixsim.control.cluster_view.NodeView` and a
    :class:`helixsim.metrics.gauges.NodeGauges`.

    Parameters
    ----------
    environment
        Where time passes.
    node
        Its layers and limits.
    scheduler
        Composes its steps.
    inbox
        Where requests arrive.

    Attributes
    ----------
    index
        Number of the node.
    scheduler
        As given.
    num_batches, num_tokens
        What it has run: passes, and tokens through its last layer.
    """

    def __init__(
        self,
        environment: ExactEnvironment,
        node: PlacedNode,
        scheduler: NodeScheduler,
        inbox: DeliveryQueue,
    ) -> None:
        self._environment = environment
        self._placed = node
        self.index = node.index
        self.scheduler = scheduler
        self._inbox = inbox
        self._event = ReusableEvent(environment, self._wake)
        self._state = NodeState.IDLE
        self._wakes_at = inf
        self._egress: Egress
        self._before_looking: Callable[[float], None] | None = None
        self._when_idle: Callable[[], None] | None = None
        self._has_other_sources = False
        self._awaits_more = False
        self._busy_s = 0.0
        self._busy_until = 0.0
        self.num_batches = 0
        self.num_tokens = 0
        self.held_kv_tokens: Callable[[int], int] = lambda node: 0

    def connect(
        self,
        egress: Egress,
        before_looking: Callable[[float], None] | None = None,
        when_idle: Callable[[], None] | None = None,
        *,
        num_sources: int,
    ) -> None:
        """Give it its way out.

        A node behind the coordinator lets that catch up before it looks at what has arrived, and
        tells it when it idles. `num_sources` is the number of machines that send to it.
        """
        self._egress = egress
        self._before_looking = before_looking
        self._when_idle = when_idle
        self._has_other_sources = num_sources > 1

    def _wait_until(self, at: float, now: float) -> None:
        """Idle for a moment although requests are there; look again if more arrive earlier."""
        self._state = NodeState.IDLE
        self._awaits_more = True
        self._wakes_at = self._inbox.announce_before_s = at
        self._event.schedule(at, now)
        if self._when_idle is not None:
            self._when_idle()

    def _wake(self) -> None:
        raise AssertionError("subclasses say what happens")

    # -- gauges ------------------------------------------------------------------------------

    @property
    def is_unaware(self) -> bool:
        """Whether it idles and does not know when the coordinator sends it something."""
        return self._state is NodeState.IDLE and (
            self._wakes_at == inf or self._has_other_sources or self._awaits_more
        )

    @property
    def num_waiting(self) -> int:
        """Requests that have arrived and wait for a step, taken in or not."""
        if self._state is NodeState.DOWN:
            return 0
        now = self._environment._now
        arrived = sum(transfer.num_arrived(now) for transfer in self._inbox.transfers)
        return self.scheduler.num_waiting + arrived

    @property
    def num_running(self) -> int:
        """Requests in the step that runs."""
        step = self.scheduler.running
        return 0 if step is None else step.num_requests

    def busy_s(self, now: float) -> float:
        """How long it has worked since the start of the run."""
        return self._busy_s - max(self._busy_until - now, 0.0)

    @property
    def queue_length(self) -> int:
        """Requests that have arrived and that a new one would wait behind."""
        return self.num_waiting

    @property
    def waiting_tokens(self) -> int:
        """Tokens that have been taken in and wait for a step."""
        return self.scheduler.waiting_tokens

    @property
    def kv_used_token_layers(self) -> int | None:
        """What its scheduler's blocks hold, in tokens x layers; None where it keeps no account."""
        kv = self.scheduler.kv
        return None if kv is None else kv.used_token_layers(self._placed.num_layers)

    @property
    def free_kv_tokens(self) -> int:
        """Tokens for which all its layers still have room in the KV cache."""
        kv, num_layers = self.scheduler.kv, self._placed.num_layers
        if kv is not None:
            return kv.free_tokens(num_layers)
        room = self._placed.capacity.kv_token_layers - self.held_kv_tokens(self.index)
        return max(room // num_layers, 0)

    @property
    def step_s(self) -> float:
        """Mean time of a step so far, seconds; 0 before the first."""
        if not self.num_batches:
            return 0.0
        return self.busy_s(self._environment._now) / self.num_batches

    # -- requests that leave otherwise ---------------------------------------------------------

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more; the step that runs takes its time still."""
        self._inbox.drop_unless(is_wanted)
        self._egress.drop_unless(is_wanted)
        self.scheduler.drop_unless(is_wanted)

    def release(self, request: Request) -> None:
        """Free the KV blocks of a request that has ended."""
        self.scheduler.release(request)

    # -- faults ------------------------------------------------------------------------------

    def fail(self, now: float) -> None:
        """Stop, forget all requests, and take nothing in."""
        self._busy_s = self.busy_s(now)
        self._busy_until = now
        self._state = NodeState.DOWN
        self._wakes_at = inf
        self._inbox.announce_before_s = MUTE
        self.scheduler.reset()
        self._egress.drop_unless(lambda request: False)

    def recover(self, now: float) -> None:
        """Start again; requests that have arrived meanwhile are lost."""
        self._inbox.take(now)
        self.scheduler.reset()
        self._idle(now)

    def _idle(self, now: float) -> None:
        raise AssertionError("subclasses say what happens")


class StepNode(SimulatedNode):
    """A node that runs step after step and wakes at the end of each; subclasses say how."""

    def release(self, request: Request) -> None:
        """Take back what a request held that has ended: others may take it."""
        if self.scheduler.release(request):
            self._look_again()

    def _look_again(self) -> None:
        """Idle, begin a step for requests that had waited for room."""
        waits = self.scheduler.num_waiting or self.scheduler.queue_length
        if waits and self._state is NodeState.IDLE:
            self._wake_at(self._environment._now)

    def _wake_at(self, at: float) -> None:
        now = self._environment._now
        self._wakes_at = max(at, now)
        self._event.schedule(self._wakes_at, now)

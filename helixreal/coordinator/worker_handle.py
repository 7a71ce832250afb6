"""What the coordinator knows of each node's worker and of each link: state and gauges."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from helixreal.net import messages

if TYPE_CHECKING:
    from helixsim.placement.topology import PlacedLink, PlacedNode


class State(Enum):
    """State of a node's worker."""

    ABSENT = "absent"
    """No worker has registered yet."""
    LOADING = "loading"
    """The worker has its assignment and loads its layers."""
    READY = "ready"
    """The worker takes passes."""
    LOST = "lost"
    """The worker has been silent for too long, is stuck, or cannot load its engine."""


class WorkerHandle:
    """One node and its worker. Gauges are of the last heartbeat, summed over restarts.

    Attributes
    ----------
    placed
        The node in the topology.
    state, address, incarnation, engine
        State, address, identity and engine of its worker.
    kv_blocks, block_tokens
        The KV cache that the worker reported.
    last_heard_s
        Time of its last message, by the clock.
    deaf_since_s
        Since when it has reported that it does not hear the coordinator; None if it hears it.
    num_tokens, num_batches, num_running, num_waiting
        See :class:`helixsim.metrics.gauges.NodeGauges`.
    lag_s
        The longest delay that the worker reported, in seconds by the clock.
    num_asked_tokens, num_hit_tokens
        Tokens looked up in its prefix cache, and found there.
    """

    def __init__(self, placed: PlacedNode) -> None:
        self.placed = placed
        self.state = State.ABSENT
        self.address = ""
        self.incarnation = ""
        self.engine = ""
        self.kv_blocks = 0
        self.block_tokens = 0
        self.last_heard_s = 0.0
        self.deaf_since_s: float | None = None
        self.stuck_s = 0.0
        self.lag_s = 0.0
        self.num_refused = 0
        self.num_asked_tokens = self.num_hit_tokens = 0
        self.num_running = 0
        self.num_waiting = 0
        self.sent_bytes: list[float] = []
        self.sent_requests: list[int] = []
        self._now = _empty_heartbeat(placed.index, "x")
        self._before = (0.0, 0, 0)
        self.held_kv_tokens: Callable[[int], int] | None = None

    @property
    def name(self) -> str:
        """Name of the node."""
        return self.placed.name

    def register(self, hello: messages.Hello, clock_s: float) -> None:
        """Register a worker for this node; gauges of earlier workers are kept."""
        last = self._now
        self._before = (
            self._before[0] + last.busy_s,
            self._before[1] + last.num_tokens,
            self._before[2] + last.num_batches,
        )
        self._now = _empty_heartbeat(self.placed.index, hello.incarnation)
        self.state = State.LOADING
        self.address, self.incarnation, self.engine = (
            hello.address,
            hello.incarnation,
            hello.engine,
        )
        self.last_heard_s = clock_s
        self.deaf_since_s = None
        self.stuck_s = 0.0

    def update(self, heartbeat: messages.Heartbeat, clock_s: float) -> None:
        """Take the values of a heartbeat."""
        self.num_asked_tokens += heartbeat.asked_tokens - self._now.asked_tokens
        self.num_hit_tokens += heartbeat.hit_tokens - self._now.hit_tokens
        self._now = heartbeat
        self.last_heard_s = clock_s
        self.stuck_s = heartbeat.stuck_s
        self.lag_s = max(self.lag_s, heartbeat.lag_s)
        self.num_refused = heartbeat.refused
        self.num_running, self.num_waiting = heartbeat.num_running, heartbeat.num_waiting
        self.sent_bytes, self.sent_requests = heartbeat.sent_bytes, heartbeat.sent_requests

    def note_deafness(self, is_deaf: bool, clock_s: float) -> None:
        """Take note whether it reports that it does not hear the coordinator."""
        if not is_deaf:
            self.deaf_since_s = None
        elif self.deaf_since_s is None:
            self.deaf_since_s = clock_s

    def excuse(self, paused_s: float, clock_s: float) -> None:
        """Do not count this time, up to now, as silence: the coordinator was not running."""
        self.last_heard_s = min(self.last_heard_s + paused_s, clock_s)
        if self.deaf_since_s is not None:
            self.deaf_since_s = min(self.deaf_since_s + paused_s, clock_s)

    def mark_lost(self) -> None:
        """Mark the worker as lost."""
        self.state = State.LOST
        self.num_running = self.num_waiting = 0

    # -- interface of policies -------------------------------------------------------------------

    @property
    def queue_length(self) -> int:
        """Requests that wait on the node, by its last heartbeat."""
        return self.num_waiting

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait on the node, by its last heartbeat."""
        return self._now.waiting_tokens

    @property
    def free_kv_tokens(self) -> int:
        """Free tokens of its KV cache, by its last heartbeat."""
        used = self._now.kv_used_token_layers
        if used is None and self.held_kv_tokens is not None:
            room = self.placed.capacity.kv_token_layers - self.held_kv_tokens(self.placed.index)
            return max(room // self.placed.num_layers, 0)
        return self._now.free_kv_tokens

    @property
    def step_s(self) -> float:
        """Mean time of its steps so far, seconds; 0 before the first."""
        return self.busy_s(0.0) / self.num_batches if self.num_batches else 0.0

    # -- interface of metrics --------------------------------------------------------------------

    @property
    def kv_used_token_layers(self) -> int | None:
        """Used KV capacity by its last heartbeat; None if its scheduler does not count it."""
        return self._now.kv_used_token_layers

    @property
    def num_tokens(self) -> int:
        """Tokens that have passed its last layer."""
        return self._before[1] + self._now.num_tokens

    @property
    def num_batches(self) -> int:
        """Batches that it has run."""
        return self._before[2] + self._now.num_batches

    def busy_s(self, now: float) -> float:
        """Time that its engine was busy, by its last heartbeat."""
        return self._before[0] + self._now.busy_s


def _empty_heartbeat(node: int, incarnation: str) -> messages.Heartbeat:
    """The values of a worker before its first heartbeat."""
    return messages.Heartbeat(
        node, incarnation, 0.0, 0, 0, 0, 0, 0, 0, None, 0.0, 0.0, 0, [], [], []
    )


class LinkMeter:
    """Traffic of a link; see :class:`helixsim.metrics.gauges.LinkGauges`.

    Bytes and busy time are computed with the activation sizes and the bandwidth of the scenario.
    """

    def __init__(self, placed: PlacedLink, bandwidth_bytes_per_s: float) -> None:
        self.placed = placed
        self.num_bytes = 0.0
        self.num_requests = 0
        self._bandwidth = bandwidth_bytes_per_s

    def busy_s(self, now: float) -> float:
        """Time to send its bytes at its bandwidth in the scenario."""
        return self.num_bytes / self._bandwidth if self._bandwidth > 0 else 0.0

    def backlog_s(self, now: float) -> float:
        """Always 0: the queue of a real link is not known."""
        return 0.0

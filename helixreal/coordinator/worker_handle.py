"""The nodes of a running cluster, as the coordinator knows them from what they say."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from helixreal.net import messages

if TYPE_CHECKING:
    from helixsim.placement.topology import PlacedLink, PlacedNode


class State(Enum):
    """Where a node stands."""

    ABSENT = "absent"
    """It has not said hello yet."""
    LOADING = "loading"
    """It has been told what to hold."""
    READY = "ready"
    """It works."""
    LOST = "lost"
    """It was there, and has gone silent or is stuck."""


class WorkerHandle:
    """One node; its gauges are those that it last reported, and run on over its restarts.

    Attributes
    ----------
    placed
        The node in the topology.
    state, address, incarnation, engine
        Where it stands, where it is reached, and what runs there.
    kv_blocks, block_tokens
        The KV cache that it really has.
    heard_s
        When it was last heard, by the clock.
    num_tokens, num_batches, num_running, num_waiting
        See :class:`helixsim.metrics.gauges.NodeGauges`.
    lag_s
        The longest that it noticed something late, by the clock.
    """

    def __init__(self, placed: PlacedNode) -> None:
        self.placed = placed
        self.state = State.ABSENT
        self.address = ""
        self.incarnation = ""
        self.engine = ""
        self.kv_blocks = 0
        self.block_tokens = 0
        self.heard_s = 0.0
        self.stuck_s = 0.0
        self.lag_s = 0.0
        self.num_refused = 0
        self.num_running = 0
        self.num_waiting = 0
        self.sent_bytes: list[float] = []
        self.sent_requests: list[int] = []
        self._now = _silence(placed.index, "x")
        self._before = (0.0, 0, 0)
        self.held_kv_tokens: Callable[[int], int] | None = None

    @property
    def name(self) -> str:
        """Of the node."""
        return self.placed.name

    def begin(self, hello: messages.Hello) -> None:
        """Take a worker for this node, perhaps after another one."""
        last = self._now
        self._before = (
            self._before[0] + last.busy_s,
            self._before[1] + last.num_tokens,
            self._before[2] + last.num_batches,
        )
        self._now = _silence(self.placed.index, hello.incarnation)
        self.state = State.LOADING
        self.address, self.incarnation, self.engine = (
            hello.address,
            hello.incarnation,
            hello.engine,
        )
        self.heard_s = time.monotonic()

    def take(self, heartbeat: messages.Heartbeat) -> None:
        """Take what it reports."""
        self._now = heartbeat
        self.heard_s = time.monotonic()
        self.stuck_s = heartbeat.stuck_s
        self.lag_s = max(self.lag_s, heartbeat.lag_s)
        self.num_refused = heartbeat.refused
        self.num_running, self.num_waiting = heartbeat.num_running, heartbeat.num_waiting
        self.sent_bytes, self.sent_requests = heartbeat.sent_bytes, heartbeat.sent_requests

    def lose(self) -> None:
        """It has gone silent."""
        self.state = State.LOST
        self.num_running = self.num_waiting = 0

    # -- what policies see -----------------------------------------------------------------------

    @property
    def queue_length(self) -> int:
        """Requests that waited there by its last report."""
        return self.num_waiting

    @property
    def waiting_tokens(self) -> int:
        """Tokens that waited there by its last report."""
        return self._now.waiting_tokens

    @property
    def free_kv_tokens(self) -> int:
        """Tokens for which it had room by its last report."""
        used = self._now.kv_used_token_layers
        if used is None and self.held_kv_tokens is not None:
            room = self.placed.capacity.kv_token_layers - self.held_kv_tokens(self.placed.index)
            return max(room // self.placed.num_layers, 0)
        return self._now.free_kv_tokens

    @property
    def step_s(self) -> float:
        """Mean time of its steps so far, seconds; 0 before the first."""
        return self.busy_s(0.0) / self.num_batches if self.num_batches else 0.0

    # -- what metrics see ------------------------------------------------------------------------

    @property
    def kv_used_token_layers(self) -> int | None:
        """What its KV blocks held by its last report; None if it keeps no account."""
        return self._now.kv_used_token_layers

    @property
    def num_tokens(self) -> int:
        """Tokens that came through its last layer so far."""
        return self._before[1] + self._now.num_tokens

    @property
    def num_batches(self) -> int:
        """Batches that it has run so far."""
        return self._before[2] + self._now.num_batches

    def busy_s(self, now: float) -> float:
        """How long it has computed by its last report."""
        return self._before[0] + self._now.busy_s


def _silence(node: int, incarnation: str) -> messages.Heartbeat:
    """What a worker has reported before its first heartbeat."""
    return messages.Heartbeat(
        node, incarnation, 0.0, 0, 0, 0, 0, 0, 0, None, 0.0, 0.0, 0, [], [], []
    )


class LinkMeter:
    """What a link has carried; see :class:`helixsim.metrics.gauges.LinkGauges`.

    The bytes are those that the scenario counts. How long the link was busy follows from its
    bandwidth there.
    """

    def __init__(self, placed: PlacedLink, bandwidth_bytes_per_s: float) -> None:
        self.placed = placed
        self.num_bytes = 0.0
        self.num_requests = 0
        self._bandwidth = bandwidth_bytes_per_s

    def busy_s(self, now: float) -> float:
        """How long it has been sending, at its bandwidth in the scenario."""
        return self.num_bytes / self._bandwidth if self._bandwidth > 0 else 0.0

    def backlog_s(self, now: float) -> float:
        """Not known of a real link."""
        return 0.0

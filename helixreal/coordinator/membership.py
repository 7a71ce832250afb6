"""Who is there: workers join in any order, are told what to hold, and are missed when silent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from helixreal.net import messages
from helixreal.net.clock import Clock, this_host
from helixreal.net.transport import Transport
from helixreal.worker.emulation import curve_of, engine_json, limits_of
from helixsim.control.control_plane import node_scheduler_name, performance_model
from helixsim.control.routing import Policy
from helixsim.errors import HelixError, InputError
from helixsim.physics.performance_model import PerformanceModel
from helixsim.placement.topology import PlacedLink, Topology
from helixsim.scenario.resolved import Scenario

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
    last_heard_s
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
        self.last_heard_s = 0.0
        self.stuck_s = 0.0
        self.lag_s = 0.0
        self.num_refused = 0
        self.num_running = 0
        self.num_waiting = 0
        self.sent_bytes: list[float] = []
        self.sent_requests: list[int] = []
        self._now = _empty_heartbeat(placed.index, "x")
        self._before = (0.0, 0, 0)
        self.held_kv_tokens: Callable[[int], int] | None = None

    @property
    def name(self) -> str:
        """Of the node."""
        return self.placed.name

    def register(self, hello: messages.Hello) -> None:
        """Take a worker for this node, perhaps after another one."""
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
        self.last_heard_s = time.monotonic()

    def update(self, heartbeat: messages.Heartbeat) -> None:
        """Take what it reports."""
        self._now = heartbeat
        self.last_heard_s = time.monotonic()
        self.stuck_s = heartbeat.stuck_s
        self.lag_s = max(self.lag_s, heartbeat.lag_s)
        self.num_refused = heartbeat.refused
        self.num_running, self.num_waiting = heartbeat.num_running, heartbeat.num_waiting
        self.sent_bytes, self.sent_requests = heartbeat.sent_bytes, heartbeat.sent_requests

    def mark_lost(self) -> None:
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


def _empty_heartbeat(node: int, incarnation: str) -> messages.Heartbeat:
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


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipSettings:
    """How nodes are looked after; all times by the clock.

    Attributes
    ----------
    heartbeat_s, missing_s
        How often everybody says that they are there, and after what silence they are lost.
    stuck_s
        An engine that has been at one batch for longer is lost, too.
    """

    heartbeat_s: float = 0.5
    missing_s: float = 3.0
    stuck_s: float = 60.0


def used_bandwidth(performance: PerformanceModel, policy: Policy, link: PlacedLink) -> float:
    """What emulated transfers may use of a link, in bytes per second.

    Messages use all of it; links of the published simulator what the policy allows.
    """
    if performance.sending is not None:
        return link.bandwidth_bytes_per_s
    return float(policy.link_bandwidth(link))


class Membership:
    """The nodes of a placement, and the workers that stand for them.

    Parameters
    ----------
    scenario
        What is run.
    topology
        Nodes and links of its placement.
    transport
        The coordinator's sockets.
    clock
        The time of the run.
    max_context_tokens
        No request gets longer.
    reports_transits
        Whether the policy learns from how long passes take.

    Attributes
    ----------
    workers
        For every node, in order.
    lost, back
        Numbers of nodes that were lost, and of such that work again, since somebody last looked.
    """

    def __init__(
        self,
        scenario: Scenario,
        topology: Topology,
        transport: Transport,
        clock: Clock,
        settings: MembershipSettings,
        max_context_tokens: int,
        *,
        reports_transits: bool,
    ) -> None:
        self._scenario = scenario
        self._performance = performance_model(scenario)
        self._topology = topology
        self._transport = transport
        self._clock = clock
        self._settings = settings
        self._max_context_tokens = max_context_tokens
        self._reports_transits = reports_transits
        self._policy: Policy | None = None
        self._by_name = {node.name: node.index for node in topology.nodes}
        self._next_alive_s = 0.0
        self.workers = [WorkerHandle(node) for node in topology.nodes]
        self.lost_nodes: list[int] = []
        self.recovered_nodes: list[int] = []

    @property
    def absent(self) -> list[str]:
        """Names of the nodes that do not work."""
        return [worker.name for worker in self.workers if worker.state is not State.READY]

    def name_of(self, node: int) -> str:
        """The name of a node, by its number.

        Raises
        ------
        ValueError
            If there is no such node.
        """
        if node >= len(self.workers):
            raise ValueError(f"there is no node {node}")
        return self.workers[node].name

    # -- joining -----------------------------------------------------------------------------

    def on_hello(self, hello: messages.Hello) -> None:
        """Welcome a worker.

        Raises
        ------
        ValueError
            If its node is not part of this placement.
        """
        index = self._by_name.get(hello.node)
        if index is None:
            raise ValueError(f"node '{hello.node}' holds no layers in this placement")
        worker = self.workers[index]
        if worker.state in (State.READY, State.LOADING):
            # Its own, until it hears from us; or another worker's, for which there is no place
            # until this one has gone silent.
            return
        try:
            self._transport.connect(worker.name, hello.address)
        except InputError as error:
            raise ValueError(str(error)) from error
        worker.register(hello)
        self._transport.send(worker.name, self._assignment(worker, hello))

    def _assignment(self, worker: WorkerHandle, hello: messages.Hello) -> messages.Assignment:
        topology, placed = self._topology, worker.placed
        entries = {link.entry_layer for link in topology.incoming[placed.index]}
        emulated = hello.engine == "emulated"
        return messages.Assignment(
            node=placed.index,
            coordinator=topology.coordinator,
            machine_type=placed.machine_type,
            llm=topology.llm.name,
            start_layer=placed.start_layer,
            end_layer=placed.end_layer,
            num_layers=topology.llm.num_layers,
            entry_layers=sorted({placed.start_layer, *entries}),
            limits=limits_of(placed.capacity),
            prefill=curve_of(placed.profile.prefill),
            decode=curve_of(placed.profile.decode),
            activation_bytes_per_token=topology.llm.activation_bytes_per_token,
            kv_bytes_per_token_layer=topology.llm.kv_bytes_per_token_layer,
            nic_bytes_per_s=placed.nic.outbound_bytes_per_s,
            physics=self._scenario.physics,
            node_scheduler=node_scheduler_name(self._scenario),
            engine_costs=engine_json(self._scenario.engine),
            max_context_tokens=self._max_context_tokens,
            heartbeat_s=self._settings.heartbeat_s,
            missing_s=self._settings.missing_s,
            time_scale=self._clock.scale,
            now_s=self._clock.now(),
            clock_s=time.monotonic(),
            host=this_host(),
            emulate_links=emulated,
            report_transits=self._reports_transits,
        )

    def on_ready(self, ready: messages.Ready) -> None:
        """Take note that a worker has loaded its layers."""
        worker = self._worker(ready.node, ready.incarnation)
        if worker is None or worker.state is not State.LOADING:
            return
        worker.state = State.READY
        worker.last_heard_s = time.monotonic()
        worker.kv_blocks, worker.block_tokens = ready.kv_blocks, ready.block_tokens
        if self._policy is not None:
            self._send_peers_of(worker, self._policy)
            self.recovered_nodes.append(worker.placed.index)

    def send_all_peers(self, policy: Policy) -> None:
        """Tell all workers where the others are; from now on whoever joins is told, too."""
        self._policy = policy
        for worker in self.workers:
            self._transport.send(worker.name, self._peers(worker, policy))

    def _send_peers_of(self, worker: WorkerHandle, policy: Policy) -> None:
        """Tell a worker that has come back where the others are, and them where it is."""
        self._transport.send(worker.name, self._peers(worker, policy))
        peer = messages.Peer(worker.placed.index, worker.name, worker.address)
        for link in self._topology.incoming[worker.placed.index]:
            if link.source != self._topology.coordinator:
                self._transport.send(self.workers[link.source].name, messages.Peers([peer], []))

    def _peers(self, worker: WorkerHandle, policy: Policy) -> messages.Peers:
        topology = self._topology
        outgoing = topology.outgoing[worker.placed.index]
        others = [self.workers[link.target] for link in outgoing if link.target < len(self.workers)]
        return messages.Peers(
            [
                messages.Peer(other.placed.index, other.name, other.address)
                for other in others
                if other.state is State.READY
            ],
            [
                messages.OutLink(
                    link.target,
                    used_bandwidth(self._performance, policy, link),
                    link.latency_s,
                    link.bytes_per_token,
                )
                for link in outgoing
            ],
        )

    # -- being there -------------------------------------------------------------------------

    def on_heartbeat(self, heartbeat: messages.Heartbeat) -> WorkerHandle | None:
        """Take what a worker reports; None if it is not one of ours any more."""
        worker = self._worker(heartbeat.node, heartbeat.incarnation)
        if worker is None:
            return None
        worker.update(heartbeat)
        return worker

    def _worker(self, node: int, incarnation: str) -> WorkerHandle | None:
        if node >= len(self.workers):
            raise ValueError(f"there is no node {node}")
        worker = self.workers[node]
        return worker if worker.incarnation == incarnation else None

    def check_liveness(self, clock_s: float) -> None:
        """See who is missing, and say that the coordinator is there."""
        for worker in self.workers:
            if worker.state not in (State.READY, State.LOADING):
                continue
            silent_s = clock_s - worker.last_heard_s
            if silent_s > self._settings.missing_s:
                logger.warning("%s has been silent for %.1f s", worker.name, silent_s)
                self._node_lost(worker)
            elif worker.state is State.READY and worker.stuck_s > self._settings.stuck_s:
                logger.warning("%s has been at one batch for %.1f s", worker.name, worker.stuck_s)
                self._transport.send(worker.name, messages.Shutdown("it was stuck"))
                self._node_lost(worker)
        if clock_s >= self._next_alive_s:
            self._next_alive_s = clock_s + self._settings.heartbeat_s
            for worker in self.workers:
                if worker.state in (State.READY, State.LOADING):
                    self._transport.send(worker.name, messages.Alive())

    def _node_lost(self, worker: WorkerHandle) -> None:
        if worker.state is State.READY:
            self.lost_nodes.append(worker.placed.index)
        worker.mark_lost()

    def on_failure(self, failed: messages.Failure) -> None:
        """Hear that an engine cannot be loaded.

        Raises
        ------
        HelixError
            If the cluster does not run yet: it cannot begin without that node.
        """
        if failed.sender >= len(self.workers):
            raise ValueError(f"there is no node {failed.sender}")
        worker = self.workers[failed.sender]
        if worker.state is not State.LOADING:
            return
        worker.mark_lost()
        if self._policy is None:
            raise HelixError(f"{worker.name}: {failed.reason}")
        logger.error("%s: %s", worker.name, failed.reason)

    def shut_down_all(self, reason: str) -> None:
        """End all workers."""
        for worker in self.workers:
            if worker.state is not State.ABSENT:
                self._transport.send(worker.name, messages.Shutdown(reason))

"""Membership: workers register in any order, receive assignments, and are lost when silent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING

from helixreal.net import messages
from helixreal.net.clock import Clock, this_host
from helixreal.net.transport import Transport
from helixreal.worker.emulation import (
    composition_message,
    curve_of,
    engine_json,
    limits_of,
    machine_of,
    operators_json,
)
from helixsim.control.control_plane import (
    followed_flow,
    mean_stages,
    node_scheduler_name,
    performance_model,
    step_composition,
)
from helixsim.control.node_schedulers import NODE_SCHEDULERS, decodes_loop
from helixsim.control.routing import Policy
from helixsim.errors import HelixError, InputError
from helixsim.physics.performance_model import PerformanceModel
from helixsim.placement.topology import PlacedLink, Topology
from helixsim.placement.ways_back import way_back
from helixsim.scenario.resolved import Scenario

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

    def register(self, hello: messages.Hello) -> None:
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
        self.last_heard_s = time.monotonic()

    def update(self, heartbeat: messages.Heartbeat) -> None:
        """Take the values of a heartbeat."""
        self.num_asked_tokens += heartbeat.asked_tokens - self._now.asked_tokens
        self.num_hit_tokens += heartbeat.hit_tokens - self._now.hit_tokens
        self._now = heartbeat
        self.last_heard_s = time.monotonic()
        self.stuck_s = heartbeat.stuck_s
        self.lag_s = max(self.lag_s, heartbeat.lag_s)
        self.num_refused = heartbeat.refused
        self.num_running, self.num_waiting = heartbeat.num_running, heartbeat.num_waiting
        self.sent_bytes, self.sent_requests = heartbeat.sent_bytes, heartbeat.sent_requests

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


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipSettings:
    """Intervals and time limits of membership, in seconds by the clock.

    Attributes
    ----------
    heartbeat_s, missing_s
        Interval of heartbeats, and the silence after which a process counts as lost.
    stuck_s
        A worker whose engine runs one batch for longer is shut down and lost.
    """

    heartbeat_s: float = 0.5
    missing_s: float = 3.0
    stuck_s: float = 60.0


def used_bandwidth(performance: PerformanceModel, policy: Policy, link: PlacedLink) -> float:
    """Bandwidth of a link for emulated transfers, in bytes per second.

    Messages use the whole bandwidth; links of the published simulator the policy's share of it.
    """
    if performance.sending is not None:
        return link.bandwidth_bytes_per_s
    return float(policy.link_bandwidth(link))


class Membership:
    """The nodes of a placement and their workers.

    Parameters
    ----------
    scenario
        The scenario of the run.
    topology
        Nodes and links of its placement.
    transport
        The coordinator's sockets.
    clock
        The time of the run.
    settings
        Intervals and time limits.
    max_context_tokens
        Limit of the tokens of a request.
    reports_transits
        Whether workers report transit times of passes.

    Attributes
    ----------
    workers
        The handles of all nodes, in order.
    lost_nodes, recovered_nodes
        Numbers of nodes that were lost or have recovered; the caller removes what it has processed.
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
        self._loops = decodes_loop(NODE_SCHEDULERS.get(node_scheduler_name(scenario)))
        limits = step_composition(scenario, topology)
        self._composition = None
        if limits is not None:
            num_stages = mean_stages(topology, followed_flow(scenario, topology))
            self._composition = composition_message(limits, num_stages)
        self._policy: Policy | None = None
        self._by_name = {node.name: node.index for node in topology.nodes}
        self._next_alive_s = 0.0
        self.workers = [WorkerHandle(node) for node in topology.nodes]
        self.lost_nodes: list[int] = []
        self.recovered_nodes: list[int] = []

    @property
    def absent(self) -> list[str]:
        """Names of the nodes that are not ready."""
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
        """Register a worker, and send it its assignment.

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
            # The worker repeats its hello until it has its assignment. A second worker of the node
            # is not registered before the first is lost.
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
            machine=machine_of(placed),
            llm=messages.Llm(**asdict(topology.llm)),
            start_layer=placed.start_layer,
            end_layer=placed.end_layer,
            entry_layers=sorted({placed.start_layer, *entries}),
            limits=limits_of(placed.capacity),
            prefill=curve_of(placed.profile.prefill),
            decode=curve_of(placed.profile.decode),
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
            operators=operators_json(placed.profile.operators),
            composition=self._composition,
        )

    def on_ready(self, ready: messages.Ready) -> None:
        """Mark a worker that has loaded its layers as ready."""
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
        """Send all workers the addresses of their peers; later workers get them when ready."""
        self._policy = policy
        for worker in self.workers:
            self._transport.send(worker.name, self._peers(worker, policy))

    def _send_peers_of(self, worker: WorkerHandle, policy: Policy) -> None:
        """Send a recovered worker the addresses of its peers, and them its address."""
        self._transport.send(worker.name, self._peers(worker, policy))
        peer = messages.Peer(worker.placed.index, worker.name, worker.address)
        for link in self._topology.incoming[worker.placed.index]:
            if link.source != self._topology.coordinator:
                self._transport.send(self.workers[link.source].name, messages.Peers([peer], []))
        for last in self.workers:
            if worker.placed.index in self._ways_back_from(last.placed):
                self._transport.send(last.name, messages.Peers([peer], []))

    def _ways_back_from(self, node: PlacedNode) -> list[int]:
        """The first nodes of routes that may end at a node, where decodes loop."""
        num_layers = self._topology.llm.num_layers
        if not self._loops or node.end_layer < num_layers:
            return []
        entries = {link.entry_layer for link in self._topology.incoming[node.index]}
        if not any(entries):  # all routes through it begin at it
            return []
        return [
            first.index
            for first in self._topology.nodes
            if first.start_layer == 0 and first.end_layer < num_layers
        ]

    def _peers(self, worker: WorkerHandle, policy: Policy) -> messages.Peers:
        topology, network = self._topology, self._scenario.cluster.network
        outgoing = topology.outgoing[worker.placed.index]
        firsts = self._ways_back_from(worker.placed)
        ways = [way_back(topology, network, worker.placed.index, first) for first in firsts]
        targets = [link.target for link in outgoing if link.target < len(self.workers)]
        others = [self.workers[target] for target in dict.fromkeys([*targets, *firsts])]
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
            [
                messages.OutLink(
                    first, way.bandwidth_bytes_per_s, way.latency_s, way.bytes_per_token
                )
                for first, way in zip(firsts, ways, strict=True)
            ],
        )

    # -- liveness ----------------------------------------------------------------------------

    def on_heartbeat(self, heartbeat: messages.Heartbeat) -> WorkerHandle | None:
        """Take a heartbeat; None if it is of another incarnation than the registered worker."""
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
        """Find workers that are silent or stuck, and send heartbeats of the coordinator."""
        for worker in self.workers:
            if worker.state not in (State.READY, State.LOADING):
                continue
            silent_s = clock_s - worker.last_heard_s
            if silent_s > self._settings.missing_s:
                logger.warning("%s has been silent for %.1f s", worker.name, silent_s)
                self._node_lost(worker)
            elif worker.state is State.READY and worker.stuck_s > self._settings.stuck_s:
                logger.warning(
                    "%s has been running one batch for %.1f s", worker.name, worker.stuck_s
                )
                self._transport.send(worker.name, messages.Shutdown("its engine was stuck"))
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
        """Take a worker's report that its engine cannot be loaded.

        Raises
        ------
        HelixError
            If the cluster has not begun: it cannot begin without the node.
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
        """Send all workers a shutdown message."""
        for worker in self.workers:
            if worker.state is not State.ABSENT:
                self._transport.send(worker.name, messages.Shutdown(reason))

"""Membership: workers register in any order, receive assignments, are lost and come back."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helixreal.coordinator.introductions import Introductions, as_peer, used_bandwidth
from helixreal.coordinator.link_watch import LinkWatch
from helixreal.coordinator.worker_handle import LinkMeter, State, WorkerHandle
from helixreal.net import messages
from helixreal.net.clock import Clock
from helixreal.net.transport import Transport
from helixreal.worker.joining import PAUSE_SHARE
from helixsim.control.routing import Policy
from helixsim.errors import HelixError, InputError
from helixsim.placement.topology import Topology
from helixsim.scenario.resolved import Scenario

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "LinkMeter",
    "Membership",
    "MembershipSettings",
    "State",
    "WorkerHandle",
    "used_bandwidth",
]

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
    session
        Identifies this run of the coordinator in messages.
    next_key
        The key of the next attempt: a worker that joins takes no passes of earlier ones.
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
        self._transport = transport
        self._settings = settings
        self.session = transport.session = secrets.randbits(52) + 1
        self._introductions = Introductions(
            scenario,
            topology,
            clock,
            self.session,
            settings.heartbeat_s,
            settings.missing_s,
            max_context_tokens,
            reports_transits=reports_transits,
        )
        self._policy: Policy | None = None
        self._watch = LinkWatch(self._introductions.watched_pairs(), settings.missing_s)
        self._by_name = {node.name: node.index for node in topology.nodes}
        self._next_alive_s = 0.0
        self._checked_s: float | None = None
        self.workers = [WorkerHandle(node) for node in topology.nodes]
        self.lost_nodes: list[int] = []
        self.recovered_nodes: list[int] = []
        self.next_key: Callable[[], int] = lambda: 1

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
            # The worker repeats its hello until it has its assignment, and says it again when it
            # does not hear the coordinator: while its heartbeats come, nothing has changed. A
            # second worker of the node is not registered before the first is lost.
            return
        try:
            self._transport.connect(worker.name, hello.address)
        except InputError as error:
            raise ValueError(str(error)) from error
        clock_s = time.monotonic()
        worker.register(hello, clock_s)
        assignment = self._introductions.assignment(worker, hello, self.next_key(), clock_s)
        self._transport.send(worker.name, assignment)

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
            self._watch_links_of(worker)
            self.recovered_nodes.append(worker.placed.index)

    def send_all_peers(self, policy: Policy) -> None:
        """Send all workers the addresses of their peers; later workers get them when ready."""
        self._policy = policy
        for worker in self.workers:
            self._send_peers_to(worker, policy)
            self._watch_links_of(worker)

    def _watch_links_of(self, worker: WorkerHandle) -> None:
        ready = [each.placed.index for each in self.workers if each.state is State.READY]
        self._watch.node_up(worker.placed.index, ready, time.monotonic())

    @property
    def cut_links(self) -> frozenset[tuple[int, int]]:
        """The links between nodes, and the ways back, that do not work now: (source, target)."""
        return self._watch.cut

    def _send_peers_to(self, worker: WorkerHandle, policy: Policy) -> None:
        peers = self._introductions.peers(worker, policy, self.workers)
        self._transport.send(worker.name, peers)

    def _send_peers_of(self, worker: WorkerHandle, policy: Policy) -> None:
        """Send a recovered worker the addresses of its peers, and them its address."""
        self._send_peers_to(worker, policy)
        by_link, by_way_back = self._introductions.senders_to(worker.placed.index)
        for source in (*by_link, *by_way_back):
            name = self.workers[source].name
            self._transport.send(name, messages.Peers([as_peer(worker)], []))

    # -- liveness ----------------------------------------------------------------------------

    def on_heartbeat(self, heartbeat: messages.Heartbeat) -> WorkerHandle | None:
        """Take a heartbeat; None if it is of another incarnation than the registered worker.

        A worker that counts as lost is asked to join again.
        """
        worker = self._worker(heartbeat.node, heartbeat.incarnation)
        if worker is None:
            return None
        if worker.state is State.LOST:
            self._transport.send(worker.name, messages.Rejoin(worker.incarnation))
            return None
        clock_s = time.monotonic()
        worker.update(heartbeat, clock_s)
        worker.note_deafness(heartbeat.unheard_s > self._settings.missing_s, clock_s)
        self._watch.report(
            worker.placed.index,
            {each.source: each.silent_s for each in heartbeat.silences},
            {each.placed.index: clock_s - each.last_heard_s for each in self.workers},
            clock_s,
        )
        return worker

    def _worker(self, node: int, incarnation: str) -> WorkerHandle | None:
        if node >= len(self.workers):
            raise ValueError(f"there is no node {node}")
        worker = self.workers[node]
        return worker if worker.incarnation == incarnation else None

    def check_liveness(self, clock_s: float) -> float:
        """Find workers that are silent or stuck, and send heartbeats of the coordinator.

        The caller checks after it has processed messages. If the last check was long ago, this
        process itself was paused: that time, which is returned, does not count as silence.
        """
        paused_s = self._own_pause_s(clock_s)
        self._watch.excuse(paused_s, clock_s)
        for worker in self._joined():
            worker.excuse(paused_s, clock_s)
            if why := self._lost_because(worker, clock_s):
                logger.warning("%s %s", worker.name, why)
                if worker.stuck_s > self._settings.stuck_s:
                    stuck = messages.Shutdown("its engine was stuck", is_fault=True)
                    self._transport.send(worker.name, stuck)
                self._node_lost(worker)
        if clock_s >= self._next_alive_s:
            self._next_alive_s = clock_s + self._settings.heartbeat_s
            for worker in self._joined():
                self._transport.send(worker.name, messages.Alive())
        return paused_s

    def _joined(self) -> Iterable[WorkerHandle]:
        """The workers that are ready or load their layers."""
        return [each for each in self.workers if each.state in (State.READY, State.LOADING)]

    def _own_pause_s(self, clock_s: float) -> float:
        """For how long this process was paused since the last check."""
        before, self._checked_s = self._checked_s, clock_s
        gap_s = 0.0 if before is None else clock_s - before
        if gap_s <= self._settings.missing_s * PAUSE_SHARE:
            return 0.0
        if gap_s > self._settings.missing_s:
            logger.warning("the coordinator itself was paused for %.1f s", gap_s)
        return gap_s

    def _lost_because(self, worker: WorkerHandle, clock_s: float) -> str:
        """Why a worker counts as lost now; empty if it does not."""
        missing_s, stuck_s = self._settings.missing_s, self._settings.stuck_s
        silent_s = clock_s - worker.last_heard_s
        if silent_s > missing_s:
            return f"has been silent for {silent_s:.1f} s"
        if worker.stuck_s > stuck_s:
            return f"has been running one batch for {worker.stuck_s:.1f} s"
        if worker.deaf_since_s is not None and clock_s - worker.deaf_since_s > missing_s:
            return "does not hear the coordinator, which hears it"
        return ""

    def _node_lost(self, worker: WorkerHandle) -> None:
        self._watch.node_down(worker.placed.index)
        if worker.state is State.READY:
            self.lost_nodes.append(worker.placed.index)
        worker.mark_lost()

    def on_failure(self, failed: messages.Failure) -> None:
        """Take a worker's report that its engine cannot be loaded, or has failed for good.

        Raises
        ------
        HelixError
            If the cluster has not begun: it cannot begin without the node.
        """
        if failed.sender >= len(self.workers):
            raise ValueError(f"there is no node {failed.sender}")
        worker = self.workers[failed.sender]
        if worker.state is State.READY and worker.incarnation == failed.incarnation:
            logger.error("%s leaves: %s", worker.name, failed.reason)
            self._node_lost(worker)
            return
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

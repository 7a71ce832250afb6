"""Who is there: workers join in any order, are told what to hold, and are missed when silent."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from helixreal.coordinator.worker_handle import State, WorkerHandle
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
        self.lost: list[int] = []
        self.back: list[int] = []

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
        worker.begin(hello)
        try:
            self._transport.connect(worker.name, worker.address)
        except InputError as error:
            raise ValueError(str(error)) from error
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
        worker.heard_s = time.monotonic()
        worker.kv_blocks, worker.block_tokens = ready.kv_blocks, ready.block_tokens
        if self._policy is not None:
            self._introduce(worker, self._policy)
            self.back.append(worker.placed.index)

    def introduce_all(self, policy: Policy) -> None:
        """Tell all workers where the others are; from now on whoever joins is told, too."""
        self._policy = policy
        for worker in self.workers:
            self._transport.send(worker.name, self._peers(worker, policy))

    def _introduce(self, worker: WorkerHandle, policy: Policy) -> None:
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
        worker.take(heartbeat)
        return worker

    def _worker(self, node: int, incarnation: str) -> WorkerHandle | None:
        if node >= len(self.workers):
            raise ValueError(f"there is no node {node}")
        worker = self.workers[node]
        return worker if worker.incarnation == incarnation else None

    def look(self, clock_s: float) -> None:
        """See who is missing, and say that the coordinator is there."""
        for worker in self.workers:
            if worker.state not in (State.READY, State.LOADING):
                continue
            silent_s = clock_s - worker.heard_s
            if silent_s > self._settings.missing_s:
                logger.warning("%s has been silent for %.1f s", worker.name, silent_s)
                self._lose(worker)
            elif worker.state is State.READY and worker.stuck_s > self._settings.stuck_s:
                logger.warning("%s has been at one batch for %.1f s", worker.name, worker.stuck_s)
                self._transport.send(worker.name, messages.Shutdown("it was stuck"))
                self._lose(worker)
        if clock_s >= self._next_alive_s:
            self._next_alive_s = clock_s + self._settings.heartbeat_s
            for worker in self.workers:
                if worker.state in (State.READY, State.LOADING):
                    self._transport.send(worker.name, messages.Alive())

    def _lose(self, worker: WorkerHandle) -> None:
        if worker.state is State.READY:
            self.lost.append(worker.placed.index)
        worker.lose()

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
        worker.lose()
        if self._policy is None:
            raise HelixError(f"{worker.name}: {failed.reason}")
        logger.error("%s: %s", worker.name, failed.reason)

    def shut_down_all(self, reason: str) -> None:
        """End all workers."""
        for worker in self.workers:
            if worker.state is not State.ABSENT:
                self._transport.send(worker.name, messages.Shutdown(reason))

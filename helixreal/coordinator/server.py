"""The coordinator process of a real cluster.

The control plane is that of the simulator. This module carries out its actions over sockets and
measures the run as the simulator does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from random import Random
from typing import Any

import zmq

from helixreal.coordinator.attempts import PromptMaker, blank_prompts
from helixreal.coordinator.deadlines import Deadlines, TimeLimits
from helixreal.coordinator.dispatcher import Dispatcher
from helixreal.coordinator.events import EventLog, Events, NoEvents
from helixreal.coordinator.live_recorder import LiveRecorder
from helixreal.coordinator.membership import (
    LinkMeter,
    Membership,
    MembershipSettings,
    WorkerHandle,
    used_bandwidth,
)
from helixreal.coordinator.recorders import CountingRecorder
from helixreal.net import messages
from helixreal.net.clock import Clock
from helixreal.net.outgoing_link import EmulatedSender, OutgoingLink
from helixreal.net.transport import Transport
from helixsim.control.control_plane import ControlPlane, build_control_plane, placed_topology
from helixsim.control.coordinator import Coordinator
from helixsim.control.kv_cache import held_token_layers
from helixsim.control.load import LoadGenerator
from helixsim.control.routing import POLICIES, Policy
from helixsim.errors import InputError
from helixsim.metrics.recorder import RunRecorder
from helixsim.metrics.result import RunResult
from helixsim.metrics.timeline import Timeline
from helixsim.placement.flow import Flow
from helixsim.placement.topology import Topology
from helixsim.scenario.coordinator_alone import with_coordinator_alone
from helixsim.scenario.load_generator import build_load_generator
from helixsim.scenario.resolved import Scenario

logger = logging.getLogger(__name__)

_MAX_WAIT_MS = 100
_MESSAGES_AT_ONCE = 500
_BEGIN_MARGIN_S = 0.2
_EMULATED_SLACK_S = 0.02
_LAG_WARNING_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Settings of a cluster.

    Attributes
    ----------
    is_emulated
        Whether engines are emulated: workers wait for the times of the performance model.
    time_scale
        Seconds of the run per second by the clock.
    membership
        Intervals and time limits of heartbeats.
    limits
        Time limits of passes and requests.
    prompts
        Makes the prompts of the scenario's workload, of which only lengths are known.
    max_context_tokens
        Limit of the tokens of a request.
    keeps_run
        Whether every pass and request is kept, for the results of the run. Servers, which run
        without end, keep counts.
    """

    is_emulated: bool = True
    time_scale: float = 1.0
    membership: MembershipSettings = field(default_factory=MembershipSettings)
    limits: TimeLimits = field(default_factory=TimeLimits)
    prompts: PromptMaker = blank_prompts
    max_context_tokens: int = 1_000_000
    keeps_run: bool = True


class Cluster:
    """Waits for workers, serves requests through them, and measures the run; not thread-safe.

    It is a :class:`helixsim.metrics.gauges.MeasuredRun`: its results have the form of a
    simulation's.

    Parameters
    ----------
    scenario
        The scenario; it must have a placement.
    transport
        The coordinator's sockets.
    settings
        Settings of the cluster.
    load_generator
        Creates the requests; None takes the scenario's workload.

    Attributes
    ----------
    start_s, end_s
        Start and end of load generation.
    stopping
        Set it, from any thread, to stop the run.
    dispatcher
        Sends requests; None before :meth:`begin`.
    events
        Log of all passes; another one can be set before :meth:`begin`.
    """

    def __init__(
        self,
        scenario: Scenario,
        transport: Transport,
        settings: ClusterSettings,
        *,
        load_generator: LoadGenerator | None = None,
    ) -> None:
        self._other_front_ends = scenario.cluster.front_end_names[1:]
        self.scenario = scenario = with_coordinator_alone(scenario)
        self.seed = scenario.run.seed
        self.start_s = self.end_s = 0.0
        self.stopping = False
        self._settings = settings
        self._transport = transport
        self._load_generator = load_generator
        self._planned = placed_topology(scenario)
        self._clock = Clock(settings.time_scale)
        self.membership = Membership(
            scenario,
            self._planned,
            transport,
            self._clock,
            settings.membership,
            settings.max_context_tokens,
            reports_transits=POLICIES.get(scenario.scheduler.policy).needs_transits,
        )
        self.events: Events = EventLog() if settings.keeps_run else NoEvents()
        self.dispatcher: Dispatcher | None = None
        self._control_plane: ControlPlane
        self._recorder: LiveRecorder
        self._timeline: Timeline
        self._links: dict[int, OutgoingLink] = {}
        self._meters: list[LinkMeter] = []
        self._next_sample_s = inf
        self._watched: dict[object, Callable[[], None]] = {}
        self._cut: frozenset[tuple[int, int]] = frozenset()
        if self._other_front_ends:
            logger.warning(
                "tokens pass the coordinator, as of one front end; at the sites of %s, start "
                "`helixreal front-end` for a server",
                ", ".join(self._other_front_ends),
            )
        self._poller = zmq.Poller()
        self._poller.register(transport.inbox, zmq.POLLIN)

    # -- interface of metrics -------------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        """Nodes and links, with the KV capacities that the workers reported."""
        return self._control_plane.topology

    @property
    def flow(self) -> Flow:
        """The maximum flow."""
        return self._control_plane.flow

    @property
    def policy(self) -> Policy:
        """The routing policy."""
        return self._control_plane.policy

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator of the control plane."""
        return self._control_plane.coordinator

    @property
    def recorder(self) -> RunRecorder:
        """The records of the run."""
        return self._recorder

    @property
    def nodes(self) -> Sequence[WorkerHandle]:
        """The gauges of every node."""
        return self.membership.workers

    @property
    def links(self) -> Sequence[LinkMeter]:
        """The gauges of every link."""
        return self._meters

    @property
    def now(self) -> float:
        """The time of the run."""
        return self._clock.now()

    @property
    def address(self) -> str:
        """The coordinator's address."""
        return self._transport.address

    @property
    def lag_s(self) -> float:
        """The longest delay of the coordinator or a worker, in seconds by the clock."""
        own = self.dispatcher.lag_s / self._clock.scale if self.dispatcher is not None else 0.0
        return max(own, *(worker.lag_s for worker in self.membership.workers))

    # -- phases of a run ----------------------------------------------------------------------

    def wait_for_workers(self, on_wait: Callable[[list[str]], None] | None = None) -> None:
        """Wait until the workers of all nodes are ready.

        Parameters
        ----------
        on_wait
            Called regularly with the names of the nodes that are not ready; it may raise.

        Raises
        ------
        HelixError
            If an engine cannot be loaded.
        """
        while (missing := self.membership.absent) and not self.stopping:
            if on_wait is not None:
                on_wait(missing)
            self.poll_once()

    @property
    def has_begun(self) -> bool:
        """Whether :meth:`begin` has been called."""
        return self.dispatcher is not None

    def begin(self) -> None:
        """Build the control plane with the KV capacities of the workers, and start the load."""
        settings, scenario = self._settings, self.scenario
        # An emulated workload runs as many passes as its simulation, so that results compare.
        runs_as_simulated = settings.is_emulated and self._load_generator is None
        self.start_s = self.events.start_s = self.now + _BEGIN_MARGIN_S
        self.end_s = self.start_s + scenario.run.duration_s
        topology = self._actual_topology()
        rng = Random(self.seed)
        recorder_kind = LiveRecorder if settings.keeps_run else CountingRecorder
        self._recorder = recorder_kind(
            self.start_s + scenario.run.warmup_s,
            self.end_s,
            tuple(node.name for node in topology.nodes),
            keep_iterations=False,
            has_classes=bool(scenario.workload.class_names),
        )
        self._control_plane = build_control_plane(
            scenario,
            topology,
            load_generator=self._load_generator
            or build_load_generator(scenario, rng, self.start_s),
            recorder=self._recorder,
            rng=rng,
            passes_beyond_answer=None if runs_as_simulated else 0,
        )
        policy, performance = self._control_plane.policy, self._control_plane.performance
        self._show_workers_to_policies()
        self._meters = [
            LinkMeter(link, used_bandwidth(performance, policy, link)) for link in topology.links
        ]
        sender = None
        if settings.is_emulated and performance.sending is not None:
            nic_bytes_per_s = topology.coordinator_nic.outbound_bytes_per_s
            sender = EmulatedSender(performance.sending, nic_bytes_per_s, "coordinator")
        self._links = {
            link.target: OutgoingLink(
                used_bandwidth(performance, policy, link),
                link.latency_s,
                link.bytes_per_token,
                is_emulated=settings.is_emulated,
                sender=sender,
            )
            for link in topology.outgoing[topology.coordinator]
        }
        self.membership.send_all_peers(policy)
        self.dispatcher = Dispatcher(
            self._control_plane,
            self._recorder,
            self._transport,
            self.membership,
            self._links,
            self.events,
            settings.prompts,
            Deadlines(settings.limits, self.membership.workers, settings.time_scale),
            _EMULATED_SLACK_S * settings.time_scale if settings.is_emulated else 0.0,
        )
        dispatcher = self.dispatcher
        self.membership.next_key = lambda: dispatcher.next_key
        self._timeline = Timeline(self)
        if settings.keeps_run:
            self._next_sample_s = self.start_s

    def _show_workers_to_policies(self) -> None:
        """Make the last heartbeats of workers the policies' view of the nodes."""
        workers, coordinator = self.membership.workers, self.coordinator

        def held_kv_tokens(node: int) -> int:
            return held_token_layers(coordinator.active, len(workers))[node]

        for worker in workers:
            worker.held_kv_tokens = held_kv_tokens
        self._control_plane.view.nodes = workers

    def _actual_topology(self) -> Topology:
        """The topology with the KV caches that the workers reported."""
        if self._settings.is_emulated:
            return self._planned
        nodes = tuple(
            replace(
                worker.placed,
                capacity=replace(
                    worker.placed.capacity,
                    kv_token_layers=worker.kv_blocks
                    * worker.block_tokens
                    * worker.placed.num_layers,
                ),
            )
            for worker in self.membership.workers
        )
        return replace(self._planned, nodes=nodes)

    def run_workload(self, on_wait: Callable[[], None] | None = None) -> None:
        """Serve the scenario's workload until its end or, with `drain`, that of all requests."""
        while not self.stopping:
            if on_wait is not None:
                on_wait()
            if self.now >= self.end_s and not (self.scenario.run.drain and not self.is_idle):
                return
            self.poll_once()

    @property
    def is_idle(self) -> bool:
        """Whether no request is active, waiting or still to arrive."""
        coordinator = self.coordinator
        assert self.dispatcher is not None
        return not (coordinator.active or coordinator.waiting or self.dispatcher.expects_arrivals)

    def result(self) -> RunResult:
        """The results of the run."""
        self._sample()
        self.recorder.finish(self.coordinator.active, self.coordinator.waiting)
        result = RunResult.of(self, self._timeline, interrupted=self.stopping)
        if self._other_front_ends:
            result.summary["warnings"].append(
                f"all requests entered at {self.topology.name(self.topology.coordinator)}: this "
                f"run had no use for the scenario's other front ends "
                f"({', '.join(self._other_front_ends)}), which a simulation has"
            )
        if self.lag_s > _LAG_WARNING_S:
            result.summary["warnings"].append(
                f"the coordinator or a worker was {self.lag_s:.2f} s late: the machine is too slow "
                "for this run; use a lower --time-scale"
            )
        return result

    def about(self) -> dict[str, Any]:
        """Facts about the cluster, for the manifest of the results."""
        return {
            "emulated": self._settings.is_emulated,
            "time_scale": self._clock.scale,
            "greatest_lag_s": self.lag_s,
            "messages_refused": self._transport.num_refused
            + sum(worker.num_refused for worker in self.membership.workers),
            "restarts": self.coordinator.num_restarts,
            "nodes": {
                worker.name: {
                    "engine": worker.engine,
                    "address": worker.address,
                    "kv_blocks": worker.kv_blocks,
                    "block_tokens": worker.block_tokens,
                }
                for worker in self.membership.workers
            },
        }

    def close(self, reason: str = "the run has ended") -> None:
        """Shut down all workers."""
        self.membership.shut_down_all(reason)
        self._transport.flush()

    # -- the loop ----------------------------------------------------------------------------

    def watch(self, source: int | zmq.Socket[bytes], act: Callable[[], None]) -> None:
        """Call a function, in the loop's thread, whenever a file or a socket is readable."""
        self._watched[source] = act
        self._poller.register(source, zmq.POLLIN)

    def poll_once(self) -> None:
        """Wait for a message or the next due time, and process both."""
        due = self._next_sample_s
        if self.dispatcher is not None:
            due = min(due, self.dispatcher.next_due_s())
        wait_ms = min(max((due - self.now) / self._clock.scale * 1000, 0), _MAX_WAIT_MS)
        for source, _ in self._poller.poll(ceil(wait_ms)):
            self._watched.get(source, self._receive)()
        now = self.now
        paused_s = self.membership.check_liveness(time.monotonic())
        if self.dispatcher is None:
            return
        if paused_s:
            self.dispatcher.excuse(paused_s * self._clock.scale, now)
        self._report_changes(self.dispatcher, now)
        self.dispatcher.process(now)
        self.dispatcher.check_deadlines(now)
        if now >= self._next_sample_s:
            self._next_sample_s += self.scenario.run.sample_interval_s
            self._sample()

    def _report_changes(self, dispatcher: Dispatcher, now: float) -> None:
        """Report lost and recovered nodes and links to the dispatcher."""
        membership = self.membership
        has_changed = bool(membership.lost_nodes or membership.recovered_nodes)
        while membership.lost_nodes:
            dispatcher.node_lost(membership.lost_nodes.pop(0), now)
        while membership.recovered_nodes:
            node = membership.recovered_nodes.pop(0)
            logger.warning("%s is available again", membership.workers[node].name)
            dispatcher.worker_joined(node)
            dispatcher.node_recovered(node, now)
        cut = membership.cut_links
        if has_changed or cut != self._cut:
            self._report_links(cut)
            dispatcher.links_cut(cut, now)

    def _report_links(self, cut: frozenset[tuple[int, int]]) -> None:
        name, before, self._cut = self.membership.name_of, self._cut, cut
        for source, target in sorted(cut - before):
            logger.warning("%s does not hear %s: routes avoid the link", name(target), name(source))
        for source, target in sorted(before - cut):
            logger.warning("%s hears %s again", name(target), name(source))

    def _sample(self) -> None:
        topology = self.topology
        for worker in self.membership.workers:
            outgoing = topology.outgoing[worker.placed.index]
            reported = zip(outgoing, worker.sent_bytes, worker.sent_requests, strict=False)
            for link, num_bytes, num_requests in reported:
                self._meters[link.index].num_bytes = num_bytes
                self._meters[link.index].num_requests = num_requests
        for link in topology.outgoing[topology.coordinator]:
            own = self._links[link.target]
            self._meters[link.index].num_bytes = own.num_bytes
            self._meters[link.index].num_requests = own.num_requests
        self._timeline.sample()

    # -- messages ----------------------------------------------------------------------------

    def _receive(self) -> None:
        for message, _ in self._transport.received(_MESSAGES_AT_ONCE):
            try:
                self._handle(message)
            except (ValueError, InputError) as error:
                self._transport.refuse(f"{type(message).__name__}: {error}")

    def _handle(self, message: messages.AnyMessage) -> None:
        dispatcher = self.dispatcher
        match message:
            case messages.Done() if dispatcher is not None:
                dispatcher.passes_done(message, self.now)
            case messages.Heartbeat():
                self._on_heartbeat(message)
            case messages.Hello():
                self.membership.on_hello(message)
            case messages.Ready():
                self.membership.on_ready(message)
            case messages.Failure() if dispatcher is None or not message.keys:
                self.membership.on_failure(message)
            case messages.Failure():
                assert dispatcher is not None
                name = self.membership.name_of(message.sender)
                dispatcher.requests_failed(message.keys, f"{name}: {message.reason}", self.now)
            case messages.OutOfBlocks() if dispatcher is not None:
                dispatcher.requests_preempted(message.keys, self.now)
            case messages.Stop():
                logger.warning("received a stop message")
                self.stopping = True
            case _:
                raise ValueError("is not expected by the coordinator in this state")

    def _on_heartbeat(self, heartbeat: messages.Heartbeat) -> None:
        worker = self.membership.on_heartbeat(heartbeat)
        if worker is None or self.dispatcher is None or not heartbeat.transits:
            return
        incoming = self.topology.incoming[worker.placed.index]
        link_from = {link.source: link.index for link in incoming}
        for transit in heartbeat.transits:
            if transit.source in link_from:
                self._control_plane.view.measured(link_from[transit.source], transit.seconds)

"""A running cluster, from the coordinator's side.

What becomes of requests is decided by :class:`helixsim.control.coordinator.Coordinator`; this
carries its decisions out over sockets, and measures as the simulator does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from typing import Any

import zmq

from helixreal.coordinator.attempts import PromptMaker, blank_prompts
from helixreal.coordinator.dispatcher import LiveRecorder, Traffic
from helixreal.coordinator.events import EventLog
from helixreal.coordinator.membership import Roster, RosterSettings
from helixreal.coordinator.worker_handle import LinkMeter, Member
from helixreal.net import messages as wire
from helixreal.net.clock import Clock
from helixreal.net.outgoing_link import OutgoingLink
from helixreal.net.transport import Transport
from helixsim.control.control_plane import ControlPlane, build_control_plane, placed_topology
from helixsim.control.coordinator import Coordinator
from helixsim.control.load import LoadGenerator
from helixsim.control.routing import POLICIES, Policy
from helixsim.control.routing.policy import HopPolicy, RoutingPoint
from helixsim.errors import InputError
from helixsim.metrics.recorder import RunRecorder
from helixsim.metrics.result import RunResult
from helixsim.metrics.timeline import Timeline
from helixsim.physics import PHYSICS_PROFILES
from helixsim.placement.flow import Flow
from helixsim.placement.topology import Topology
from helixsim.requests import Request
from helixsim.scenario.resolved import Scenario

logger = logging.getLogger(__name__)

_MAX_WAIT_MS = 100
_MESSAGES_AT_ONCE = 500
_BEGIN_MARGIN_S = 0.2
_EMULATED_SLACK_S = 0.02
_GREAT_LAG_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How a cluster is run.

    Attributes
    ----------
    is_emulated
        Whether its workers only wait, as long as the paper's physics has them compute.
    time_scale
        Seconds of the run per second by the clock.
    roster
        How nodes are looked after.
    prompts
        Makes the prompts of the scenario's workload, of which only lengths are known.
    max_context_tokens
        No request gets longer.
    """

    is_emulated: bool = True
    time_scale: float = 1.0
    roster: RosterSettings = field(default_factory=RosterSettings)
    prompts: PromptMaker = blank_prompts
    max_context_tokens: int = 1_000_000


class Cluster:
    """Gathers workers, sends requests through them, and measures; used from one thread.

    It is a :class:`helixsim.metrics.gauges.MeasuredRun`: results are made as those of a simulation.

    Parameters
    ----------
    scenario
        What is run; it must have a placement.
    transport
        The coordinator's sockets.
    settings
        How it is run.
    load_generator
        Who sends requests, if not the scenario's workload.

    Attributes
    ----------
    start_s, end_s
        When feeding begins and ends.
    stopping
        Whether the run is to end now; may be set from anywhere.
    traffic
        The requests, once the cluster has begun.
    """

    def __init__(
        self,
        scenario: Scenario,
        transport: Transport,
        settings: ClusterSettings,
        *,
        load_generator: LoadGenerator | None = None,
    ) -> None:
        self.scenario = scenario
        self.seed = scenario.run.seed
        self.start_s = self.end_s = 0.0
        self.stopping = False
        self._settings = settings
        self._transport = transport
        self._load_generator = load_generator
        self._planned = placed_topology(scenario)
        self._clock = Clock(settings.time_scale)
        routing_point = POLICIES[scenario.scheduler.policy].routing_point
        self.roster = Roster(
            self._planned,
            transport,
            self._clock,
            settings.roster,
            settings.max_context_tokens,
            reports_transits=routing_point is RoutingPoint.HOP,
        )
        self.events = EventLog()
        self.traffic: Traffic | None = None
        self._brain: ControlPlane
        self._timeline: Timeline
        self._links: dict[int, OutgoingLink] = {}
        self._meters: list[LinkMeter] = []
        self._next_sample_s = inf
        self._on_wake: Callable[[], None] | None = None
        self._wake_file = -1
        self._poller = zmq.Poller()
        self._poller.register(transport.inbox, zmq.POLLIN)

    # -- what metrics look at ----------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        """Nodes and links, with the capacities that there really are."""
        return self._brain.topology

    @property
    def flow(self) -> Flow:
        """The maximum flow."""
        return self._brain.flow

    @property
    def policy(self) -> Policy:
        """What finds routes."""
        return self._brain.policy

    @property
    def coordinator(self) -> Coordinator:
        """What decides."""
        return self._brain.coordinator

    @property
    def recorder(self) -> RunRecorder:
        """What has been recorded."""
        return self._brain.recorder

    @property
    def gpus(self) -> Sequence[Member]:
        """For every node, its gauges."""
        return self.roster.members

    @property
    def links(self) -> Sequence[LinkMeter]:
        """For every link, its gauges."""
        return self._meters

    @property
    def now(self) -> float:
        """The time of the run."""
        return self._clock.now()

    @property
    def address(self) -> str:
        """Where the coordinator is reached."""
        return self._transport.address

    @property
    def lag_s(self) -> float:
        """The longest that anybody was late, by the clock."""
        own = self.traffic.lag_s / self._clock.scale if self.traffic is not None else 0.0
        return max(own, *(member.lag_s for member in self.roster.members))

    # -- from the beginning to the end ---------------------------------------------------------

    def gather(self, look: Callable[[list[str]], None] | None = None) -> None:
        """Wait until every node works.

        Parameters
        ----------
        look
            Called now and then with the names of those that are missing; it may raise.

        Raises
        ------
        HelixError
            If an engine cannot be loaded.
        """
        while (missing := self.roster.absent) and not self.stopping:
            if look is not None:
                look(missing)
            self.turn()

    @property
    def has_begun(self) -> bool:
        """Whether requests may come."""
        return self.traffic is not None

    def begin(self) -> None:
        """Build what decides, from what the workers really have, and let requests come."""
        settings, scenario = self._settings, self.scenario
        beyond = 0
        if settings.is_emulated and self._load_generator is None:
            # To be compared with a simulation, it runs as many passes.
            beyond = PHYSICS_PROFILES[scenario.physics].passes_beyond_answer
        self.start_s = self.events.start_s = self.now + _BEGIN_MARGIN_S
        self.end_s = self.start_s + scenario.run.duration_s
        self._brain = build_control_plane(
            scenario,
            self._found_topology(),
            seed=self.seed,
            start_s=self.start_s,
            passes_beyond_answer=beyond,
            load_generator=self._load_generator,
            make_recorder=LiveRecorder,
        )
        topology, policy = self._brain.topology, self._brain.policy
        self._meters = [
            LinkMeter(link, float(policy.link_bandwidth(link))) for link in topology.links
        ]
        self._links = {
            link.target: OutgoingLink(
                float(policy.link_bandwidth(link)),
                link.latency_s,
                link.bytes_per_token,
                is_emulated=settings.is_emulated,
            )
            for link in topology.outgoing[topology.coordinator]
        }
        self.roster.introduce_all(policy)
        self.traffic = Traffic(
            self._brain,
            self._transport,
            self.roster,
            self._links,
            self.events,
            settings.prompts,
            _EMULATED_SLACK_S * settings.time_scale if settings.is_emulated else 0.0,
        )
        self._timeline = Timeline(self)
        self._next_sample_s = self.start_s

    def _found_topology(self) -> Topology:
        """The topology with the KV caches that the workers reported."""
        if self._settings.is_emulated:
            return self._planned
        nodes = tuple(
            replace(
                member.placed,
                capacity=replace(
                    member.placed.capacity,
                    kv_token_layers=member.kv_blocks
                    * member.block_tokens
                    * member.placed.num_layers,
                ),
            )
            for member in self.roster.members
        )
        return replace(self._planned, nodes=nodes)

    def run_workload(self, look: Callable[[], None] | None = None) -> None:
        """Let the scenario's workload come until its end, and all of it end if it drains."""
        while not self.stopping:
            if look is not None:
                look()
            if self.now >= self.end_s and not (self.scenario.run.drain and not self.is_idle):
                return
            self.turn()

    @property
    def is_idle(self) -> bool:
        """Whether nobody is being served, waits, or is still to come."""
        coordinator = self.coordinator
        assert self.traffic is not None
        return not (coordinator.active or coordinator.waiting or self.traffic.expects_arrivals)

    def result(self) -> RunResult:
        """What the run has measured."""
        self._sample()
        self.recorder.finish(self.coordinator.active, self.coordinator.waiting)
        result = RunResult.of(self, self._timeline, interrupted=self.stopping)
        if self.lag_s > _GREAT_LAG_S:
            result.summary["warnings"].append(
                f"something was done {self.lag_s:.2f} s too late: the machine cannot keep up; "
                "take a lower --time-scale"
            )
        return result

    def about(self) -> dict[str, Any]:
        """What the run was made of, for its manifest."""
        return {
            "emulated": self._settings.is_emulated,
            "time_scale": self._clock.scale,
            "greatest_lag_s": self.lag_s,
            "messages_refused": self._transport.num_refused
            + sum(member.num_refused for member in self.roster.members),
            "restarts": self.coordinator.num_restarts,
            "nodes": {
                member.name: {
                    "engine": member.engine,
                    "address": member.address,
                    "kv_blocks": member.kv_blocks,
                    "block_tokens": member.block_tokens,
                }
                for member in self.roster.members
            },
        }

    def close(self, reason: str = "the run has ended") -> None:
        """Send the workers home."""
        self.roster.say_farewell(reason)
        self._transport.flush()

    # -- the loop ----------------------------------------------------------------------------

    def wake_by(self, file: int, act: Callable[[], None]) -> None:
        """Call something whenever a pipe becomes readable; what is in it is thrown away."""
        self._wake_file, self._on_wake = file, act
        self._poller.register(file, zmq.POLLIN)

    def turn(self) -> None:
        """Wait for what comes next, and do it."""
        due = self._next_sample_s
        if self.traffic is not None:
            due = min(due, self.traffic.next_due_s())
        wait_ms = min(max((due - self.now) / self._clock.scale * 1000, 0), _MAX_WAIT_MS)
        for file, _ in self._poller.poll(ceil(wait_ms)):
            if file == self._wake_file:
                os.read(self._wake_file, 4096)
            else:
                self._receive()
        if self._on_wake is not None:
            self._on_wake()
        now = self.now
        self.roster.look(time.monotonic())
        if self.traffic is None:
            return
        self._on_changes(self.traffic, now)
        self.traffic.process(now)
        if now >= self._next_sample_s:
            self._next_sample_s += self.scenario.run.sample_interval_s
            self._sample()

    def _on_changes(self, traffic: Traffic, now: float) -> None:
        """Carry on without nodes that were lost, and with those that are back."""
        roster = self.roster
        while roster.lost:
            traffic.lost(roster.lost.pop(0), now)
        while roster.back:
            node = roster.back.pop(0)
            logger.warning("%s is back", roster.members[node].name)
            traffic.found(node, now)

    def _sample(self) -> None:
        topology = self.topology
        for member in self.roster.members:
            outgoing = topology.outgoing[member.placed.index]
            reported = zip(outgoing, member.sent_bytes, member.sent_requests, strict=False)
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

    def _handle(self, message: wire.AnyMessage) -> None:
        traffic = self.traffic
        match message:
            case wire.Done() if traffic is not None:
                traffic.back(message, self.now)
            case wire.Beat():
                self._on_beat(message)
            case wire.Hello():
                self.roster.on_hello(message)
            case wire.Ready():
                self.roster.on_ready(message)
            case wire.Trouble() if traffic is None or not message.keys:
                self.roster.on_trouble(message)
            case wire.Trouble():
                assert traffic is not None
                name = self.roster.name_of(message.sender)
                traffic.fail(message.keys, f"{name}: {message.reason}", self.now)
            case wire.NoRoom() if traffic is not None:
                traffic.no_room(message.keys, self.now)
            case wire.Stop():
                logger.warning("asked to stop")
                self.stopping = True
            case _:
                raise ValueError("is not for the coordinator, or not yet")

    def _on_beat(self, beat: wire.Beat) -> None:
        member = self.roster.on_beat(beat)
        if member is None or self.traffic is None or not beat.transits:
            return
        if self.policy.routing_point is not RoutingPoint.HOP:
            return
        policy: HopPolicy = self.policy  # type: ignore[assignment]
        incoming = self.topology.incoming[member.placed.index]
        link_from = {link.source: link.index for link in incoming}
        for transit in beat.transits:
            if transit.source in link_from:
                learned = Request(0, 0.0, 1, 1, last_iteration=0)
                learned.via_link = link_from[transit.source]
                learned.sent_s = transit.at_s - transit.seconds
                policy.transited([learned], transit.at_s)

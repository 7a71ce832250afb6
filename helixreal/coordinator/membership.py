"""Who is there: workers join in any order, are told what to hold, and are missed when silent."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from helixreal.coordinator.worker_handle import Member, State
from helixreal.net import messages as wire
from helixreal.net.clock import Clock, this_host
from helixreal.net.transport import Transport
from helixreal.worker.emulation import curve_of, limits_of
from helixsim.control.routing import Policy
from helixsim.errors import HelixError, InputError
from helixsim.placement.topology import Topology

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterSettings:
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


class Roster:
    """The nodes of a placement, and the workers that stand for them.

    Parameters
    ----------
    topology
        Nodes and links of the scenario.
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
    members
        For every node, in order.
    lost, back
        Numbers of nodes that were lost, and of such that work again, since somebody last looked.
    """

    def __init__(
        self,
        topology: Topology,
        transport: Transport,
        clock: Clock,
        settings: RosterSettings,
        max_context_tokens: int,
        *,
        reports_transits: bool,
    ) -> None:
        self._topology = topology
        self._transport = transport
        self._clock = clock
        self._settings = settings
        self._max_context_tokens = max_context_tokens
        self._reports_transits = reports_transits
        self._policy: Policy | None = None
        self._by_name = {node.name: node.index for node in topology.nodes}
        self._next_alive_s = 0.0
        self.members = [Member(node) for node in topology.nodes]
        self.lost: list[int] = []
        self.back: list[int] = []

    @property
    def absent(self) -> list[str]:
        """Names of the nodes that do not work."""
        return [member.name for member in self.members if member.state is not State.READY]

    def name_of(self, node: int) -> str:
        """The name of a node, by its number.

        Raises
        ------
        ValueError
            If there is no such node.
        """
        if node >= len(self.members):
            raise ValueError(f"there is no node {node}")
        return self.members[node].name

    # -- joining -----------------------------------------------------------------------------

    def on_hello(self, hello: wire.Hello) -> None:
        """Welcome a worker.

        Raises
        ------
        ValueError
            If its node is not part of this placement.
        """
        index = self._by_name.get(hello.node)
        if index is None:
            raise ValueError(f"node '{hello.node}' holds no layers in this placement")
        member = self.members[index]
        if member.state in (State.READY, State.LOADING):
            # Its own, until it hears from us; or another worker's, for which there is no place
            # until this one has gone silent.
            return
        member.begin(hello)
        try:
            self._transport.connect(member.name, member.address)
        except InputError as error:
            raise ValueError(str(error)) from error
        self._transport.send(member.name, self._welcome(member, hello))

    def _welcome(self, member: Member, hello: wire.Hello) -> wire.Welcome:
        topology, placed = self._topology, member.placed
        entries = {link.entry_layer for link in topology.incoming[placed.index]}
        emulated = hello.engine == "emulated"
        return wire.Welcome(
            node=placed.index,
            home=topology.coordinator,
            llm=topology.llm.name,
            start_layer=placed.start_layer,
            end_layer=placed.end_layer,
            num_layers=topology.llm.num_layers,
            entry_layers=sorted({placed.start_layer, *entries}),
            limits=limits_of(placed.capacity),
            prefill=curve_of(placed.profile.prefill),
            decode=curve_of(placed.profile.decode),
            activation_bytes_per_token=topology.llm.activation_bytes_per_token,
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

    def on_ready(self, ready: wire.Ready) -> None:
        """Take note that a worker has loaded its layers."""
        member = self._member(ready.node, ready.incarnation)
        if member is None or member.state is not State.LOADING:
            return
        member.state = State.READY
        member.heard_s = time.monotonic()
        member.kv_blocks, member.block_tokens = ready.kv_blocks, ready.block_tokens
        if self._policy is not None:
            self._introduce(member, self._policy)
            self.back.append(member.placed.index)

    def introduce_all(self, policy: Policy) -> None:
        """Tell all workers where the others are; from now on whoever joins is told, too."""
        self._policy = policy
        for member in self.members:
            self._transport.send(member.name, self._peers(member, policy))

    def _introduce(self, member: Member, policy: Policy) -> None:
        """Tell a worker that has come back where the others are, and them where it is."""
        self._transport.send(member.name, self._peers(member, policy))
        peer = wire.Peer(member.placed.index, member.name, member.address)
        for link in self._topology.incoming[member.placed.index]:
            if link.source != self._topology.coordinator:
                self._transport.send(self.members[link.source].name, wire.Peers([peer], []))

    def _peers(self, member: Member, policy: Policy) -> wire.Peers:
        topology = self._topology
        outgoing = topology.outgoing[member.placed.index]
        others = [self.members[link.target] for link in outgoing if link.target < len(self.members)]
        return wire.Peers(
            [
                wire.Peer(other.placed.index, other.name, other.address)
                for other in others
                if other.state is State.READY
            ],
            [
                wire.OutLink(
                    link.target,
                    float(policy.link_bandwidth(link)),
                    link.latency_s,
                    link.bytes_per_token,
                )
                for link in outgoing
            ],
        )

    # -- being there -------------------------------------------------------------------------

    def on_beat(self, beat: wire.Beat) -> Member | None:
        """Take what a worker reports; None if it is not one of ours any more."""
        member = self._member(beat.node, beat.incarnation)
        if member is None:
            return None
        member.take(beat)
        return member

    def _member(self, node: int, incarnation: str) -> Member | None:
        if node >= len(self.members):
            raise ValueError(f"there is no node {node}")
        member = self.members[node]
        return member if member.incarnation == incarnation else None

    def look(self, clock_s: float) -> None:
        """See who is missing, and say that the coordinator is there."""
        for member in self.members:
            if member.state not in (State.READY, State.LOADING):
                continue
            silent_s = clock_s - member.heard_s
            if silent_s > self._settings.missing_s:
                logger.warning("%s has been silent for %.1f s", member.name, silent_s)
                self._lose(member)
            elif member.state is State.READY and member.stuck_s > self._settings.stuck_s:
                logger.warning("%s has been at one batch for %.1f s", member.name, member.stuck_s)
                self._transport.send(member.name, wire.Farewell("it was stuck"))
                self._lose(member)
        if clock_s >= self._next_alive_s:
            self._next_alive_s = clock_s + self._settings.heartbeat_s
            for member in self.members:
                if member.state in (State.READY, State.LOADING):
                    self._transport.send(member.name, wire.Alive())

    def _lose(self, member: Member) -> None:
        if member.state is State.READY:
            self.lost.append(member.placed.index)
        member.lose()

    def on_trouble(self, trouble: wire.Trouble) -> None:
        """Hear that an engine cannot be loaded.

        Raises
        ------
        HelixError
            If the cluster does not run yet: it cannot begin without that node.
        """
        if trouble.sender >= len(self.members):
            raise ValueError(f"there is no node {trouble.sender}")
        member = self.members[trouble.sender]
        if member.state is not State.LOADING:
            return
        member.lose()
        if self._policy is None:
            raise HelixError(f"{member.name}: {trouble.reason}")
        logger.error("%s: %s", member.name, trouble.reason)

    def say_farewell(self, reason: str) -> None:
        """End all workers."""
        for member in self.members:
            if member.state is not State.ABSENT:
                self._transport.send(member.name, wire.Farewell(reason))

"""What the coordinator tells a worker that joins: its assignment, and where its peers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from helixreal.coordinator.worker_handle import State, WorkerHandle
from helixreal.net import messages
from helixreal.net.clock import Clock, this_host
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
from helixsim.physics.performance_model import PerformanceModel
from helixsim.placement.topology import Topology
from helixsim.placement.ways_back import way_back
from helixsim.scenario.resolved import Scenario

if TYPE_CHECKING:
    from helixsim.placement.topology import PlacedLink, PlacedNode


def used_bandwidth(performance: PerformanceModel, policy: Policy, link: PlacedLink) -> float:
    """Bandwidth of a link for emulated transfers, in bytes per second.

    Messages use the whole bandwidth; links of the published simulator the policy's share of it.
    """
    if performance.sending is not None:
        return link.bandwidth_bytes_per_s
    return float(policy.link_bandwidth(link))


class Introductions:
    """Makes the messages that a worker needs before it can take passes.

    Parameters
    ----------
    scenario, topology, clock
        The scenario of the run, nodes and links of its placement, and the time of the run.
    session
        Identifies this run of the coordinator.
    heartbeat_s, missing_s
        Interval of heartbeats, and the silence after which a process counts as lost.
    max_context_tokens
        Limit of the tokens of a request.
    reports_transits
        Whether workers report transit times of passes.
    """

    def __init__(
        self,
        scenario: Scenario,
        topology: Topology,
        clock: Clock,
        session: int,
        heartbeat_s: float,
        missing_s: float,
        max_context_tokens: int,
        *,
        reports_transits: bool,
    ) -> None:
        self._scenario = scenario
        self._performance = performance_model(scenario)
        self._topology = topology
        self._clock = clock
        self._session = session
        self._heartbeat_s, self._missing_s = heartbeat_s, missing_s
        self._max_context_tokens = max_context_tokens
        self._reports_transits = reports_transits
        self._loops = decodes_loop(NODE_SCHEDULERS.get(node_scheduler_name(scenario)))
        limits = step_composition(scenario, topology)
        self._composition = None
        if limits is not None:
            num_stages = mean_stages(topology, followed_flow(scenario, topology))
            self._composition = composition_message(limits, num_stages)

    def assignment(
        self, worker: WorkerHandle, hello: messages.Hello, first_key: int, clock_s: float
    ) -> messages.Assignment:
        """The assignment of a worker, sent at this time by the monotonic clock.

        Passes with keys below `first_key` are not meant for it.
        """
        topology, placed = self._topology, worker.placed
        entries = {link.entry_layer for link in topology.incoming[placed.index]}
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
            heartbeat_s=self._heartbeat_s,
            missing_s=self._missing_s,
            time_scale=self._clock.scale,
            now_s=self._clock.now(),
            clock_s=clock_s,
            host=this_host(),
            emulate_links=hello.engine == "emulated",
            report_transits=self._reports_transits,
            operators=operators_json(placed.profile.operators),
            composition=self._composition,
            session=self._session,
            incarnation=hello.incarnation,
            first_key=first_key,
        )

    def peers(
        self, worker: WorkerHandle, policy: Policy, workers: Sequence[WorkerHandle]
    ) -> messages.Peers:
        """The links that leave a worker's node, and the addresses of the peers that are ready."""
        topology, network = self._topology, self._scenario.cluster.network
        outgoing = topology.outgoing[worker.placed.index]
        firsts = self.ways_back_from(worker.placed)
        ways = [way_back(topology, network, worker.placed.index, first) for first in firsts]
        targets = [link.target for link in outgoing if link.target < len(workers)]
        others = [workers[target] for target in dict.fromkeys([*targets, *firsts])]
        return messages.Peers(
            [as_peer(other) for other in others if other.state is State.READY],
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

    def ways_back_from(self, node: PlacedNode) -> list[int]:
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

    def watched_pairs(self) -> list[tuple[int, int]]:
        """The nodes that send to one another, passes or tokens: (source, target)."""
        pairs: list[tuple[int, int]] = []
        for node in self._topology.nodes:
            by_link, by_way_back = self.senders_to(node.index)
            pairs += [(source, node.index) for source in dict.fromkeys((*by_link, *by_way_back))]
        return pairs

    def senders_to(self, node: int) -> tuple[list[int], list[int]]:
        """The nodes with a link to a node, and the nodes with a way back to it."""
        nodes, coordinator = self._topology.nodes, self._topology.coordinator
        by_link = [
            link.source for link in self._topology.incoming[node] if link.source != coordinator
        ]
        by_way_back = [last.index for last in nodes if node in self.ways_back_from(last)]
        return by_link, by_way_back


def as_peer(worker: WorkerHandle) -> messages.Peer:
    """A worker as its peers know it."""
    return messages.Peer(worker.placed.index, worker.name, worker.address)

"""Nodes that die and come back.

Nothing else in the models knows of faults. When a node dies, its model stops and forgets; when
the coordinator gives requests up, they are taken out of wherever they are, so that no model ever
meets an attempt that is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from helixsim.control.coordinator import Coordinator
from helixsim.control.routing import Policy
from helixsim.models.coordinator_node import CoordinatorNode
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.parts import LinkModel, NodeModel
from helixsim.placement.topology import Topology
from helixsim.requests import Request
from helixsim.scenario.resolved import Fault, Faults


class FaultInjector:
    """Lets nodes die and come back at their times.

    Parameters
    ----------
    environment
        Where time passes.
    topology, gpus, links, host
        The models.
    coordinator, policy
        What decides.
    detection_s
        How long after a node's death the coordinator learns of it.
    """

    def __init__(
        self,
        environment: ExactEnvironment,
        topology: Topology,
        gpus: Sequence[NodeModel],
        links: Sequence[LinkModel],
        host: CoordinatorNode,
        coordinator: Coordinator,
        policy: Policy,
        detection_s: float,
    ) -> None:
        self._environment = environment
        self._topology = topology
        self._gpus = gpus
        self._links = links
        self._host = host
        self._coordinator = coordinator
        self._policy = policy
        self._detection_s = detection_s

    def plan(self, faults: Faults, start_s: float) -> None:
        """Let faults happen, at their times from `start_s` on."""
        numbers = {node.name: node.index for node in self._topology.nodes}
        for fault in faults.events:
            die = partial(self._die, numbers[fault.node], fault)
            ReusableEvent(self._environment, die).set(start_s + fault.at_s, 0.0)

    def _die(self, node: int, fault: Fault) -> None:
        now = self._environment.now
        self._gpus[node].die(now)
        noticed_s = now + self._detection_s
        if fault.duration_s is not None:
            placed, llm = self._topology.nodes[node], self._topology.llm
            loading_s = placed.num_layers * llm.layer_bytes / placed.disk_bytes_per_s
            back_s = now + fault.duration_s + loading_s
            # A node that is back before anybody has missed it says itself that it was away.
            noticed_s = min(noticed_s, back_s)
            ReusableEvent(self._environment, partial(self._come_back, node)).set(back_s, now)
        ReusableEvent(self._environment, partial(self._lose, node)).set(noticed_s, 0.0)

    def _lose(self, node: int) -> None:
        """Let the coordinator learn that a node is dead."""
        now = self._environment.now
        self._host.catch_up(now)
        disruption = self._coordinator.node_lost(node, now)
        gone = frozenset(disruption.abandoned)
        self._host.keep(lambda request: request not in gone)
        for gpu in self._gpus:
            gpu.keep(lambda request: request not in gone)
        self._go_on(disruption.restarted, now)

    def _come_back(self, node: int) -> None:
        now = self._environment.now
        self._host.catch_up(now)
        self._gpus[node].revive(now)
        self._go_on(self._coordinator.node_back(node, now), now)

    def _go_on(self, requests: list[Request], now: float) -> None:
        for link in self._links:
            link.use_bandwidth(self._policy.link_bandwidth(link.placed))
        self._host.send(requests, now)

"""Nodes that fail and recover.

Nothing else in the models knows of faults. When a node fails, its model stops and forgets; when
the coordinator abandons requests, they are dropped wherever they are, so that no model ever meets
an attempt that is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from helixsim.control.actions import Event, NodeLost, NodeRecovered
from helixsim.control.coordinator import Coordinator
from helixsim.control.routing import Policy
from helixsim.models.build import Models
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.placement.topology import Topology
from helixsim.scenario.resolved import Fault


class FaultInjector:
    """Lets nodes fail and recover at their times.

    Parameters
    ----------
    environment
        Where time passes.
    topology, models
        Nodes and links, and what simulates them.
    coordinator, policy
        What decides.
    detection_s
        How long after a node's failure the coordinator learns of it.
    """

    def __init__(
        self,
        environment: ExactEnvironment,
        topology: Topology,
        models: Models,
        coordinator: Coordinator,
        policy: Policy,
        detection_s: float,
    ) -> None:
        self._environment = environment
        self._topology = topology
        self._models = models
        self._coordinator = coordinator
        self._policy = policy
        self._detection_s = detection_s

    def plan(self, faults: Sequence[Fault], start_s: float) -> None:
        """Let faults happen, at their times from `start_s` on."""
        numbers = {node.name: node.index for node in self._topology.nodes}
        for fault in faults:
            fail = partial(self._fail, numbers[fault.node], fault)
            ReusableEvent(self._environment, fail).schedule(start_s + fault.at_s, 0.0)

    def _fail(self, node: int, fault: Fault) -> None:
        now = self._environment.now
        self._models.nodes[node].fail(now)
        noticed_s = now + self._detection_s
        if fault.duration_s is not None:
            placed, llm = self._topology.nodes[node], self._topology.llm
            loading_s = placed.num_layers * llm.layer_bytes / placed.disk_bytes_per_s
            back_s = now + fault.duration_s + loading_s
            # A node that is back before it was missed reports by itself that it was away.
            noticed_s = min(noticed_s, back_s)
            ReusableEvent(self._environment, partial(self._recover, node)).schedule(back_s, now)
        lose = partial(self._report, NodeLost(node))
        ReusableEvent(self._environment, lose).schedule(noticed_s, 0.0)

    def _recover(self, node: int) -> None:
        now = self._environment.now
        self._models.coordinator_node.catch_up(now)
        self._models.nodes[node].recover(now)
        self._report(NodeRecovered(node))

    def _report(self, event: Event) -> None:
        """Let the coordinator learn of it; links follow the new flow before anything is sent."""
        now = self._environment.now
        coordinator_node = self._models.coordinator_node
        coordinator_node.catch_up(now)
        actions = self._coordinator.handle(event, now)
        for link in self._models.links:
            link.use_bandwidth(self._policy.link_bandwidth(link.placed))
        coordinator_node.carry_out(actions, now)

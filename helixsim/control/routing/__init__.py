"""How requests find their way: one policy a module, named here.

To add a policy, write its module and name it in :data:`POLICIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from helixsim.control.routing.maxflow import MaxFlowPolicy
from helixsim.control.routing.policy import Policy, PolicyInputs, RoutingPoint
from helixsim.control.routing.random_choice import RandomPolicy
from helixsim.control.routing.shortest_queue import ShortestQueuePolicy
from helixsim.control.routing.swarm import SwarmPolicy


class PolicyMaker(Protocol):
    """Makes a policy; a policy's class is one."""

    routing_point: RoutingPoint

    def __call__(self, inputs: PolicyInputs) -> Policy:
        """Make it."""
        ...


POLICIES: Mapping[str, PolicyMaker] = {
    "maxflow": MaxFlowPolicy,
    "swarm": SwarmPolicy,
    "random": RandomPolicy,
    "shortest_queue": ShortestQueuePolicy,
}
"""Name in a scenario's ``scheduler.policy`` -> the policy."""

__all__ = ["POLICIES", "Policy", "PolicyInputs"]

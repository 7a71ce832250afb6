"""How requests find their way: one routing policy a module.

Register your own with :func:`helixsim.register_policy`.
"""

from __future__ import annotations

from typing import Protocol

from helixsim.control.routing.policy import Policy, PolicyInputs, RoutingPoint
from helixsim.registry import Registry


class PolicyFactory(Protocol):
    """Makes a routing policy; a policy's class is one."""

    routing_point: RoutingPoint
    needs_transits: bool

    def __call__(self, inputs: PolicyInputs) -> Policy:
        """Make it."""
        ...


POLICIES: Registry[PolicyFactory] = Registry(
    "routing policy",
    "helixsim.policies",
    {
        "maxflow": "helixsim.control.routing.maxflow:MaxFlowPolicy",
        "adaptive": "helixsim.control.routing.adaptive:AdaptivePolicy",
        "swarm": "helixsim.control.routing.swarm:SwarmPolicy",
        "random": "helixsim.control.routing.random_choice:RandomPolicy",
        "shortest_queue": "helixsim.control.routing.shortest_queue:ShortestQueuePolicy",
        "least_kv": "helixsim.control.routing.least_kv:LeastKvPolicy",
        "prefix_aware": "helixsim.control.routing.prefix_aware:PrefixAwarePolicy",
    },
    attributes=("__call__", "routing_point", "needs_transits"),
)
"""Routing policies by their name in a scenario's ``scheduler.policy``."""


def register_policy(name: str, factory: PolicyFactory) -> None:
    """Let scenarios name a routing policy as their `scheduler.policy`, in this process.

    Raises
    ------
    InputError
        If the name is taken, or is none.
    """
    POLICIES.register(name, factory)


__all__ = ["POLICIES", "Policy", "PolicyFactory", "PolicyInputs", "register_policy"]

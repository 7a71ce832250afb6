"""What a node runs next: one node scheduler a module.

Register your own with :func:`helixsim.register_node_scheduler`.
"""

from __future__ import annotations

from typing import Protocol

from helixsim.control.node_schedulers.scheduler import NodeScheduler, NodeSchedulerInputs
from helixsim.registry import Registry


class NodeSchedulerFactory(Protocol):
    """Makes a node scheduler; a class with this constructor is one.

    Attributes
    ----------
    counts_kv
        See :class:`.scheduler.NodeScheduler`.
    """

    counts_kv: bool

    def __call__(self, inputs: NodeSchedulerInputs) -> NodeScheduler:
        """Make it."""
        ...


NODE_SCHEDULERS: Registry[NodeSchedulerFactory] = Registry(
    "node scheduler",
    "helixsim.node_schedulers",
    {
        "paper": "helixsim.control.node_schedulers.paper_composed:paper_schedulers",
        "prototype": "helixsim.control.node_schedulers.prototype:PrototypeScheduler",
        "vllm": "helixsim.control.node_schedulers.vllm:vllm_schedulers",
    },
    attributes=("__call__", "counts_kv"),
)
"""Node schedulers by their name in a scenario's ``scheduler.node``."""


def decodes_loop(factory: NodeSchedulerFactory) -> bool:
    """Whether decodes go on by themselves under it, without waiting for the coordinator.

    A factory says so by an attribute of that name; without it they do not.
    """
    return bool(getattr(factory, "decodes_loop", False))


def composes_steps(factory: NodeSchedulerFactory) -> bool:
    """Whether it takes a :class:`~.composition.StepComposer`, and chunks of prefills in a stream.

    A factory says so by an attribute of that name; without it it does not.
    """
    return bool(getattr(factory, "composes_steps", False))


def register_node_scheduler(name: str, factory: NodeSchedulerFactory) -> None:
    """Let scenarios name a node scheduler as their `scheduler.node`, in this process.

    Raises
    ------
    InputError
        If the name is taken, or is none.
    """
    NODE_SCHEDULERS.register(name, factory)


__all__ = [
    "NODE_SCHEDULERS",
    "NodeScheduler",
    "NodeSchedulerFactory",
    "NodeSchedulerInputs",
    "composes_steps",
    "decodes_loop",
    "register_node_scheduler",
]

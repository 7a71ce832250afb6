"""Gauges that metrics read from a run, simulated or real: nodes, links, KV caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from helixsim.control.kv_cache import held_token_layers
from helixsim.control.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from helixsim.control.coordinator import Coordinator
    from helixsim.control.routing import Policy
    from helixsim.metrics.recorder import RunRecorder
    from helixsim.placement.flow import Flow
    from helixsim.placement.topology import PlacedLink, Topology
    from helixsim.scenario.resolved import Scenario


class NodeGauges(Protocol):
    """Gauges of a node."""

    @property
    def num_tokens(self) -> int:
        """Tokens that left its last layer so far."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches run so far."""
        ...

    @property
    def num_running(self) -> int:
        """Requests in the running batch."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests waiting for a batch."""
        ...

    @property
    def kv_used_token_layers(self) -> int | None:
        """KV blocks held by its scheduler, in tokens x layers; None if it keeps no account."""
        ...

    def busy_s(self, now: float) -> float:
        """Seconds spent computing so far."""
        ...


class LinkGauges(Protocol):
    """Gauges of a link."""

    @property
    def placed(self) -> PlacedLink:
        """The link itself."""
        ...

    @property
    def num_bytes(self) -> float:
        """Bytes carried so far."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests carried so far."""
        ...

    def busy_s(self, now: float) -> float:
        """Seconds spent sending so far."""
        ...

    def backlog_s(self, now: float) -> float:
        """Seconds needed to send what is queued."""
        ...


class MeasuredRun(Protocol):
    """A run that is in progress or has ended."""

    scenario: Scenario
    seed: int
    start_s: float
    end_s: float

    @property
    def topology(self) -> Topology:
        """Nodes and links."""
        ...

    @property
    def flow(self) -> Flow:
        """The maximum flow over the topology."""
        ...

    @property
    def policy(self) -> Policy:
        """The policy that finds routes."""
        ...

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator."""
        ...

    @property
    def recorder(self) -> RunRecorder:
        """The records of requests and passes."""
        ...

    @property
    def nodes(self) -> Sequence[NodeGauges]:
        """The gauges of every node, in order."""
        ...

    @property
    def links(self) -> Sequence[LinkGauges]:
        """The gauges of every link, in order."""
        ...

    @property
    def now(self) -> float:
        """The time, in seconds."""
        ...


def has_prefix_cache(run: MeasuredRun) -> bool:
    """Whether a node finds KV blocks of earlier requests again.

    Only nodes that hold all layers do. A real cluster does not tell it.
    """
    num_layers = run.topology.llm.num_layers
    for placed, node in zip(run.topology.nodes, run.nodes, strict=True):
        kv = getattr(getattr(node, "scheduler", None), "kv", None)
        if placed.num_layers == num_layers and isinstance(kv, PrefixCache) and kv.is_enabled:
            return True
    return False


def kv_used_token_layers(run: MeasuredRun) -> list[int]:
    """KV use of every node, in tokens x layers.

    The KV blocks of a node whose scheduler keeps an account of them; else the caches that the
    requests in the system hold on the node (:func:`helixsim.control.kv_cache.held_token_layers`).
    """
    held = held_token_layers(run.coordinator.active, len(run.nodes))
    counted = [node.kv_used_token_layers for node in run.nodes]
    return [own if own is not None else other for own, other in zip(counted, held, strict=True)]

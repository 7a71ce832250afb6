"""What results are made from: a run, simulated or real, as far as metrics look at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from helixsim.control.kv_cache import held_token_layers

if TYPE_CHECKING:
    from helixsim.control.coordinator import Coordinator
    from helixsim.control.routing import Policy
    from helixsim.metrics.recorder import RunRecorder
    from helixsim.placement.flow import Flow
    from helixsim.placement.topology import PlacedLink, Topology
    from helixsim.scenario.resolved import Scenario


class NodeGauges(Protocol):
    """What can be read off a node."""

    @property
    def num_tokens(self) -> int:
        """Tokens that came through its last layer so far."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches that it has run so far."""
        ...

    @property
    def num_running(self) -> int:
        """Requests in the batch that runs."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a batch."""
        ...

    @property
    def kv_used_token_layers(self) -> int | None:
        """What its scheduler's KV blocks hold, in tokens x layers; None if it keeps no account."""
        ...

    def busy_s(self, now: float) -> float:
        """How long it has computed so far."""
        ...


class LinkGauges(Protocol):
    """What can be read off a link."""

    @property
    def placed(self) -> PlacedLink:
        """Which link it is."""
        ...

    @property
    def num_bytes(self) -> float:
        """What it has carried so far."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests that it has carried so far."""
        ...

    def busy_s(self, now: float) -> float:
        """How long it has been sending so far."""
        ...

    def backlog_s(self, now: float) -> float:
        """How long it needs to send what it has taken."""
        ...


class Run(Protocol):
    """A run that goes on or has ended."""

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
        """The maximum flow over them."""
        ...

    @property
    def policy(self) -> Policy:
        """What finds routes."""
        ...

    @property
    def coordinator(self) -> Coordinator:
        """What decides."""
        ...

    @property
    def recorder(self) -> RunRecorder:
        """What has been recorded."""
        ...

    @property
    def nodes(self) -> Sequence[NodeGauges]:
        """For every node, in order."""
        ...

    @property
    def links(self) -> Sequence[LinkGauges]:
        """For every link, in order."""
        ...

    @property
    def now(self) -> float:
        """The time, in seconds."""
        ...


def kv_used_token_layers(run: Run) -> list[int]:
    """KV use of every node, in tokens x layers.

    Where a node's scheduler keeps an account of KV blocks, what they hold; else what the requests
    in the system hold of the node (:func:`helixsim.control.kv_cache.held_token_layers`).
    """
    held = held_token_layers(run.coordinator.active, len(run.nodes))
    counted = [node.kv_used_token_layers for node in run.nodes]
    return [own if own is not None else other for own, other in zip(counted, held, strict=True)]

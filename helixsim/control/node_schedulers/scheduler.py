"""What every node scheduler answers: which requests a node runs next, and which it takes out.

``enter`` -> ``schedule`` -> (an executor runs the step) -> ``finish_pass``. A node scheduler has
no clock: the executor tells it of arrivals before it asks for a step. It owns the queues of its
node, the limits of its batches and its KV blocks.

Invariants, checked by :meth:`NodeScheduler.validate`: ``one-place`` (a request waits, or runs, on
a node, and only once) and ``kv-conserved`` (:mod:`helixsim.control.kv_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from helixsim.control.kv_cache import KvCache
from helixsim.control.node_schedulers.composition import StepComposer
from helixsim.physics.engine import IDEAL_ENGINE, EngineCosts
from helixsim.profiles.machine import Capacity
from helixsim.requests import Request
from helixsim.steps import Batch, Step

RETURNS = -1
"""The "layer" at which requests enter the first node of their route when they are back from the
last one, where decodes loop."""


class ContextBound:
    """The most tokens that any request admitted so far may come to hold on a layer."""

    __slots__ = ("longest",)

    def __init__(self, longest: int = 0) -> None:
        self.longest = longest


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSchedulerInputs:
    """What a node scheduler is made of.

    Attributes
    ----------
    name
        Of the node, for messages.
    start_layer, end_layer
        The node holds ``[start_layer, end_layer)``.
    entry_layers
        Layers at which requests may enter, beside the first.
    limits
        What a batch may hold at most.
    kv
        The node's KV blocks; None where a scheduler with ``counts_kv = False`` needs none.
    engine
        How the engine makes up its steps (batching, token budget).
    contexts
        Bound on the length of contexts.
    num_llm_layers
        Layers of the LLM; with 0, the node counts as one that ends at the last of them.
    composer
        Limits its steps by what it sees; None where prefills are not streamed and steps not
        limited.
    """

    name: str
    start_layer: int
    end_layer: int
    entry_layers: Iterable[int]
    limits: Capacity
    kv: KvCache | None = None
    engine: EngineCosts = IDEAL_ENGINE
    contexts: ContextBound = field(default_factory=lambda: ContextBound(2**62))
    num_llm_layers: int = 0
    composer: StepComposer | None = None


class NodeScheduler(Protocol):
    """Composes the steps of one node.

    Where decodes loop (:func:`helixsim.control.node_schedulers.decodes_loop`), the scheduler of a
    route's first node keeps a request until its answer is complete, advances its counters, and
    takes it back from the last stage by `enter` at :data:`RETURNS`; on a node that holds all
    layers, `finish_pass` returns the requests that have a new token.

    Attributes
    ----------
    counts_kv
        Whether it needs an account of KV blocks to decide; without, simulated nodes keep none.
    kv
        The account of the node's KV blocks; None where none is kept.
    running
        The step that runs.
    """

    counts_kv: bool
    kv: KvCache | None
    running: Step | None

    def enter(self, layer: int, batch: Batch) -> None:
        """Take requests that have arrived at the node and go on at a layer."""
        ...

    def schedule(self) -> Step | None:
        """Compose the next step, which then runs.

        None if there is nothing to run and nothing to report. A step without passes only reports
        requests that were preempted or have failed.
        """
        ...

    def finish_pass(self, step: Step, number: int) -> Batch | None:
        """Take a pass of the step that has run; the requests that are through the node, if any."""
        ...

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more; a step that runs goes on without them."""
        ...

    def release(self, request: Request) -> bool:
        """Take back the KV blocks of a request that has ended; whether it had any."""
        ...

    def reset(self) -> None:
        """Forget all requests, as a node that has failed."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests that have entered and wait for a step."""
        ...

    @property
    def queue_length(self) -> int:
        """Requests that a new one would wait behind."""
        ...

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a step."""
        ...

    def validate(self) -> None:
        """Check the invariants; an AssertionError names the one that does not hold."""
        ...

"""Performance models: how long a step takes on a node, and what sending costs.

A scenario names one as its ``physics``. ``paper`` is the published simulator's, bit for bit;
``calibrated`` is a serving engine as it was measured. The simulated nodes and emulated workers ask
the same object. Register your own with :func:`helixsim.register_performance_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from helixsim.physics.engine import IDEAL_ENGINE, EngineCosts
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.machine import LLM, LatencyProfile
from helixsim.registry import Registry
from helixsim.steps import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """What a performance model is made of.

    Attributes
    ----------
    llm
        What is served.
    engine
        The scenario's serving engine.
    """

    llm: LLM
    engine: EngineCosts = IDEAL_ENGINE


@dataclass(frozen=True, slots=True, kw_only=True)
class SendingCosts:
    """What a machine takes to send requests as messages.

    Attributes
    ----------
    message_s
        Time to send one message.
    bytes_per_s
        How fast a machine hands messages to the network, all its links together.
    delivery_jitter_s
        Mean of the exponential delay between a message's arrival and its being noticed.
    is_batched
        Whether requests that leave a machine at once for the same next one travel as one message;
        otherwise each has a message of its own.
    """

    message_s: float = 0.0
    bytes_per_s: float = 1e12
    delivery_jitter_s: float = 0.0
    is_batched: bool = False


def attention_s_per_pair(llm: LLM, prefill: LatencyProfile) -> float:
    """Time of attention of one token to one earlier token, on one layer, seconds.

    ``4 h`` FLOP for a hidden state of h numbers (a product with its key, and one with its value),
    at the rate at which the machine does the ``2 P`` FLOP of a token that is prefilled, for the P
    weights of a layer. Both in numbers of 2 bytes, of which only the ratio matters.
    """
    tokens = prefill.tokens[-1]
    token_s = prefill(tokens) / tokens
    return 2 * llm.activation_bytes_per_token / llm.layer_bytes * token_s


class StepTimer(Protocol):
    """Times the steps of one node.

    Attributes
    ----------
    poll_s
        Polling interval of an idle node, seconds; 0 if it receives arrivals at once.
    """

    poll_s: float

    def time_step(self, step: Step, now: float) -> tuple[Sequence[float], float]:
        """When a step that starts now is through.

        Parameters
        ----------
        step
            What runs.
        now
            Start, seconds.

        Returns
        -------
        tuple
            The end of each pass of the step, seconds, not decreasing; the last one ends the
            step. And when the last layer of the last pass started.
        """
        ...


class PerformanceModel(Protocol):
    """How long work takes, for all nodes of a run.

    Attributes
    ----------
    node_scheduler
        Name of the node scheduler that nodes have, if the scenario names none.
    passes_beyond_answer
        Decodes that a request runs beyond what its answer needs after the prefill's token.
    requests_wait
        Whether requests that find no room wait, as they do in real clusters, unless the scenario
        says otherwise; then long prompts go in chunks, and small shares of the flow are used
        where there are no others.
    sending
        What sending costs; None for the published links, which share out network interfaces by
        the flow and cost a machine nothing.
    """

    node_scheduler: str
    passes_beyond_answer: int
    requests_wait: bool
    sending: SendingCosts | None

    def step_timer(self, node: PlacedNode) -> StepTimer:
        """What times the steps of a node."""
        ...


class PerformanceModelFactory(Protocol):
    """Makes a performance model; a class with this constructor is one."""

    def __call__(self, inputs: ModelInputs) -> PerformanceModel:
        """Make it."""
        ...


PERFORMANCE_MODELS: Registry[PerformanceModelFactory] = Registry(
    "performance model",
    "helixsim.performance_models",
    {
        "paper": "helixsim.physics.paper:PaperModel",
        "calibrated": "helixsim.physics.calibrated:CalibratedModel",
    },
    attributes=("__call__",),
)
"""Performance models by their name in a scenario's ``physics``."""


def register_performance_model(name: str, factory: PerformanceModelFactory) -> None:
    """Let scenarios name a performance model as their `physics`, in this process.

    Raises
    ------
    InputError
        If the name is taken, or is none.
    """
    PERFORMANCE_MODELS.register(name, factory)

"""Physics profiles: how long work takes. One module a profile; a scenario names one.

A profile is built once per run and hands every node a :class:`StepTimer`, so that nothing asks
which profile is in force while the simulation runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from helixsim.batching import Batch
from helixsim.physics.paper import PaperStepTimer
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.machine import LLM


class StepTimer(Protocol):
    """Says when a batch is through with consecutive layers of one node."""

    def finish(
        self, now: float, batch: Batch, num_layers: int, received_tokens: int
    ) -> tuple[float, float]:
        """When a batch that starts now leaves its last layer, and when it entered that layer.

        Parameters
        ----------
        now
            Start, seconds.
        batch
            What runs.
        num_layers
            Layers it runs through, one after another.
        received_tokens
            Tokens whose arrival is billed to this batch.

        Returns
        -------
        tuple of float
            (end of the last layer, start of the last layer), seconds.
        """
        ...


@dataclass(frozen=True, slots=True)
class Physics:
    """A physics profile.

    Attributes
    ----------
    timer
        Makes the timer of one node.
    passes_beyond_answer
        Decodes that a request runs beyond what its answer needs after the prefill's token.
    """

    timer: Callable[[LLM, PlacedNode], StepTimer]
    passes_beyond_answer: int


PHYSICS_PROFILES: Mapping[str, Physics] = {
    # The published simulator runs as many decodes as the answer has tokens, though the prefill
    # yields the first of them.
    "paper": Physics(timer=PaperStepTimer, passes_beyond_answer=1),
}
"""The profiles by their name in a scenario's ``physics``."""

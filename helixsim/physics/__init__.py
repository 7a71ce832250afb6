"""Physics profiles: how long work takes. One module a profile; a scenario names one.

A profile is built once per run and hands every node a :class:`StepTimer`, so that nothing asks
which profile is in force while the simulation runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


PHYSICS_PROFILES: Mapping[str, Callable[[LLM, PlacedNode], StepTimer]] = {
    "paper": PaperStepTimer,
}
"""Name -> what makes the timer of one node."""

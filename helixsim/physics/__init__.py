"""Physics profiles: how long work takes. A scenario names one.

``paper`` repeats the published simulator bit for bit; ``calibrated`` is a serving engine as it
was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from helixsim.control.batching import Batch


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
    """What of a physics profile whoever decides must know.

    Attributes
    ----------
    passes_beyond_answer
        Decodes that a request runs beyond what its answer needs after the prefill's token.
    requests_wait
        Whether requests that find no room wait, as they do in real clusters, unless the scenario
        says otherwise; that long prompts go in chunks, and that small shares of the flow are
        used where there are no others.
    """

    passes_beyond_answer: int
    requests_wait: bool


PHYSICS_PROFILES: Mapping[str, Physics] = {
    # The published simulator runs as many decodes as the answer has tokens, though the prefill
    # yields the first of them, and turns requests away.
    "paper": Physics(passes_beyond_answer=1, requests_wait=False),
    "calibrated": Physics(passes_beyond_answer=0, requests_wait=True),
}
"""The profiles by their name in a scenario's ``physics``."""

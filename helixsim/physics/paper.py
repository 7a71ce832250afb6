"""The published simulator's physics of computing, oddities included.

A layer takes the prefill time of all prompt tokens in the batch plus the decode time of the
number of decodes, as two passes would; a single decode counts double. At the first layer of a
node the host pays for every token that reached the node since it last started a batch there,
whoever it belongs to: once through memory at 4 GB/s and once at 5 GB/s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from helixsim.placement.topology import PlacedNode
from helixsim.profiles.machine import LLM

if TYPE_CHECKING:
    from helixsim.control.batching import Batch

_UNPACK_BYTES_PER_S = 4e9
_PACK_BYTES_PER_S = 5e9
COPY_S_PER_BYTE = 1 / _UNPACK_BYTES_PER_S + 1 / _PACK_BYTES_PER_S
"""Time in seconds that the host spends on copying one byte of activations that a node receives."""


class PaperStepTimer:
    """Times the batches of one node; see :class:`helixsim.physics.StepTimer`."""

    __slots__ = ("_activation_bytes", "_decode_s", "_prefill_s")

    def __init__(self, llm: LLM, node: PlacedNode) -> None:
        self._activation_bytes = llm.activation_bytes_per_token
        profile, capacity = node.profile, node.capacity
        # Dense tables: a batch is timed hundreds of thousands of times, and token counts repeat.
        self._prefill_s = [profile.prefill(n) for n in range(capacity.max_prompt_tokens + 1)]
        self._decode_s = [profile.decode(n) for n in range(capacity.max_decode_tokens + 1)]
        if len(self._decode_s) > 1:
            self._decode_s[1] *= 2

    def finish(
        self, now: float, batch: Batch, num_layers: int, received_tokens: int
    ) -> tuple[float, float]:
        """When a batch that starts now is through; times are added one by one, as published."""
        layer_s = (
            self._prefill_s[batch.prompt_tokens]
            + self._decode_s[len(batch.requests) - batch.num_prompts]
        )
        first_s = layer_s
        if received_tokens:
            received = received_tokens * self._activation_bytes
            first_s = layer_s + received / _UNPACK_BYTES_PER_S + received / _PACK_BYTES_PER_S
        start, end = now, now + first_s
        for _ in range(num_layers - 1):
            start = end
            end += layer_s
        return end, start

"""KV capacity that follows from the memory of a machine."""

from __future__ import annotations

from dataclasses import dataclass

from helixsim.profiles.machine import LLM

BLOCK_TOKENS = 16
"""Tokens in one block of a KV cache, per layer."""


@dataclass(frozen=True, slots=True)
class KvMemory:
    """Memory of a machine for the weights and the KV cache of an LLM.

    Attributes
    ----------
    llm
        The LLM.
    usable_bytes
        Memory of the whole machine that both may take.
    copies
        How many times the machine stores each token's keys and values.
    """

    llm: LLM
    usable_bytes: float
    copies: float = 1.0

    def token_layers(self, start_layer: int, end_layer: int) -> int:
        """KV capacity beside the layers ``[start_layer, end_layer)``, in tokens x layers.

        0 if the memory is too small for them and one block.
        """
        num_layers = end_layer - start_layer
        kv_bytes = self.copies * self.llm.kv_bytes_per_token(start_layer, end_layer)
        free_bytes = self.usable_bytes - self.llm.weights_bytes(start_layer, end_layer)
        block_bytes = BLOCK_TOKENS * kv_bytes
        if free_bytes < block_bytes:
            return 0
        return int(free_bytes // block_bytes) * BLOCK_TOKENS * num_layers

    def by_count(self) -> dict[int, int]:
        """KV capacity by number of layers, in tokens x layers: the least of all ranges of as many.

        Up to the largest number of which every range fits.
        """
        total, found = self.llm.num_layers, {}
        for num_layers in range(1, total + 1):
            starts = range(total - num_layers + 1)
            if self.llm.has_equal_layers:  # then only the ends differ, by embedding and head
                starts = range(0, total - num_layers + 1, max(total - num_layers, 1))
            least = min(self.token_layers(start, start + num_layers) for start in starts)
            if not least:
                break
            found[num_layers] = least
        return found

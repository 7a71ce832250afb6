"""An engine that computes nothing: it takes the time that the latency profile says.

Hidden states are as large as real ones on the wire, and all zero. Tokens are made up from their
position, the same wherever they are made.
"""

from __future__ import annotations

from collections.abc import Sequence

from helixreal.engines.engine import Buffer, Payload, Row
from helixreal.engines.kv_blocks import KvBlocks

_VOCABULARY = 32_000


class EmulatedEngine:
    """Keeps block tables as a real engine does, and makes up the rest.

    Parameters
    ----------
    kv_token_layers
        KV capacity of the node.
    num_held, num_layers, end_layer
        Layers that the node holds, of how many, and where its range ends.
    bytes_per_token
        What one token's activation weighs.
    """

    block_tokens = 16

    def __init__(
        self, kv_token_layers: int, num_held: int, num_layers: int, bytes_per_token: float
    ) -> None:
        self.kv_blocks = max(kv_token_layers // (num_held * self.block_tokens), 1)
        self.wire_bytes_per_token = round(bytes_per_token)
        self._num_layers = num_layers
        self._blocks = KvBlocks(self.kv_blocks, self.block_tokens)
        self._zeros = memoryview(b"")

    def reserve(self, request: int, num_tokens: int) -> bool:
        """See that the cache of a request has room for that many tokens in all."""
        return self._blocks.reserve(request, num_tokens)

    def run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        """Hidden states are their number of tokens; a token is made from its position."""
        if end_layer < self._num_layers:
            return [row.num_tokens for row in rows]
        return [made_up_token(row.position + row.num_tokens) for row in rows]

    def release(self, request: int) -> None:
        """Forget the KV cache of a request."""
        self._blocks.release(request)

    def pack(self, payloads: Sequence[Payload]) -> list[Buffer]:
        """As many zeros as activations of so many tokens weigh."""
        size = sum(payloads) * self.wire_bytes_per_token
        if len(self._zeros) < size:
            self._zeros = memoryview(bytes(size))
        return [self._zeros[:size]]

    def unpack(self, buffers: Sequence[Buffer], num_tokens: Sequence[int]) -> list[Payload]:
        """Check the size; there is nothing to read."""
        size = sum(num_tokens) * self.wire_bytes_per_token
        if len(buffers) != 1 or len(buffers[0]) != size:
            raise ValueError(f"{len(buffers)} buffers; one of {size} bytes was expected")
        return list(num_tokens)

    def close(self) -> None:
        """There is nothing to give back."""


def made_up_token(position: int) -> int:
    """The token that an emulated engine makes at a position."""
    return (position * 7919 + 17) % _VOCABULARY

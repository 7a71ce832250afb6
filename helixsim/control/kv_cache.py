"""The KV cache of a simulated node: blocks that requests hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from helixsim.profiles.spec import BLOCK_TOKENS
from helixsim.requests import Request


class KvCache:
    """Counts the blocks of a node's KV cache.

    A block has room for :data:`BLOCK_TOKENS` tokens of one request on one layer.

    Parameters
    ----------
    kv_token_layers
        Room, in tokens x layers.
    end_layer
        Where the node's layers end: a request that enters at layer e runs ``[e, end_layer)``.

    Attributes
    ----------
    num_free
        Blocks that nobody holds.
    """

    __slots__ = ("_end_layer", "_held", "num_blocks", "num_free")

    def __init__(self, kv_token_layers: int, end_layer: int) -> None:
        self.num_blocks = kv_token_layers // BLOCK_TOKENS
        self.num_free = self.num_blocks
        self._end_layer = end_layer
        self._held: dict[Request, int] = {}

    def missing(self, request: Request, entry_layer: int) -> int:
        """Blocks that a request needs for the pass that it stands before, beyond those it holds."""
        tokens = request.context_tokens + request.step_tokens
        blocks = -(-tokens // BLOCK_TOKENS) * (self._end_layer - entry_layer)
        return max(blocks - self._held.get(request, 0), 0)

    def give(self, request: Request, num_blocks: int) -> None:
        """Let a request hold more blocks, which must be free."""
        assert num_blocks <= self.num_free
        self.num_free -= num_blocks
        self._held[request] = self._held.get(request, 0) + num_blocks

    def release(self, request: Request) -> bool:
        """Take all blocks of a request back; whether it had any."""
        held = self._held.pop(request, 0)
        self.num_free += held
        return held > 0

    def keep(self, wanted: Callable[[Request], bool]) -> None:
        """Take the blocks of those back who are not wanted any more."""
        for request in [request for request in self._held if not wanted(request)]:
            self.release(request)

    def latest(self) -> Iterator[Request]:
        """Those who hold blocks, the last to have come first."""
        return reversed(self._held)

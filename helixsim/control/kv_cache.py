"""The KV cache of a node: blocks that requests hold.

One account serves the node scheduler, the metrics and the engines. Invariant ``kv-conserved``:
blocks that are held and blocks that are free are all blocks, after every operation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator

from helixsim.profiles.kv_memory import BLOCK_TOKENS
from helixsim.requests import Request, Route


class KvCache:
    """Counts the blocks of a node's KV cache.

    Parameters
    ----------
    num_blocks
        Blocks in all.
    block_tokens
        Tokens of one request that a block has room for.
    end_layer
        If given, a block holds one layer, and a request that enters at layer e needs blocks on
        each of ``[e, end_layer)``. If not, a block spans all layers of the node.

    Attributes
    ----------
    num_free
        Blocks that no request holds.
    """

    __slots__ = ("_end_layer", "_held", "block_tokens", "num_blocks", "num_free")

    def __init__(
        self, num_blocks: int, block_tokens: int = BLOCK_TOKENS, end_layer: int | None = None
    ) -> None:
        self.num_blocks = self.num_free = num_blocks
        self.block_tokens = block_tokens
        self._end_layer = end_layer
        self._held: dict[Hashable, int] = {}

    @classmethod
    def by_layer(cls, kv_token_layers: int, end_layer: int) -> KvCache:
        """The KV cache of a simulated or emulated node, given its room in tokens x layers."""
        return cls(kv_token_layers // BLOCK_TOKENS, BLOCK_TOKENS, end_layer)

    @property
    def num_used(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - self.num_free

    def used_token_layers(self, num_layers: int) -> int:
        """Room in held blocks, in tokens x layers, on a node of `num_layers` layers."""
        return self.num_used * self.block_tokens * self._layers_of_block(num_layers)

    def free_tokens(self, num_layers: int) -> int:
        """Tokens for which free blocks have room on each of `num_layers` layers."""
        token_layers = self.num_free * self.block_tokens * self._layers_of_block(num_layers)
        return token_layers // num_layers

    def _layers_of_block(self, num_layers: int) -> int:
        return num_layers if self._end_layer is None else 1

    def held(self, key: Hashable) -> int:
        """Blocks that a request holds."""
        return self._held.get(key, 0)

    def missing(self, key: Hashable, num_tokens: int, entry_layer: int = 0) -> int:
        """Blocks that a request lacks to hold `num_tokens` tokens."""
        layers = 1 if self._end_layer is None else self._end_layer - entry_layer
        blocks = -(-num_tokens // self.block_tokens) * layers
        return max(blocks - self._held.get(key, 0), 0)

    def allocate(self, key: Hashable, num_blocks: int) -> None:
        """Give a request more blocks, which must be free."""
        assert num_blocks <= self.num_free, "kv-conserved: blocks that are not free"
        self.num_free -= num_blocks
        self._held[key] = self._held.get(key, 0) + num_blocks

    def release(self, key: Hashable) -> bool:
        """Take all blocks of a request back; whether it had any."""
        held = self._held.pop(key, 0)
        self.num_free += held
        return held > 0

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Take the blocks of requests back that are not wanted any more."""
        for key in list(self._holders()):
            if isinstance(key, Request) and not is_wanted(key):
                self.release(key)

    def clear(self) -> None:
        """Take all blocks back."""
        for key in list(self._holders()):
            self.release(key)

    def latest(self) -> Iterator[Hashable]:
        """Requests that hold blocks, the last to have come first."""
        return reversed(list(self._holders()))

    def _holders(self) -> Iterable[Hashable]:
        return self._held

    def validate(self) -> None:
        """Check the invariant ``kv-conserved``.

        Raises
        ------
        AssertionError
            If blocks were lost or made.
        """
        held = sum(self._held.values())
        assert 0 <= self.num_free == self.num_blocks - held, (
            f"kv-conserved: {held} blocks held and {self.num_free} free of {self.num_blocks}"
        )


def reserve(kv: KvCache, key: Hashable, num_tokens: int) -> bool:
    """Give a request blocks for a number of tokens; False, and no change, if too few are free.

    For callers that drive an engine directly, without a node scheduler.
    """
    missing = kv.missing(key, num_tokens)
    if missing > kv.num_free:
        return False
    kv.allocate(key, missing)
    return True


def held_token_layers(requests: Iterable[Request], num_nodes: int) -> list[int]:
    """KV use of every node, in tokens x layers, as requests have it wherever they are.

    For nodes whose scheduler keeps no account of blocks: nothing in the paper's physics depends
    on it. A request holds, on each layer of its route, its context and the tokens of the pass it
    is in, from the moment that pass leaves the coordinator.
    """
    tokens: dict[Route, int] = {}
    for request in requests:
        route = request.route
        if route is not None:
            held = request.num_computed_tokens + request.num_new_tokens
            tokens[route] = tokens.get(route, 0) + held
    use = [0] * num_nodes
    for route, held in tokens.items():
        for stage in route.stages:
            use[stage.node] += held * stage.num_layers
    return use

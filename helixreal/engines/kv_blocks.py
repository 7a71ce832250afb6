"""Which blocks of KV cache belong to whom."""

from __future__ import annotations


class KvBlocks:
    """Hands out blocks of equal size to requests.

    Parameters
    ----------
    num_blocks
        How many there are.
    block_tokens
        Tokens in one.
    first_block
        Number of the first; engines that keep block 0 for padding start at 1.
    """

    def __init__(self, num_blocks: int, block_tokens: int, first_block: int = 0) -> None:
        self.block_tokens = block_tokens
        self.num_blocks = num_blocks
        self._free = list(range(first_block + num_blocks - 1, first_block - 1, -1))
        self._held: dict[int, list[int]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    def blocks(self, request: int) -> list[int]:
        """The blocks of a request, in order of its tokens."""
        return self._held.get(request, [])

    def reserve(self, request: int, num_tokens: int) -> bool:
        """Give a request blocks for that many tokens in all; False if there are too few."""
        held = self._held.get(request, [])
        missing = -(-num_tokens // self.block_tokens) - len(held)
        if missing > len(self._free):
            return False
        if missing > 0:
            held.extend(self._free.pop() for _ in range(missing))
        self._held[request] = held
        return True

    def release(self, request: int) -> None:
        """Take all blocks of a request back; unknown requests are no mistake."""
        self._free.extend(reversed(self._held.pop(request, [])))

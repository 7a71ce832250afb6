"""KV blocks that outlive their request: the prefix cache of an engine.

Full blocks are known by a key of their content. A request that begins with the same tokens takes
the blocks over, at no cost of computation. Blocks of requests that have ended stay, free and known,
until they are needed for other tokens: the least recently used first, and of one request the
last first, as in vLLM v1 (``vllm/v1/core/block_pool.py``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence

from helixsim.control.kv_cache import KvCache
from helixsim.requests import Request


class PrefixCache(KvCache):
    """A KV cache whose blocks span all layers of the node, and can be shared.

    It keeps the block tables of an engine. Any key may hold blocks; a request shares them.

    Parameters
    ----------
    num_blocks, block_tokens
        As :class:`~helixsim.control.kv_cache.KvCache`.
    first_block
        Number of the first block.
    is_enabled
        Whether blocks are found again; without, they are only counted and numbered.
    clear
        Called with blocks that are handed out, before anything is written to them.

    Attributes
    ----------
    is_enabled
        As the parameter; may be set while no request holds blocks.
    num_hit_tokens, num_asked_tokens
        Tokens of admitted requests: found in the cache, and all.
    """

    __slots__ = (
        "_block_of",
        "_clear",
        "_end",
        "_first",
        "_free",
        "_fresh",
        "_key_of",
        "_num_known",
        "_tables",
        "_users",
        "is_enabled",
        "num_asked_tokens",
        "num_hit_tokens",
    )

    def __init__(
        self,
        num_blocks: int,
        block_tokens: int,
        *,
        first_block: int = 0,
        is_enabled: bool = True,
        clear: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        super().__init__(num_blocks, block_tokens)
        self._first = self._fresh = first_block
        self._end = first_block + num_blocks
        # Free blocks in order of their use to come; blocks that were never used come before them.
        self._free: OrderedDict[int, None] = OrderedDict()
        self._clear = clear
        self.is_enabled = is_enabled
        self._tables: dict[Hashable, list[int]] = {}
        self._num_known: dict[Hashable, int] = {}
        self._users: dict[int, int] = {}
        self._key_of: dict[int, Hashable] = {}
        self._block_of: dict[Hashable, int] = {}
        self.num_hit_tokens = 0
        self.num_asked_tokens = 0

    def table(self, key: Hashable) -> list[int]:
        """The blocks of a request, in order of its tokens."""
        return self._tables.get(key, [])

    def held(self, key: Hashable) -> int:
        """Blocks that a request holds."""
        return len(self._tables.get(key, ()))

    def missing(self, key: Hashable, num_tokens: int, entry_layer: int = 0) -> int:
        """Blocks that a request lacks to hold `num_tokens` tokens."""
        return max(-(-num_tokens // self.block_tokens) - self.held(key), 0)

    # -- prefixes ------------------------------------------------------------------------------

    def found(self, request: Request, num_tokens: int) -> list[int]:
        """Blocks with the request's first tokens, at most `num_tokens` of them."""
        blocks: list[int] = []
        if self.is_enabled:
            size, block_of = self.block_tokens, self._block_of
            for number in range(num_tokens // size):
                block = block_of.get(request.block_key(number, size))
                if block is None:
                    break
                blocks.append(block)
        return blocks

    def num_needed(self, num_tokens: int, found: list[int]) -> int:
        """Free blocks that a request of `num_tokens` tokens takes, if it takes over `found`."""
        return -(-num_tokens // self.block_tokens) - sum(block in self._users for block in found)

    def adopt(self, request: Request, found: list[int], num_tokens: int) -> None:
        """Let a request that holds nothing take over blocks; `num_tokens` are all it asks for."""
        users = self._users
        for block in found:
            if block in users:
                users[block] += 1
            else:
                users[block] = 1
                del self._free[block]
        self.num_free = self._end - self._fresh + len(self._free)
        self._tables[request] = found
        self._num_known[request] = len(found)
        self.num_hit_tokens += len(found) * self.block_tokens
        self.num_asked_tokens += num_tokens

    def know(self, request: Request, num_tokens: int) -> None:
        """Take note that the first `num_tokens` tokens of a request stand in its blocks."""
        if not self.is_enabled:
            return
        known, full = self._num_known[request], num_tokens // self.block_tokens
        if full <= known:
            return
        table = self._tables[request]
        for number in range(known, full):
            key = request.block_key(number, self.block_tokens)
            if key not in self._block_of:
                self._block_of[key] = block = table[number]
                self._key_of[block] = key
        self._num_known[request] = full

    def unlearn(self, request: Request, num_tokens: int) -> None:
        """Forget what was noted beyond the first `num_tokens` tokens: it is not computed."""
        table, first = self._tables.get(request, []), num_tokens // self.block_tokens
        for block in table[first : self._num_known.get(request, 0)]:
            if block in self._key_of:
                del self._block_of[self._key_of.pop(block)]
        if request in self._num_known:
            self._num_known[request] = min(self._num_known[request], first)

    # -- blocks come and go --------------------------------------------------------------------

    def allocate(self, key: Hashable, num_blocks: int) -> None:
        """Give a request more blocks, which must be free."""
        assert num_blocks <= self.num_free, "kv-conserved: blocks that are not free"
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = []
            self._num_known[key] = 0
        take, users, key_of = self._free.popitem, self._users, self._key_of
        for _ in range(num_blocks):
            if self._fresh < self._end:
                block = self._fresh
                self._fresh += 1
            else:
                block, _none = take(last=False)
                if block in key_of:
                    del self._block_of[key_of.pop(block)]
            users[block] = 1
            table.append(block)
        self.num_free -= num_blocks
        if self._clear is not None and num_blocks:
            self._clear(table[-num_blocks:])

    def release(self, key: Hashable) -> bool:
        """Take all blocks of a request back; whether it had any."""
        table = self._tables.pop(key, None)
        if table is None:
            return False
        del self._num_known[key]
        free, users = self._free, self._users
        for block in reversed(table):
            if users[block] == 1:
                del users[block]
                free[block] = None
            else:
                users[block] -= 1
        self.num_free = self._end - self._fresh + len(free)
        return bool(table)

    def forget(self) -> None:
        """Take all blocks back, and know none of them any more."""
        self.clear()
        self.distrust()

    def distrust(self) -> None:
        """Know no block any more, as when what stands in them may be wrong."""
        self._key_of.clear()
        self._block_of.clear()

    def _holders(self) -> Iterable[Hashable]:
        return self._tables

    def validate(self) -> None:
        """Check the invariant ``kv-conserved``: each block is free or used, and counted right.

        Raises
        ------
        AssertionError
            If blocks were lost or made.
        """
        users: dict[int, int] = {}
        for table in self._tables.values():
            for block in table:
                users[block] = users.get(block, 0) + 1
        assert users == self._users, "kv-conserved: a block has other users than are counted"
        assert sorted([*users, *self._free]) == list(range(self._first, self._fresh)), (
            "kv-conserved: a block is lost or twice"
        )
        num_free = self._end - self._fresh + len(self._free)
        assert self.num_free == num_free, "kv-conserved: free blocks are miscounted"
        for key, block in self._block_of.items():
            assert self._key_of.get(block) == key, "kv-conserved: a known block lost its key"

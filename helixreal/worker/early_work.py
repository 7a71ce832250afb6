"""Work that has overtaken what the worker must know to do it, held until it is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from helixreal.net.messages import Frame, Work

MOST_MESSAGES = 1000
MOST_BYTES = 256_000_000


class Held(NamedTuple):
    """A message that is held, its raw frames and their size in bytes."""

    work: Work
    frames: list[Frame]
    num_bytes: int


class EarlyWork:
    """Holds messages in order, up to :data:`MOST_MESSAGES` and :data:`MOST_BYTES`."""

    def __init__(self) -> None:
        self._held: deque[Held] = deque()
        self._num_bytes = 0

    def __len__(self) -> int:
        """Number of messages that are held."""
        return len(self._held)

    def hold(self, work: Work, frames: list[Frame]) -> None:
        """Hold a message.

        Raises
        ------
        ValueError
            If too many are held already.
        """
        # The frames are copied: received buffers belong to large frames of the socket.
        kept: list[Frame] = [bytearray(frame) for frame in frames]
        num_bytes = sum(len(frame) for frame in kept)
        if len(self._held) >= MOST_MESSAGES or self._num_bytes + num_bytes > MOST_BYTES:
            raise ValueError("too much work waits for the addresses of peers")
        self._held.append(Held(work, kept, num_bytes))
        self._num_bytes += num_bytes

    def take(self, is_ready: Callable[[Work], bool]) -> list[Held]:
        """Take out the messages that can be processed now, in order."""
        held, self._held = self._held, deque()
        taken: list[Held] = []
        for each in held:
            (taken if is_ready(each.work) else self._held).append(each)
        self._num_bytes = sum(each.num_bytes for each in self._held)
        return taken

    def forget(self, keys: Collection[int]) -> None:
        """Forget messages with nothing but passes of attempts that have ended."""
        ended = set(keys)
        self.take(lambda work: all(each.key in ended for each in work.passes))

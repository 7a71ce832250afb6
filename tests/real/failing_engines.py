"""Engines that fail for certain requests; workers name them as ``failing_engines:...``."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from helixsim.control.prefix_cache import PrefixCache

POISON = 0
"""A prompt that begins with this token makes an engine fail."""

MARK = "HELIX_TEST_MARK"
"""Environment variable with the name of a file that is made when a device is lost."""


def is_poison(row):
    return row.position == 0 and not hasattr(row.payload, "shape") and row.payload[0] == POISON


class CountingEngine:
    """The token behind each position is that position; rows with `poison` make a batch fail.

    Attributes
    ----------
    batches
        Keys of the requests of every batch that was asked for.
    """

    wire_bytes_per_token = 4

    def __init__(self, poison=lambda row: False, num_blocks=4096, error=None):
        self.kv = PrefixCache(num_blocks, 16)
        self.kv_blocks, self.block_tokens = num_blocks, 16
        self.batches = []
        self._poison, self._error = poison, error or ValueError("poison")

    def run(self, rows, start_layer, end_layer):
        self.batches.append([row.request for row in rows])
        if any(self._poison(row) for row in rows):
            raise self._error
        return [row.position + row.num_tokens if row.wants_token else None for row in rows]

    def close(self):
        pass


def poisoned_torch(spec):
    """The torch engine, which fails for prompts that begin with :data:`POISON`."""
    from helixreal.engines.torch_engine import TorchEngine

    class Poisoned(TorchEngine):
        def run(self, rows, start_layer, end_layer):
            payloads = super().run(rows, start_layer, end_layer)
            if any(is_poison(row) for row in rows):
                raise IndexError("index out of range in self")
            return payloads

    return Poisoned(spec)


def lost_torch(spec):
    """The torch engine, whose device is lost once, in one of all workers.

    With the first :data:`POISON`, or while hidden states are packed, as the option ``lost`` says.
    """
    from helixreal.engines.torch_engine import TorchEngine

    class Lost(TorchEngine):
        def run(self, rows, start_layer, end_layer):
            if spec.options["lost"] == "run" and any(is_poison(row) for row in rows):
                _lose_device()
            return super().run(rows, start_layer, end_layer)

        def pack(self, payloads):
            if spec.options["lost"] == "pack":
                _lose_device()
            return super().pack(payloads)

    return Lost(spec)


def _lose_device():
    with suppress(FileExistsError), Path(os.environ[MARK]).open("x"):
        raise RuntimeError("CUDA error: device-side assert triggered")

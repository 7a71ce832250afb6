"""What the ranks of a tensor-parallel engine say to each other, over pipes of one machine.

The first rank sends commands in order; every rank carries them out in that order. A message is its
length (8 bytes, little-endian) and MessagePack.
"""

from __future__ import annotations

import struct
from typing import IO

import msgspec

from helixreal.engines.engine import EngineSpec

_LENGTH = struct.Struct("<Q")


class Load(msgspec.Struct, tag=True):
    """Load the layers of a rank; the answer is :class:`Loaded`."""

    spec: EngineSpec
    rank: int
    num_ranks: int
    store: str


class Allocate(msgspec.Struct, tag=True):
    """Allocate KV blocks, and connect to the other ranks."""

    num_blocks: int


class Run(msgspec.Struct, tag=True):
    """Run layers on a batch; its hidden states follow as a broadcast.

    Attributes
    ----------
    spans
        (position, number of tokens, KV blocks) of each row.
    """

    start_layer: int
    end_layer: int
    spans: list[tuple[int, int, list[int]]]


class Clear(msgspec.Struct, tag=True):
    """Clear KV blocks."""

    blocks: list[int]


class Loaded(msgspec.Struct, tag=True):
    """A rank has loaded its layers, and has memory for this number of KV blocks."""

    num_blocks: int


class Refused(msgspec.Struct, tag=True):
    """A rank cannot load its layers."""

    reason: str


Command = Load | Allocate | Run | Clear
Answer = Loaded | Refused

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def send(pipe: IO[bytes], message: Command | Answer) -> None:
    """Write a message."""
    data = _encoder.encode(message)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def receive_command(pipe: IO[bytes]) -> Command | None:
    """Read a command; None at the end of the pipe."""
    data = _read(pipe)
    return None if data is None else _commands.decode(data)


def receive_answer(pipe: IO[bytes]) -> Answer | None:
    """Read an answer; None at the end of the pipe."""
    data = _read(pipe)
    return None if data is None else _answers.decode(data)


def _read(pipe: IO[bytes]) -> bytes | None:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    data = pipe.read(size)
    return data if len(data) == size else None

"""Messages as frames, and frames as messages.

A message is a header, followed by the number of raw frames that the header states. The first frame
begins with the four bytes of :data:`PREFIX`, which contain the version, eight bytes with the
session (the run of the coordinator to which the message belongs, 0 for none), and four bytes with
the length of the header, a MessagePack array of one of the types of
:mod:`helixreal.net.messages`. A
single small raw frame follows in the same ZeroMQ frame, which is faster than a second frame.
Received data is never executed: it decodes to one of these types, with values within their bounds,
or it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import msgspec

from helixreal.net import messages
from helixreal.net.messages import AnyMessage, Frame
from helixsim.errors import HelixError

VERSION = 6
PREFIX = b"hx" + VERSION.to_bytes(2, "big")
MAX_HEADER_BYTES = 8_000_000
MAX_BODY_BYTES = 2_000_000_000
MAX_INLINE_BYTES = 65_536
MAX_TIME_S = 1e15

_SESSION_BYTES = 8
_LENGTH_BYTES = 4
_SESSION_AT = len(PREFIX)
_LENGTH_AT = _SESSION_AT + _SESSION_BYTES
_START = _LENGTH_AT + _LENGTH_BYTES


class WireError(HelixError):
    """A message that cannot be decoded; it is refused."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(messages.AnyMessage)


def encode(
    message: messages.Message, frames: Sequence[Frame] = (), session: int = 0
) -> list[Frame]:
    """Encode a message of a session and its raw frames."""
    header = _encoder.encode(message)
    start = _start_of(session) + len(header).to_bytes(_LENGTH_BYTES, "big") + header
    if len(frames) == 1 and len(frames[0]) <= MAX_INLINE_BYTES:
        return [b"".join((start, frames[0]))]
    return [start, *frames]


@cache
def _start_of(session: int) -> bytes:
    """What messages of a session begin with; a process has few sessions."""
    return PREFIX + session.to_bytes(_SESSION_BYTES, "big")


def decode(parts: Sequence[Frame], session: int = 0) -> tuple[AnyMessage, list[Frame]]:
    """Decode received frames to a message and its raw frames.

    Raises
    ------
    WireError
        If they are not a message of this version, have a wrong size, or belong to another session.
    """
    if not parts:
        raise WireError("an empty message")
    message, inline = decode_first(parts[0])
    sent_in = int.from_bytes(parts[0][_SESSION_AT:_LENGTH_AT], "big")
    is_stale = sent_in != session and sent_in and session
    if is_stale and not isinstance(message, messages.OF_ANY_SESSION):
        raise WireError(f"{type(message).__name__}: of another run of the coordinator")
    frames = [*inline, *parts[1:]]
    check_frames(message, frames)
    return message, frames


def decode_first(first: Frame) -> tuple[AnyMessage, list[Frame]]:
    """Decode the first frame of a message to the message and the raw frame in it, if any.

    Raises
    ------
    WireError
        If it is not a message of this version.
    """
    if first[:4] != PREFIX:
        if first[:2] != PREFIX[:2]:
            raise WireError("not a message of helixreal")
        raise WireError(
            f"a message of version {int.from_bytes(first[2:4], 'big')}; this is {VERSION}: run "
            "the same release of helixsim everywhere"
        )
    end = _START + int.from_bytes(first[_LENGTH_AT:_START], "big")
    if not _START <= end <= min(len(first), _START + MAX_HEADER_BYTES):
        raise WireError(f"a header of {end - _START} bytes in a frame of {len(first)}")
    view = memoryview(first)
    try:
        message: AnyMessage = _decoder.decode(view[_START:end])
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise WireError(f"a header that cannot be read: {error}") from error
    _check(message)
    return message, [view[end:]] if end < len(first) else []


def check_frames(message: AnyMessage, frames: Sequence[Frame]) -> None:
    """Check the number and the size of the raw frames after a header.

    Raises
    ------
    WireError
        If the number differs from the header's, or the frames are too large.
    """
    if len(frames) != message.num_frames:
        raise WireError(f"{len(frames)} raw frames; {message.num_frames} were announced")
    if sum([len(frame) for frame in frames]) > MAX_BODY_BYTES:
        raise WireError(f"more than {MAX_BODY_BYTES} bytes")


def _check(message: object) -> None:
    """Check what types do not express: equal lengths of columns, and the range of times."""
    times: Sequence[float] = ()
    if isinstance(message, messages.Work):
        if message.due_s and len(message.due_s) != len(message.passes):
            raise WireError("the numbers of due times and passes differ")
        if not message.passes:
            raise WireError("work without passes")
        times = (*message.due_s, message.sent_s)
    elif isinstance(message, messages.Done):
        if len(message.keys) != len(message.tokens) or (
            len(message.due_s) not in (0, 1, len(message.keys))
        ):
            raise WireError("columns of different lengths")
        times = message.due_s
    elif isinstance(message, messages.Tokens):
        if len(message.keys) != len(message.tokens):
            raise WireError("columns of different lengths")
        times = (message.due_s or 0.0,)
    elif isinstance(message, messages.Assignment):
        if (composition := message.composition) is not None:
            wait_s = composition.max_wait_s
            times = (composition.num_stages, 0.0 if isinstance(wait_s, str) else wait_s)
    elif isinstance(message, messages.Heartbeat):
        times = (
            message.busy_s,
            message.stuck_s,
            message.lag_s,
            message.unheard_s,
            *(each.silent_s for each in message.silences),
            *message.sent_bytes,
        )
    if not all(0 <= each < MAX_TIME_S for each in times):
        raise WireError("a time or an amount out of range")

"""Messages between a front end and the coordinator.

The first frame is :data:`PREFIX` and a MessagePack array of one of the types below. The prompt of a
:class:`Submit` follows in a second frame, as token ids of four bytes each (little endian).
Received data is never executed: it decodes to one of these types, or it is refused.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Annotated, Any

import msgspec

from helixreal.net.encoding import WireError
from helixreal.net.messages import Frame
from helixreal.serving.frontend import (
    Failed,
    Finished,
    GenerationRequest,
    Load,
    Refused,
    StreamEvent,
    Token,
)

VERSION = 1
PREFIX = b"hf" + VERSION.to_bytes(2, "big")
MAX_MESSAGE_BYTES = 64_000_000

Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Message(msgspec.Struct, array_like=True, tag=True):
    """Base class of all messages."""


# -- from a front end ----------------------------------------------------------------------------


class Hello(_Message):
    """A front end asks for a session; requests of its earlier session are cancelled.

    Attributes
    ----------
    name
        Its name, for messages to people.
    instance
        Identifies its process.
    """

    name: Annotated[str, msgspec.Meta(max_length=100)]
    instance: Annotated[str, msgspec.Meta(max_length=100)]


class Listening(_Message):
    """The front end accepts connections."""


class Beat(_Message):
    """The front end is alive."""


class Leave(_Message):
    """The front end ends, or has heard that the coordinator does."""


class Submit(_Message):
    """A request, under a number that the front end gives; its prompt is in the second frame."""

    number: Number
    generation: GenerationRequest


class Cancel(_Message):
    """Requests that are not wanted any more."""

    numbers: list[Number]


# -- to a front end ------------------------------------------------------------------------------


class Welcome(_Message):
    """A session begins: what the front end shows of the cluster."""

    model_name: str
    max_context_tokens: int
    vocabulary: int | None


class Reset(_Message):
    """The coordinator does not know this front end: it has restarted, or had given it up."""


class Other(msgspec.Struct, frozen=True, array_like=True):
    """An event of one request that is not a bare token.

    Attributes
    ----------
    place
        Number of tokens in the message that come before it.
    number
        The request.
    kind, content
        Name of the event's class, and its encoded fields.
    """

    place: Number
    number: Number
    kind: str
    content: msgspec.Raw


class Events(_Message):
    """Events of the requests of one front end, in order: all of one turn of the loop.

    Attributes
    ----------
    numbers, tokens
        The request of each token, and the token.
    others
        All other events.
    """

    numbers: list[int]
    tokens: list[int]
    others: list[Other]


class LoadReport(_Message):
    """The load of the cluster, and whether a route covers all layers."""

    load: Load
    is_ready: bool


class Goodbye(_Message):
    """The coordinator ends when the front end has said :class:`Leave`."""


FromFrontend = Hello | Listening | Beat | Leave | Submit | Cancel
ToFrontend = Welcome | Reset | Events | LoadReport | Goodbye

_KINDS: dict[str, type[StreamEvent]] = {
    kind.__name__: kind for kind in (Token, Finished, Failed, Refused)
}
_DETAILS = [(each.name, each.default) for each in fields(Token) if each.name != "token"]
_encoder = msgspec.msgpack.Encoder()
_from_frontend = msgspec.msgpack.Decoder(FromFrontend)
_to_frontend = msgspec.msgpack.Decoder(ToFrontend)
_contents = {name: msgspec.msgpack.Decoder(kind) for name, kind in _KINDS.items()}


def encode(message: FromFrontend | ToFrontend) -> bytes:
    """Encode a message of one frame."""
    return PREFIX + _encoder.encode(message)


def encode_request(number: int, generation: GenerationRequest) -> list[bytes]:
    """Encode a request as two frames."""
    prompt = array("i", generation.prompt)
    return [encode(Submit(number, replace(generation, prompt=()))), prompt.tobytes()]


def request_of(message: Submit, frames: Sequence[Frame]) -> GenerationRequest:
    """The request of a message and the frames after its first.

    Raises
    ------
    WireError
        If the prompt is missing, or a value is out of range.
    """
    if len(frames) != 1 or not len(frames[0]) or len(frames[0]) % 4:
        raise WireError("a request without the tokens of its prompt")
    prompt = array("i", bytes(frames[0]))
    if min(prompt) < 0:
        raise WireError("a token id below 0")
    if message.generation.max_tokens < 1:
        raise WireError("an answer of no tokens")
    return replace(message.generation, prompt=prompt)


def is_bare(token: Token) -> bool:
    """Whether a token has no details: it is sent as two numbers."""
    return all(getattr(token, name) == default for name, default in _DETAILS)


def other_of(place: int, number: int, event: StreamEvent) -> Other:
    """An event that is not a bare token, for :class:`Events`."""
    return Other(place, number, type(event).__name__, msgspec.Raw(_encoder.encode(event)))


def event_of(other: Other) -> StreamEvent:
    """The event that was encoded by :func:`other_of`.

    Raises
    ------
    WireError
        If it cannot be read.
    """
    if other.kind not in _contents:
        raise WireError(f"an event of an unknown kind, {other.kind}")
    try:
        return _contents[other.kind].decode(other.content)
    except (ValueError, RecursionError) as error:
        raise WireError(f"an event that cannot be read: {error}") from error


def decode_from_frontend(frame: bytes) -> FromFrontend:
    """Decode the first frame of a message of a front end.

    Raises
    ------
    WireError
        If it is not one of these messages, of this version.
    """
    message: FromFrontend = _decoded(_from_frontend, frame)
    return message


def decode_to_frontend(frame: bytes) -> ToFrontend:
    """Decode a message of the coordinator; raises as :func:`decode_from_frontend`."""
    message: ToFrontend = _decoded(_to_frontend, frame)
    return message


def _decoded(decoder: msgspec.msgpack.Decoder[Any], frame: bytes) -> Any:  # noqa: ANN401
    if frame[:4] != PREFIX:
        if frame[:2] != PREFIX[:2]:
            raise WireError("not a message between a front end and a coordinator")
        raise WireError(
            f"a message of version {int.from_bytes(frame[2:4], 'big')}; this is {VERSION}: run "
            "the same release of helixsim everywhere"
        )
    try:
        return decoder.decode(memoryview(frame)[4:])
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise WireError(f"a message that cannot be read: {error}") from error

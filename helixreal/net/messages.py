"""What the processes of a cluster say to one another, and how it becomes frames.

A message is a header and as many frames of raw bytes as the header says. It begins with the four
bytes of :data:`PREFIX`, which hold the version, and four with the length of the header, a
MessagePack array of one of the types below. A single frame of raw bytes that is not large follows
in the same ZeroMQ frame, which is quicker than another one. Nothing that arrives is executed: it
is one of these types with values in their bounds, or it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from helixsim.errors import HelixError

VERSION = 2
PREFIX = b"hx" + VERSION.to_bytes(2, "big")
MAX_HEADER_BYTES = 8_000_000
MAX_BODY_BYTES = 2_000_000_000
MAX_INLINE_BYTES = 65_536
MAX_FRAMES = 64
MAX_TIME_S = 1e15

_LENGTH_BYTES = 4
_START = len(PREFIX) + _LENGTH_BYTES

Frame = bytes | bytearray | memoryview

Index = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Key = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=20_000)]
Address = Annotated[str, msgspec.Meta(pattern=r"^tcp://.{3,300}$")]


class WireError(HelixError):
    """A message that is not one of ours; it is refused."""


class Message(msgspec.Struct, array_like=True, tag=True, forbid_unknown_fields=True):
    """Root of all messages."""

    @property
    def num_frames(self) -> int:
        """Frames with raw bytes that come behind the header."""
        return 0


class Part(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Root of what stands inside messages."""


# -- getting to know one another ---------------------------------------------------------------


class Hello(Message):
    """A worker is there and waits for work.

    Attributes
    ----------
    node
        Name of its node.
    address
        Where it is to be reached.
    host
        Tells whether two processes read the same clock.
    incarnation
        Differs each time the worker is started.
    engine
        Name of its engine.
    """

    node: Name
    address: Address
    host: Text
    incarnation: Name
    engine: Name


class Curve(Part):
    """A latency profile: seconds of one layer against batched tokens."""

    tokens: list[Tokens]
    seconds: list[float]


class Limits(Part):
    """Capacity and batch limits, as :class:`helixsim.profiles.machine.Capacity`."""

    kv_token_layers: int
    max_prompts: int
    max_prompt_tokens: int
    max_decode_tokens: int
    max_decode_context: int


class OutLink(Part):
    """A link from a worker's node: to whom, and what it is like where links are emulated."""

    target: Index
    bandwidth_bytes_per_s: float
    latency_s: float
    bytes_per_token: float


class Peer(Part):
    """Somebody to send to."""

    index: Index
    name: Name
    address: Address


class Assignment(Message):
    """What a worker is to do.

    Attributes
    ----------
    node, coordinator
        Numbers of its node and of the coordinator.
    machine_type, llm
        Names of its machine type and of the LLM.
    start_layer, end_layer, num_layers, entry_layers
        Which layers it holds, of how many, and where requests enter.
    limits
        Of its batches.
    prefill, decode
        Its machine type's profile for the LLM.
    activation_bytes_per_token, kv_bytes_per_token_layer
        Of the LLM as the scenario has it.
    nic_bytes_per_s
        The node's network interface, outbound.
    physics, node_scheduler
        Names of the scenario's performance model, which emulated engines ask, and of the node
        scheduler.
    engine_costs
        The scenario's serving engine, as JSON.
    max_context_tokens
        No request gets longer.
    heartbeat_s, missing_s
        How often everybody says that they are there, and after what silence they are lost.
        Seconds by the clock.
    time_scale
        Seconds of the run per second by the clock.
    now_s
        The time of the run when this was sent.
    clock_s
        The coordinator's clock at that moment; of use to workers on the same host.
    host
        Tells whether two processes read the same clock.
    emulate_links
        Whether messages are held back as long as the scenario's links would take.
    report_transits
        Whether the policy wants to know how long requests took.
    """

    node: Index
    coordinator: Index
    machine_type: Name
    llm: Name
    start_layer: Index
    end_layer: Index
    num_layers: Index
    entry_layers: list[Index]
    limits: Limits
    prefill: Curve
    decode: Curve
    activation_bytes_per_token: float
    kv_bytes_per_token_layer: float
    nic_bytes_per_s: float
    physics: Name
    node_scheduler: Name
    engine_costs: Annotated[str, msgspec.Meta(max_length=1_000_000)]
    max_context_tokens: Tokens
    heartbeat_s: float
    missing_s: float
    time_scale: float
    now_s: float
    clock_s: float
    host: Text
    emulate_links: bool
    report_transits: bool


class Ready(Message):
    """A worker has loaded its layers; this is the room that it has for KV caches."""

    node: Index
    incarnation: Name
    kv_blocks: Index
    block_tokens: Index


class Peers(Message):
    """Where others are to be reached now, and the links that leave the receiver's node."""

    peers: list[Peer]
    links: list[OutLink]


# -- work --------------------------------------------------------------------------------------


class Stage(Part):
    """One stage of a route: a node runs the layers ``[start_layer, end_layer)``."""

    node: Index
    start_layer: Index
    end_layer: Index


class SamplingParams(Part):
    """How tokens of a request are chosen, see :class:`helixreal.engines.engine.Sampling`."""

    temperature: float
    top_p: float
    seed: int | None


class Pass(Part):
    """One pass of a request on its way.

    Attributes
    ----------
    key
        Of the request's KV cache; another one after each new start.
    position
        Tokens that the caches hold already.
    num_tokens
        Tokens of this pass.
    is_prefill
        Whether it is a prompt, or a part of one.
    wants_token
        Whether it ends with a token.
    route
        Of a prefill: the stages from the receiver on. Decodes go the way of their prefill.
    sampling_params
        Of a prefill: how tokens are chosen, where not greedily.
    """

    key: Key
    position: Tokens
    num_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
    is_prefill: bool
    wants_token: bool
    route: list[Stage] | None = None
    sampling_params: SamplingParams | None = None


class Work(Message):
    """Passes for a node, all of which enter at the same layer.

    Token ids (int32, little-endian) come in one frame where they enter layer 0; else the
    sender's hidden states in as many as its engine makes.

    Attributes
    ----------
    sender
        Number of the machine that sends.
    sent_s
        When, in time of the run.
    due_s
        When each arrives over an emulated link; empty otherwise.
    frames
        Frames that follow.
    """

    sender: Index
    entry_layer: Index
    sent_s: float
    passes: list[Pass]
    due_s: list[float]
    frames: Annotated[int, msgspec.Meta(ge=1, le=MAX_FRAMES)]

    @property
    def num_frames(self) -> int:
        """Frames with raw bytes that come behind the header."""
        return self.frames


class Done(Message):
    """Passes that are through the last layer, and the tokens that they ended with (-1 for none)."""

    sender: Index
    keys: list[Key]
    tokens: list[int]
    due_s: list[float]


class Drop(Message):
    """These requests have ended, or have begun anew: forget them."""

    keys: list[Key]


class OutOfBlocks(Message):
    """A worker has no KV blocks left for these requests."""

    sender: Index
    keys: list[Key]


class Failure(Message):
    """A worker cannot go on with these requests, for a reason that a user understands."""

    sender: Index
    keys: list[Key]
    reason: Text


# -- being there -------------------------------------------------------------------------------


class Transit(Part):
    """How long a pass took from being sent by a machine to leaving this one, and when that was."""

    source: Index
    seconds: float
    at_s: float


class Heartbeat(Message):
    """A worker is there; gauges since its start.

    Attributes
    ----------
    waiting_tokens
        Tokens that wait for a step.
    free_kv_tokens
        Tokens for which all layers of the node still have room in the KV cache.
    kv_used_token_layers
        What its KV blocks hold, in tokens x layers; None if its scheduler keeps no account.
    stuck_s
        How long its engine has been busy with what it does now, by the clock.
    lag_s
        The longest that it noticed something late since the last heartbeat, by the clock.
    refused
        Messages that it has refused.
    """

    node: Index
    incarnation: Name
    busy_s: float
    num_tokens: int
    num_batches: int
    num_running: int
    num_waiting: int
    waiting_tokens: int
    free_kv_tokens: int
    kv_used_token_layers: int | None
    stuck_s: float
    lag_s: float
    refused: int
    sent_bytes: list[float]
    sent_requests: list[int]
    transits: list[Transit]


class Alive(Message):
    """The coordinator is there."""


class Shutdown(Message):
    """The end: whoever hears it leaves."""

    reason: Text


class Stop(Message):
    """Somebody asks the coordinator, or a worker without one, to end everything."""


AnyMessage = (
    Hello
    | Assignment
    | Ready
    | Peers
    | Work
    | Done
    | Drop
    | OutOfBlocks
    | Failure
    | Heartbeat
    | Alive
    | Shutdown
    | Stop
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message, frames: Sequence[Frame] = ()) -> list[Frame]:
    """A message and its raw bytes as they are sent."""
    header = _encoder.encode(message)
    start = PREFIX + len(header).to_bytes(_LENGTH_BYTES, "big") + header
    if len(frames) == 1 and len(frames[0]) <= MAX_INLINE_BYTES:
        return [b"".join((start, frames[0]))]
    return [start, *frames]


def decode(parts: Sequence[Frame]) -> tuple[AnyMessage, list[Frame]]:
    """The message in frames that were received, and its raw bytes.

    Raises
    ------
    WireError
        If it is none of ours, of another version, or of a wrong size.
    """
    if not parts:
        raise WireError("an empty message")
    message, inline = decode_first(parts[0])
    frames = [*inline, *parts[1:]]
    check_frames(message, frames)
    return message, frames


def decode_first(first: Frame) -> tuple[AnyMessage, list[Frame]]:
    """The message whose first frame this is, and the raw bytes in it, if any.

    Raises
    ------
    WireError
        If it is none of ours, or of another version.
    """
    if first[:4] != PREFIX:
        if first[:2] != PREFIX[:2]:
            raise WireError("not a message of helixreal")
        raise WireError(
            f"a message of version {int.from_bytes(first[2:4], 'big')}; this is {VERSION}: run "
            "the same release of helixsim everywhere"
        )
    end = _START + int.from_bytes(first[4:_START], "big")
    if not _START <= end <= min(len(first), _START + MAX_HEADER_BYTES):
        raise WireError(f"a header of {end - _START} bytes in a frame of {len(first)}")
    view = memoryview(first)
    try:
        message: AnyMessage = _decoder.decode(view[_START:end])
    except (ValueError, RecursionError) as error:  # msgspec's own errors are of the first kind
        raise WireError(f"a header that cannot be read: {error}") from error
    _check(message)
    return message, [view[end:]] if end < len(first) else []


def check_frames(message: AnyMessage, frames: Sequence[Frame]) -> None:
    """See that the raw frames behind a header are as many as it says.

    Raises
    ------
    WireError
        If they are not, or too large.
    """
    if len(frames) != message.num_frames:
        raise WireError(f"{len(frames)} raw frames; {message.num_frames} were announced")
    if sum([len(frame) for frame in frames]) > MAX_BODY_BYTES:
        raise WireError(f"more than {MAX_BODY_BYTES} bytes")


def _check(message: object) -> None:
    """What types do not say: columns of the same length, times that are times."""
    times: Sequence[float] = ()
    if isinstance(message, Work):
        if message.due_s and len(message.due_s) != len(message.passes):
            raise WireError("due times that do not fit the passes")
        if not message.passes:
            raise WireError("work without passes")
        times = (*message.due_s, message.sent_s)
    elif isinstance(message, Done):
        if len(message.keys) != len(message.tokens) or (
            len(message.due_s) not in (0, len(message.keys))
        ):
            raise WireError("columns of different lengths")
        times = message.due_s
    elif isinstance(message, Heartbeat):
        times = (message.busy_s, message.stuck_s, message.lag_s, *message.sent_bytes)
    if not all(0 <= each < MAX_TIME_S for each in times):
        raise WireError("a time or an amount that cannot be")

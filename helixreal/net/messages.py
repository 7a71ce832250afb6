"""Messages between the processes of a cluster, and their encoding as frames.

A message is a header, followed by the number of raw frames that the header states. The first frame
begins with the four bytes of :data:`PREFIX`, which contain the version, and four bytes with the
length of the header, a MessagePack array of one of the types below. A single small raw frame
follows in the same ZeroMQ frame, which is faster than a second frame. Received data is never
executed: it decodes to one of these types, with values within their bounds, or it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from helixsim.errors import HelixError

VERSION = 3
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
NumTokens = Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=20_000)]
Address = Annotated[str, msgspec.Meta(pattern=r"^tcp://.{3,300}$")]


class WireError(HelixError):
    """A message that cannot be decoded; it is refused."""


class Message(msgspec.Struct, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base class of messages."""

    @property
    def num_frames(self) -> int:
        """Number of raw frames after the header."""
        return 0


class Part(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Base class of parts of messages."""


# -- registration -----------------------------------------------------------------------------


class Hello(Message):
    """A worker registers and waits for its assignment.

    Attributes
    ----------
    node
        Name of its node.
    address
        Its address.
    host
        Identifies its clock, see :func:`helixreal.net.clock.this_host`.
    incarnation
        A value that differs for each start of a worker.
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

    tokens: list[NumTokens]
    seconds: list[float]


class Limits(Part):
    """Capacity and batch limits, as :class:`helixsim.profiles.machine.Capacity`."""

    kv_token_layers: int
    max_prompts: int
    max_prompt_tokens: int
    max_decode_tokens: int
    max_decode_context: int


class Llm(Part):
    """The LLM of the scenario, as :class:`helixsim.profiles.machine.LLM`."""

    name: Name
    num_layers: Index
    activation_bytes_per_token: float
    token_bytes: float
    layer_bytes: float
    kv_bytes_per_token_layer: float
    once_bytes: float = 0.0


class Machine(Part):
    """The properties of a node's machine that performance models may use.

    Attributes
    ----------
    machine_type, region
        Names of its machine type and of its region.
    inbound_bytes_per_s, outbound_bytes_per_s
        Bandwidths of its network interface.
    disk_bytes_per_s
        Bandwidth of its disk.
    """

    machine_type: Name
    region: Text
    inbound_bytes_per_s: float
    outbound_bytes_per_s: float
    disk_bytes_per_s: float


class OutLink(Part):
    """A link from a worker's node: its target, and its properties for emulated links."""

    target: Index
    bandwidth_bytes_per_s: float
    latency_s: float
    bytes_per_token: float


class Peer(Part):
    """The address of another worker."""

    index: Index
    name: Name
    address: Address


class Assignment(Message):
    """The assignment of a worker: its layers, and the settings of the run.

    Attributes
    ----------
    node, coordinator
        Numbers of its node and of the coordinator.
    machine, llm
        Its machine, and the LLM.
    start_layer, end_layer, entry_layers
        The layers of the node, and the layers at which requests enter.
    limits
        Limits of its batches.
    prefill, decode
        The profile of its machine type for the LLM.
    physics, node_scheduler
        Names of the performance model, which emulated engines use, and of the node scheduler.
    engine_costs
        The scenario's serving engine, as JSON.
    max_context_tokens
        Limit of the tokens of a request.
    heartbeat_s, missing_s
        Interval of heartbeats, and the silence after which a process counts as lost. Seconds by
        the clock.
    time_scale
        Seconds of the run per second by the clock.
    now_s
        The time of the run when this was sent.
    clock_s
        The coordinator's monotonic clock at that time, for workers on the same host.
    host
        Identifies the coordinator's clock, see :func:`helixreal.net.clock.this_host`.
    emulate_links
        Whether messages arrive after the transfer times of the scenario's links.
    report_transits
        Whether heartbeats report transit times of passes.
    operators
        The operator tables of its machine type for the LLM, as JSON; empty without.
    """

    node: Index
    coordinator: Index
    machine: Machine
    llm: Llm
    start_layer: Index
    end_layer: Index
    entry_layers: list[Index]
    limits: Limits
    prefill: Curve
    decode: Curve
    physics: Name
    node_scheduler: Name
    engine_costs: Annotated[str, msgspec.Meta(max_length=1_000_000)]
    max_context_tokens: NumTokens
    heartbeat_s: float
    missing_s: float
    time_scale: float
    now_s: float
    clock_s: float
    host: Text
    emulate_links: bool
    report_transits: bool
    operators: Annotated[str, msgspec.Meta(max_length=4_000_000)] = ""


class Ready(Message):
    """A worker has loaded its layers; the size of its KV cache."""

    node: Index
    incarnation: Name
    kv_blocks: Index
    block_tokens: Index


class Peers(Message):
    """Current addresses of other workers, and the links that leave the receiver's node.

    Attributes
    ----------
    ways_back
        Where decodes loop: from a last node of routes to the first nodes, for tokens.
    """

    peers: list[Peer]
    links: list[OutLink]
    ways_back: list[OutLink] = []


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


class Answer(Part):
    """What the first node of a route needs to go on by itself, where decodes loop.

    Attributes
    ----------
    max_tokens
        Tokens to generate, at most.
    priority, arrival_s
        See :class:`helixsim.requests.Request`.
    """

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
    priority: int
    arrival_s: float


class Pass(Part):
    """One pass of a request or, from the coordinator where decodes loop, the whole of it.

    Attributes
    ----------
    key
        Key of the attempt, and of its KV blocks.
    position
        Tokens in the KV caches before the pass.
    num_tokens
        Tokens of the pass.
    is_prefill
        Whether it is a prefill, or a chunk of one.
    wants_token
        Whether the last stage samples a token.
    route
        For a prefill: the stages from the receiver on. Decodes take the route of their prefill.
    sampling_params
        For a prefill: the sampling parameters; None for greedy sampling.
    first
        For a prefill where decodes loop: number of the first node of the route.
    is_last
        Where decodes loop: whether the pass yields the last token of the answer.
    answer
        For a whole request: what is to be generated.
    """

    key: Key
    position: NumTokens
    num_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
    is_prefill: bool
    wants_token: bool
    route: list[Stage] | None = None
    sampling_params: SamplingParams | None = None
    first: Index = 0
    is_last: bool = False
    answer: Answer | None = None


class Work(Message):
    """Passes for a node that enter at the same layer.

    At layer 0, one frame contains the token ids (int32, little-endian); at other layers, frames
    contain the hidden states, as the sender's engine packs them.

    Attributes
    ----------
    sender
        Number of the sending machine.
    sent_s
        Time of sending, in seconds of the run.
    due_s
        Arrival times over an emulated link; empty otherwise.
    frames
        Number of raw frames.
    """

    sender: Index
    entry_layer: Index
    sent_s: float
    passes: list[Pass]
    due_s: list[float]
    frames: Annotated[int, msgspec.Meta(ge=1, le=MAX_FRAMES)]

    @property
    def num_frames(self) -> int:
        """Number of raw frames after the header."""
        return self.frames


class Done(Message):
    """Passes that have left the last layer, and their sampled tokens (-1 for none).

    Attributes
    ----------
    due_s
        Arrival times over an emulated link: one for each, or one for all; empty otherwise.
    """

    sender: Index
    keys: list[Key]
    tokens: list[int]
    due_s: list[float]


class Tokens(Message):
    """Passes that have left the last layer, for the first node of their route to go on with.

    Attributes
    ----------
    tokens
        The sampled tokens; -1 for chunks that yield none.
    due_s
        Arrival time over an emulated way back; None otherwise.
    """

    sender: Index
    keys: list[Key]
    tokens: list[int]
    due_s: float | None


class Drop(Message):
    """Attempts that have ended: the worker drops them and frees their KV blocks."""

    keys: list[Key]


class OutOfBlocks(Message):
    """A worker has preempted these requests because its KV blocks ran out."""

    sender: Index
    keys: list[Key]


class Failure(Message):
    """A worker cannot continue these requests; the reason is shown to users.

    Without keys: the worker cannot load its engine.
    """

    sender: Index
    keys: list[Key]
    reason: Text


# -- liveness ----------------------------------------------------------------------------------


class Transit(Part):
    """Time from the sending of a pass by `source` to its departure from this node, at `at_s`."""

    source: Index
    seconds: float
    at_s: float


class Heartbeat(Message):
    """A worker is alive; its gauges since its start.

    Attributes
    ----------
    waiting_tokens
        Tokens that wait for a step.
    free_kv_tokens
        Free tokens of the KV cache, on all layers of the node.
    kv_used_token_layers
        Used KV capacity in tokens x layers; None if its scheduler does not count it.
    stuck_s
        Time that its engine has been running the current batch, by the clock.
    lag_s
        The longest delay since the last heartbeat, by the clock.
    refused
        Number of messages that it has refused.
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
    """Heartbeat of the coordinator."""


class Shutdown(Message):
    """The receiving worker ends."""

    reason: Text


class Stop(Message):
    """A command asks the coordinator, or a worker without a coordinator, to end."""


AnyMessage = (
    Hello
    | Assignment
    | Ready
    | Peers
    | Work
    | Done
    | Tokens
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
    """Encode a message and its raw frames."""
    header = _encoder.encode(message)
    start = PREFIX + len(header).to_bytes(_LENGTH_BYTES, "big") + header
    if len(frames) == 1 and len(frames[0]) <= MAX_INLINE_BYTES:
        return [b"".join((start, frames[0]))]
    return [start, *frames]


def decode(parts: Sequence[Frame]) -> tuple[AnyMessage, list[Frame]]:
    """Decode received frames to a message and its raw frames.

    Raises
    ------
    WireError
        If they are not a message of this version, or have a wrong size.
    """
    if not parts:
        raise WireError("an empty message")
    message, inline = decode_first(parts[0])
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
    end = _START + int.from_bytes(first[4:_START], "big")
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
    if isinstance(message, Work):
        if message.due_s and len(message.due_s) != len(message.passes):
            raise WireError("the numbers of due times and passes differ")
        if not message.passes:
            raise WireError("work without passes")
        times = (*message.due_s, message.sent_s)
    elif isinstance(message, Done):
        if len(message.keys) != len(message.tokens) or (
            len(message.due_s) not in (0, 1, len(message.keys))
        ):
            raise WireError("columns of different lengths")
        times = message.due_s
    elif isinstance(message, Tokens):
        if len(message.keys) != len(message.tokens):
            raise WireError("columns of different lengths")
        times = (message.due_s or 0.0,)
    elif isinstance(message, Heartbeat):
        times = (message.busy_s, message.stuck_s, message.lag_s, *message.sent_bytes)
    if not all(0 <= each < MAX_TIME_S for each in times):
        raise WireError("a time or an amount out of range")

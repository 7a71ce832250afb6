"""Messages between the processes of a cluster; :mod:`helixreal.net.encoding` makes them frames."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from helixreal.engines.engine import Sampling, Scores

MAX_FRAMES = 64

Frame = bytes | bytearray | memoryview

Index = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Key = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
TokenId = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]
NumTokens = Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]
NumBlocks = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=20_000)]
Address = Annotated[str, msgspec.Meta(pattern=r"^tcp://.{3,300}$")]


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
        A value that differs for each time that a worker joins.
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
    embedding_bytes: float = 0.0
    head_bytes: float = 0.0
    shared_bytes: float = 0.0
    bytes_of_layer: tuple[float, ...] = ()
    kv_bytes_of_layer: tuple[float, ...] = ()


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


Limit = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Auto = Literal["auto"]


class Composition(Part):
    """What a step may take: :class:`helixsim.control.node_schedulers.composition.StepLimits`.

    Attributes
    ----------
    num_stages
        Stages of a route, on average.
    """

    max_prefill_tokens: Limit | None
    max_decodes: Limit | Auto | None
    max_wait_s: float | Auto
    num_stages: float


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
    composition
        Limits of its steps; None where prefills are not streamed and steps not limited.
    session
        Identifies the run of the coordinator. Messages of other runs are refused.
    incarnation
        That of the hello to which this is the answer.
    first_key
        Passes of attempts with lower keys are not meant for this worker.
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
    composition: Composition | None = None
    session: Key = 0
    incarnation: Text = ""
    first_key: Key = 0


class Ready(Message):
    """A worker has loaded its layers; the size of its KV cache."""

    node: Index
    incarnation: Name
    kv_blocks: NumBlocks
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
    is_streamed
        For a chunk of a prefill: whether the next chunk follows without waiting for this one,
        which is over when it leaves the last layer.
    context
        For the first pass, if the sampling needs it: token ids of the prompt and of the answer so
        far (int32, little-endian).
    """

    key: Key
    position: NumTokens
    num_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
    is_prefill: bool
    wants_token: bool
    route: list[Stage] | None = None
    sampling_params: Sampling | None = None
    first: Index = 0
    is_last: bool = False
    answer: Answer | None = None
    is_streamed: bool = False
    context: bytes = b""


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
    number
        Where decodes loop: counts these messages of a worker from 1, so that a lost one is noticed.
        0 otherwise.
    scores
        Key -> log probabilities, of requests that ask for them.
    """

    sender: Index
    keys: list[Key]
    tokens: list[TokenId]
    due_s: list[float]
    number: Key = 0
    scores: dict[Key, Scores] = {}


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
    tokens: list[TokenId]
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

    Without keys: the worker cannot load its engine; or, with its incarnation, its engine has
    failed for good and it leaves.
    """

    sender: Index
    keys: list[Key]
    reason: Text
    incarnation: Text = ""


# -- liveness ----------------------------------------------------------------------------------


class Transit(Part):
    """Time from the sending of a pass by `source` to its departure from this node, at `at_s`."""

    source: Index
    seconds: float
    at_s: float


class PeerSilence(Part):
    """Time since a worker has heard another, by the clock."""

    source: Index
    silent_s: float


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
    unheard_s
        Time since it has heard the coordinator, by the clock.
    silences
        Of each peer that it has heard since it joined: for how long it is silent.
    asked_tokens, hit_tokens
        Tokens looked up in its prefix cache, and found there.
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
    unheard_s: float = 0.0
    silences: list[PeerSilence] = []
    asked_tokens: int = 0
    hit_tokens: int = 0


class Alive(Message):
    """Heartbeat of the coordinator."""


class PeerAlive(Message):
    """Heartbeat of a worker for a peer to which it sends passes or tokens."""

    sender: Index


class Rejoin(Message):
    """The worker counts as lost: it drops its requests and joins again.

    Attributes
    ----------
    incarnation
        That of the worker that was lost.
    """

    incarnation: Name


class Shutdown(Message):
    """The receiving worker ends; with `is_fault`, because of a fault of its own."""

    reason: Text
    is_fault: bool = False


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
    | PeerAlive
    | Rejoin
    | Shutdown
    | Stop
)

OF_ANY_SESSION = (Hello, Assignment, Stop)
"""Messages that are taken from every run of a coordinator: they begin or end a session."""

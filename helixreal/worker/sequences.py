"""Requests on a node, and their passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helixreal.engines.engine import GREEDY, Payload, Row, Sampling
from helixreal.net.messages import Stage
from helixsim.requests import Request

TO_COORDINATOR = -1
"""Target of passes that leave the last layer, in place of a node's number."""


class SequenceState(Request):
    """A request on this node, and its current pass.

    Attributes
    ----------
    key
        Key of the attempt in messages.
    entry_layer, end_layer
        It runs the layers ``[entry_layer, end_layer)`` of the node.
    next_stages
        The stages after this node.
    sampling
        How its tokens are sampled.
    first
        Where decodes loop: number of the first node of its route.
    payload, wants_token, sender, sent_on_s
        Payload of the pass, whether the last stage samples a token, the machine that sent the
        pass, and the time of sending.
    num_received_tokens
        Tokens of the passes that have arrived: the next one begins there.
    """

    __slots__ = (
        "end_layer",
        "entry_layer",
        "first",
        "key",
        "next_stages",
        "num_received_tokens",
        "payload",
        "sampling",
        "sender",
        "sent_on_s",
        "wants_token",
    )

    def __init__(
        self,
        key: int,
        entry_layer: int,
        end_layer: int,
        next_stages: Sequence[Stage],
        sampling: Sampling = GREEDY,
    ) -> None:
        super().__init__(key, 0.0, 1, 1, num_decodes=0)
        self.key = key
        self.entry_layer = entry_layer
        self.end_layer = end_layer
        self.next_stages = next_stages
        self.sampling = sampling
        self.first = 0
        self.num_received_tokens = 0
        self.payload: Payload = None
        self.wants_token = True
        self.sender = TO_COORDINATOR
        self.sent_on_s = 0.0

    def begin_pass(self, arrived: ArrivingPass | int) -> None:
        """Set the fields of the current pass."""
        assert isinstance(arrived, ArrivingPass)
        self.is_prefill = arrived.is_prefill
        self.num_computed_tokens = arrived.position
        self.num_new_tokens = arrived.num_tokens
        self.payload = arrived.payload
        self.wants_token = arrived.wants_token
        self.sender = arrived.sender
        self.sent_on_s = arrived.sent_on_s

    def row(self) -> Row:
        """The row of the current pass for the engine."""
        return Row(
            self.origin,
            self.num_computed_tokens,
            self.num_new_tokens,
            self.payload,
            self.wants_token,
            self.sampling,
        )


class StreamedChunk(SequenceState):
    """A chunk of a prefill that travels ahead of its request: a pass beside others of it.

    Attributes
    ----------
    origin
        The request, which holds the KV blocks.
    """

    __slots__ = ("origin",)

    origin: SequenceState  # a slot in place of the property

    def __init__(self, request: SequenceState) -> None:
        self.origin = request
        super().__init__(
            request.key,
            request.entry_layer,
            request.end_layer,
            request.next_stages,
            request.sampling,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivingPass:
    """A pass in flight to this node; see :class:`SequenceState`.

    Attributes
    ----------
    position
        Tokens in the KV cache before the pass.
    num_tokens
        Tokens of the pass.
    is_last
        Where decodes loop: whether it yields the last token of the answer.
    """

    position: int
    num_tokens: int
    payload: Payload
    is_prefill: bool
    wants_token: bool
    sender: int = TO_COORDINATOR
    sent_on_s: float = 0.0
    is_last: bool = False

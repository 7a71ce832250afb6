"""What a worker keeps of each request: its current pass, and what its sampling needs."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from helixreal.engines.engine import GREEDY, Payload, Row, Sampling, Scores
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
    context
        Tokens of the prompt and of the answer so far, if its sampling needs them.
    scores
        Log probabilities that are to go with its next token.
    payload, wants_token, sender, sent_on_s
        Payload of the pass, whether the last stage samples a token, the machine that sent the
        pass, and the time of sending.
    num_received_tokens
        Tokens of the passes that have arrived: the next one begins there.
    """

    __slots__ = (
        "context",
        "end_layer",
        "entry_layer",
        "first",
        "key",
        "next_stages",
        "num_received_tokens",
        "payload",
        "sampling",
        "scores",
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
        self.context: array[int] | None = None
        self.scores: Scores | None = None
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
            self.whole.context or (),
        )

    @property
    def whole(self) -> SequenceState:
        """The request that this is, or is a chunk of."""
        return self

    def take_result(self, row: Row) -> None:
        """Keep what the engine has made of the current pass."""
        self.payload = row.payload
        if row.scores is not None:
            self.whole.add_scores(row.scores)

    def note_token(self) -> None:
        """Remember the token, if there is one, of a pass that has left the last layer."""
        if self.context is not None and self.wants_token:
            self.context.append(self.payload)

    def add_scores(self, scores: Scores) -> None:
        """Keep log probabilities, beside any of earlier passes, for the next token."""
        before = self.scores.prompt if self.scores is not None else []
        self.scores = Scores(scores.token, before + scores.prompt)

    def take_scores(self) -> Scores | None:
        """The log probabilities that go with the token of the current pass."""
        scores, self.scores = self.scores, None
        return scores

    def take_context(self) -> bytes:
        """The tokens for later stages, with the first pass that goes there."""
        tokens, self.context = self.context, None
        return b"" if tokens is None else struct.pack(f"<{len(tokens)}i", *tokens)


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

    @property
    def whole(self) -> SequenceState:
        """The request that this is a chunk of."""
        return self.origin


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


def taken_scores(sequences: Iterable[SequenceState]) -> dict[int, Scores]:
    """The log probabilities that go with the tokens of sequences, by key."""
    found = {each.key: each.take_scores() for each in sequences if each.scores is not None}
    return {key: scores for key, scores in found.items() if scores is not None}

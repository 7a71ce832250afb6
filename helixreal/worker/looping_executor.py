"""The node executor where decodes loop: requests go on without waiting for the coordinator.

The first node of a route knows the tokens of its requests: each step takes its token ids from
them. On a node that holds all layers, a new token is in the next step at once, and goes to the
coordinator beside. On a longer route, the last node sends it to the coordinator and straight to
the first node.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Hashable, Sequence
from hashlib import blake2b

from helixreal.engines.engine import GREEDY, Row, Sampling
from helixreal.net.messages import Answer, Stage
from helixreal.worker.node_executor import NodeExecutor, Outbox
from helixreal.worker.runner import Runner
from helixreal.worker.sequences import ArrivingPass, SequenceState, taken_scores
from helixsim.control.node_schedulers import NodeScheduler
from helixsim.control.node_schedulers.scheduler import RETURNS
from helixsim.requests import Route
from helixsim.requests import Stage as RouteStage
from helixsim.steps import Batch

NO_TOKEN = -1
"""In place of a token, for a pass that has yielded none."""

_DIGEST_BYTES = 16


class FirstSequence(SequenceState):
    """A request on the first node of its route, which stays until its answer is complete.

    Attributes
    ----------
    tokens
        Token ids that are known: of the prompt and of the answer so far.
    is_away
        Whether it is at later stages of its route.
    """

    __slots__ = ("_digests", "_has_entered", "_has_told_context", "is_away", "tokens")

    def __init__(
        self,
        key: int,
        tokens: array[int],
        answer: Answer,
        stages: Sequence[Stage],
        sampling: Sampling = GREEDY,
    ) -> None:
        super().__init__(key, 0, stages[0].end_layer, stages[1:], sampling)
        self.tokens = tokens
        self.arrival_s, self.priority = answer.arrival_s, answer.priority
        self.prompt_tokens = len(tokens)
        self.output_tokens, self.num_decodes = answer.max_tokens, answer.max_tokens - 1
        self.split_prefill(None)
        self.route = Route([RouteStage(s.node, s.start_layer, s.end_layer) for s in stages])
        self.first = stages[0].node
        self.is_away = self._has_entered = self._has_told_context = False
        self._digests: list[bytes] = []

    def begin_pass(self, arrived: ArrivingPass | int) -> None:
        """Enter the node, or be back from the last stage, with a token if there is one."""
        assert isinstance(arrived, int)
        self.entry_layer = RETURNS if self._has_entered else 0
        self._has_entered = True
        if arrived >= 0:
            self.tokens.append(arrived)

    def row(self) -> Row:
        """The row of the pass that was composed, with its token ids."""
        start, num_tokens = self.num_computed_tokens, self.num_new_tokens
        self.wants_token = wants_token = self.yields_token
        payload = self.tokens[start : start + num_tokens]
        return Row(self, start, num_tokens, payload, wants_token, self.sampling, self.tokens)

    def take_context(self) -> bytes:
        """The tokens for later stages, with the first pass that goes there."""
        if self._has_told_context or not self.sampling.needs_context:
            return b""
        self._has_told_context = True
        return struct.pack(f"<{len(self.tokens)}i", *self.tokens)

    def block_key(self, number: int, block_tokens: int) -> Hashable:
        """A digest of all tokens up to the end of a block, chained block by block."""
        if self.sampling.prompt_logprobs is not None:
            return self.key, number  # all tokens are computed, to see their log probabilities
        digests = self._digests
        while len(digests) <= number:
            start = len(digests) * block_tokens
            block = self.tokens[start : start + block_tokens]
            before = digests[-1] if digests else b""
            digests.append(blake2b(before + block.tobytes(), digest_size=_DIGEST_BYTES).digest())
        return digests[number]


class LaterSequence(SequenceState):
    """A request on a later node, whose passes are decided on the first."""

    __slots__ = ()

    def begin_pass(self, arrived: ArrivingPass | int) -> None:
        """Set the current pass, so that `yields_token` and `is_last_pass` say what was decided."""
        assert isinstance(arrived, ArrivingPass)
        super().begin_pass(arrived)
        self.prompt_tokens = arrived.position + arrived.num_tokens + (not arrived.wants_token)
        self.num_decodes = 0 if arrived.is_last else 1


class LoopingExecutor(NodeExecutor):
    """Carries out the steps of a node whose requests go on by themselves."""

    def __init__(
        self, scheduler: NodeScheduler, runner: Runner, outbox: Outbox, time_scale: float = 1.0
    ) -> None:
        super().__init__(scheduler, runner, outbox, time_scale)
        self._poll_s = 0.0
        self._unsent: list[SequenceState] = []

    def take_back(self, keys: Sequence[int], tokens: Sequence[int], due_s: float) -> None:
        """Take requests back whose pass has left the last node, each with its token or none."""
        for key, token in zip(keys, tokens, strict=True):
            sequence = self.sequences.get(key)
            if isinstance(sequence, FirstSequence) and sequence.is_away:
                sequence.is_away = False
                self.add_arrival(sequence, token, due_s)

    def _take_out_gone(self) -> bool:
        super()._take_out_gone()
        return self.scheduler.queue_length > 0

    def _begin_step(self, now: float) -> None:
        """Start the next step, then send the tokens of the last one: the engine goes on."""
        super()._begin_step(now)
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            self._send_tokens(unsent, now)

    def _send_on(self, batch: Batch, now: float) -> None:
        groups: dict[int, list[SequenceState]] = {}
        last: list[SequenceState] = []
        for sequence in batch.requests:
            assert isinstance(sequence, SequenceState)
            if sequence.next_stages:
                groups.setdefault(sequence.next_stages[0].node, []).append(sequence)
            elif isinstance(sequence, FirstSequence):
                sequence.tokens.append(_token(sequence))
                self._unsent.append(sequence)
                if sequence.num_generated_tokens > sequence.num_decodes:
                    del self.sequences[sequence.key]
                continue
            else:
                sequence.note_token()
                last.append(sequence)
            if sequence.is_last_pass:
                del self.sequences[sequence.key]
            elif isinstance(sequence, FirstSequence):
                sequence.is_away = True
        for target, group in groups.items():
            self._outbox.send_passes(target, group, now)
        if last:
            self._send_back([each for each in last if not each.is_last_pass], now)
            self._send_tokens([each for each in last if each.yields_token], now)

    def _send_back(self, sequences: Sequence[SequenceState], now: float) -> None:
        groups: dict[int, list[SequenceState]] = {}
        for sequence in sequences:
            groups.setdefault(sequence.first, []).append(sequence)
        for first, group in groups.items():
            keys = [sequence.key for sequence in group]
            tokens = [_token(each) if each.yields_token else NO_TOKEN for each in group]
            self._outbox.send_back(first, keys, tokens, now)

    def _send_tokens(self, sequences: Sequence[SequenceState], now: float) -> None:
        if sequences:
            keys = [sequence.key for sequence in sequences]
            tokens = [_token(sequence) for sequence in sequences]
            self._outbox.send_tokens(keys, tokens, now, taken_scores(sequences))


def _token(sequence: SequenceState) -> int:
    """The token that the last pass of a request has yielded."""
    return int(sequence.payload)

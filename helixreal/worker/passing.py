"""The passes of a worker under one assignment: in from its peers, through its engine, and on."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence

from helixreal.engines.engine import Engine, Payload, Scores
from helixreal.engines.token_ids import wrong_token
from helixreal.net import messages
from helixreal.net.clock import Clock
from helixreal.net.messages import Frame
from helixreal.net.outgoing_link import OutgoingLink
from helixreal.net.transport import Transport
from helixreal.worker.early_work import EarlyWork
from helixreal.worker.emulation import emulated_sender
from helixreal.worker.looping_executor import NO_TOKEN, LoopingExecutor
from helixreal.worker.node_executor import NodeExecutor
from helixreal.worker.passes import check_route, first_sequence, new_sequence, pass_of, token_lists
from helixreal.worker.runner import Runner
from helixreal.worker.sequences import (
    TO_COORDINATOR,
    ArrivingPass,
    SequenceState,
    StreamedChunk,
    taken_scores,
)
from helixreal.worker.settings import WorkerSettings, node_scheduler
from helixsim.cluster import COORDINATOR
from helixsim.control.node_schedulers import NODE_SCHEDULERS, decodes_loop

logger = logging.getLogger(__name__)


PassMessage = messages.Work | messages.Tokens | messages.Drop | messages.Peers | messages.PeerAlive
"""Messages about passes and peers."""


class Passing:
    """Takes work, runs it, and sends it on, until the assignment ends.

    It is the :class:`~helixreal.worker.node_executor.Outbox` of its executor.

    Parameters
    ----------
    settings, assignment
        Settings of the worker, and its assignment.
    engine, runner
        The engine, whose KV cache is empty, and what runs it.
    clock
        The time of the run.
    transport
        The sockets of the worker.

    Attributes
    ----------
    assignment
        The assignment.
    executor
        The node executor.
    links
        The links that leave the node, by number of the target.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        assignment: messages.Assignment,
        engine: Engine,
        runner: Runner,
        clock: Clock,
        transport: Transport,
    ) -> None:
        self.assignment = assignment
        self._engine = engine
        self._clock = clock
        self._transport = transport
        self._sender = emulated_sender(assignment)
        self._loops = decodes_loop(NODE_SCHEDULERS.get(assignment.node_scheduler))
        make_executor = LoopingExecutor if self._loops else NodeExecutor
        self.executor: NodeExecutor = make_executor(
            node_scheduler(settings, assignment, engine), runner, self, assignment.time_scale
        )
        self.links: dict[int, OutgoingLink] = {}
        self._ways_back: dict[int, OutgoingLink] = {}
        self._names: dict[int, str] = {}
        self._early = EarlyWork()
        self._transits: list[messages.Transit] = []
        self._heard_s: dict[int, float] = {}
        self._num_token_messages = 0
        self._is_over = False

    # -- its end -----------------------------------------------------------------------------

    def end(self) -> None:
        """Drop all requests and send nothing any more. A batch that runs is finished."""
        self._is_over = True
        self._early = EarlyWork()
        self.executor.drop(list(self.executor.sequences))

    @property
    def is_idle(self) -> bool:
        """Whether no batch runs and no request is left, after :meth:`end`."""
        return self.executor.next_event_s() is None and not self.executor.is_running

    def take_transits(self) -> list[messages.Transit]:
        """The transit times since the last call."""
        transits, self._transits = self._transits, []
        return transits

    def take(
        self,
        message: PassMessage,
        frames: list[Frame],
        clock_s: float,
    ) -> None:
        """Process a message about passes or peers that is received at this time by the clock.

        Raises
        ------
        ValueError
            If it is not meant for this node, or cannot be done.
        """
        match message:
            case messages.Work():
                self._heard_s[message.sender] = clock_s
                self._on_work(message, frames)
            case messages.Tokens():
                self._heard_s[message.sender] = clock_s
                self._on_tokens(message)
            case messages.PeerAlive():
                self._heard_s[message.sender] = clock_s
            case messages.Drop():
                self._on_drop(message.keys)
            case messages.Peers():
                self._on_peers(message)

    # -- peers -------------------------------------------------------------------------------

    def _on_peers(self, message: messages.Peers) -> None:
        """Take links, addresses of peers and ways back; then work that had waited for them."""
        emulated = self.assignment.emulate_links
        for link in message.links:
            if link.target not in self.links:
                self.links[link.target] = OutgoingLink(
                    link.bandwidth_bytes_per_s,
                    link.latency_s,
                    link.bytes_per_token,
                    is_emulated=emulated,
                    sender=self._sender,
                    to_coordinator=link.target == self.assignment.coordinator,
                )
        for way in message.ways_back:
            self._ways_back[way.target] = OutgoingLink(
                way.bandwidth_bytes_per_s, way.latency_s, way.bytes_per_token, is_emulated=emulated
            )
        for peer in message.peers:
            self._names[peer.index] = peer.name
            self._transport.connect(peer.name, peer.address)
        for held in self._early.take(self._knows_the_way):
            self._take(held.work, held.frames)

    def greet_peers(self) -> None:
        """Send a heartbeat to every peer to which passes or tokens go."""
        alive = messages.PeerAlive(self.assignment.node)
        for target in dict.fromkeys((*self.links, *self._ways_back)):
            if target in self._names:
                self._transport.send(self._names[target], alive)

    def silences(self, clock_s: float) -> list[messages.PeerSilence]:
        """For how long each peer that was heard is silent."""
        coordinator = self.assignment.coordinator
        return [
            messages.PeerSilence(source, max(clock_s - heard_s, 0.0))
            for source, heard_s in self._heard_s.items()
            if source != coordinator
        ]

    def excuse(self, paused_s: float, clock_s: float) -> None:
        """Do not count this time, up to now, as silence of peers: this process was not running."""
        self._heard_s = {
            source: min(at + paused_s, clock_s) for source, at in self._heard_s.items()
        }

    def _knows_the_way(self, work: messages.Work) -> bool:
        """Whether all that is needed to send passes on has been heard of.

        Links come with the first message about peers; the address of a peer that has come back
        may come after work that leads to it, because it takes another way.
        """
        if not self.links:
            return False
        for each in work.passes:
            if each.route is None:
                continue
            following = each.route[1].node if each.route[1:] else None
            if following is None and self._loops and each.first != self.assignment.node:
                following = each.first
            is_peer = following in self.links or following in self._ways_back
            if is_peer and following not in self._names:
                return False
        return True

    # -- work --------------------------------------------------------------------------------

    def _on_work(self, work: messages.Work, frames: list[Frame]) -> None:
        """Take passes, or hold them until the peers that they need are known."""
        if self._knows_the_way(work):
            self._take(work, frames)
        else:
            self._early.hold(work, frames)

    def _take(self, work: messages.Work, frames: list[Frame]) -> None:
        if work.entry_layer not in self.assignment.entry_layers:
            raise ValueError(f"layer {work.entry_layer} is not an entry layer of this node")
        payloads = self._payloads(work, frames)
        now = self._clock.now()
        self.executor.next_message()
        for place, (each, payload) in enumerate(zip(work.passes, payloads, strict=True)):
            if each.key < self.assignment.first_key:
                continue  # meant for an earlier worker of this node
            try:
                self._on_pass(work, each, payload, work.due_s[place] if work.due_s else now)
            except ValueError as error:
                self._transport.refuse(f"Work: request {each.key}: {error}")

    def _payloads(self, work: messages.Work, frames: list[Frame]) -> Sequence[Payload]:
        """Token ids or hidden states of each pass; requests fail whose payload is not right."""
        num_tokens = [each.num_tokens for each in work.passes]
        try:
            if work.entry_layer > 0:
                return self._engine.unpack(frames, num_tokens)
            return token_lists(frames, num_tokens)
        except ValueError as error:
            # Which of the passes is wrong cannot be told.
            self._refuse_requests([each.key for each in work.passes], str(error))
            raise

    def _refuse_requests(self, keys: list[int], reason: str) -> None:
        """Let requests fail whose pass cannot be run, before it gets to the engine."""
        self.executor.drop(keys)
        self.failed(keys, reason)

    def _on_pass(
        self, work: messages.Work, each: messages.Pass, payload: Payload, due_s: float
    ) -> None:
        """Take one pass of a message."""
        if work.entry_layer == 0:
            vocabulary = getattr(self._engine, "vocabulary", None)
            if (wrong := wrong_token(payload, vocabulary)) is not None:
                self._refuse_requests([each.key], wrong)
                return
            # Routes that begin elsewhere may enter the same node behind its first layer.
            if self._loops:
                self._on_request(each, payload, due_s)
                return
        sequence = self._sequence(each, work.entry_layer)
        if sequence is None:
            return
        arriving = ArrivingPass(
            position=each.position,
            num_tokens=each.num_tokens,
            payload=payload,
            is_prefill=each.is_prefill,
            wants_token=each.wants_token,
            sender=work.sender,
            sent_on_s=work.sent_s,
            is_last=each.is_last,
        )
        self.executor.add_arrival(sequence, arriving, due_s)

    def _on_request(self, each: messages.Pass, tokens: array[int], due_s: float) -> None:
        """Take a whole request, which stays on this node until its answer is complete."""
        executor, assignment = self.executor, self.assignment
        if each.answer is None or each.route is None or each.key in executor.sequences:
            raise ValueError("a whole request was expected")
        if executor.was_dropped(each.key):
            return
        self._check_route(each, 0)
        if each.num_tokens + each.answer.max_tokens - 1 > assignment.max_context_tokens:
            most = assignment.max_context_tokens
            self._refuse_requests([each.key], f"the request has more than {most} tokens")
            return
        sequence = executor.sequences[each.key] = first_sequence(each, tokens)
        executor.add_arrival(sequence, NO_TOKEN, due_s)

    def _on_tokens(self, message: messages.Tokens) -> None:
        """Take requests back from the last node of their route."""
        if isinstance(self.executor, LoopingExecutor):
            due_s = self._clock.now() if message.due_s is None else message.due_s
            self.executor.take_back(message.keys, message.tokens, due_s)

    def _on_drop(self, keys: Sequence[int]) -> None:
        self.executor.drop(keys)
        self._early.forget(keys)
        for link in self.links.values():
            link.forget(keys)

    def _check_route(self, each: messages.Pass, entry_layer: int) -> None:
        check_route(each, entry_layer, self.assignment)
        assert each.route is not None
        if each.route[1:] and each.route[1].node not in self.links:
            raise ValueError("the route has no link to its next node")

    def _sequence(self, each: messages.Pass, entry_layer: int) -> SequenceState | None:
        """The sequence of a pass; None if it has been dropped, or passes before it were lost."""
        assignment, sequences = self.assignment, self.executor.sequences
        if each.position + each.num_tokens > assignment.max_context_tokens:
            most = assignment.max_context_tokens
            self._refuse_requests([each.key], f"the request has more than {most} tokens")
            return None
        if each.is_streamed and (
            assignment.composition is None
            or each.wants_token
            or each.route is None
            or not each.is_prefill
        ):
            raise ValueError("a chunk in a stream was not expected")
        if self.executor.was_dropped(each.key):
            return None
        if each.route is not None and each.key not in sequences:
            self._check_route(each, entry_layer)
            if self._loops and not each.route[1:] and each.first not in self._ways_back:
                raise ValueError("there is no way back to the first node of the route")
            if each.position:
                return None  # the chunk ahead of it went to an earlier worker of this node
            sequences[each.key] = new_sequence(each, entry_layer, loops=self._loops)
        sequence = sequences.get(each.key)
        if sequence is None or sequence.num_received_tokens != each.position:
            return None
        sequence.num_received_tokens += each.num_tokens
        return StreamedChunk(sequence) if each.is_streamed else sequence

    # -- outbox of the node executor ---------------------------------------------------------

    def send_passes(self, target: int, sequences: list[SequenceState], now: float) -> None:
        """Send passes to the next node, or tokens to the coordinator."""
        if self._is_over:
            return
        assignment = self.assignment
        if assignment.report_transits:
            self._transits += [
                messages.Transit(sequence.sender, now - sequence.sent_on_s, now)
                for sequence in sequences
            ]
        link = self.links[assignment.coordinator if target == TO_COORDINATOR else target]
        due_s = link.arrival_times(now, [sequence.num_new_tokens for sequence in sequences])
        if due_s and assignment.composition is not None:
            due_s = [
                link.in_order(each.key, at, is_followed=isinstance(each, StreamedChunk))
                if each.is_prefill
                else at
                for each, at in zip(sequences, due_s, strict=True)
            ]
        if target == TO_COORDINATOR:
            self._to_coordinator(
                messages.Done(
                    assignment.node,
                    [sequence.key for sequence in sequences],
                    [-1 if each.payload is None else int(each.payload) for each in sequences],
                    due_s,
                    scores=taken_scores(each for each in sequences if each.wants_token),
                )
            )
            return
        frames = self._engine.pack([sequence.payload for sequence in sequences])
        work = messages.Work(
            assignment.node,
            sequences[0].end_layer,
            now,
            [pass_of(sequence) for sequence in sequences],
            due_s,
            len(frames),
        )
        if not self._transport.send(self._names.get(target, ""), work, frames):
            logger.warning("%d passes for node %d could not be sent", len(sequences), target)

    def send_tokens(
        self, keys: list[int], tokens: list[int], now: float, scores: dict[int, Scores]
    ) -> None:
        """Send tokens of answers to the coordinator."""
        if self._is_over:
            return
        due_s = self.links[self.assignment.coordinator].carry_tokens(len(keys), now)
        self._num_token_messages += 1
        self._to_coordinator(
            messages.Done(
                self.assignment.node,
                keys,
                tokens,
                [] if due_s is None else [due_s],
                self._num_token_messages,
                scores,
            )
        )

    def send_back(self, first: int, keys: list[int], tokens: list[int], now: float) -> None:
        """Send tokens to the first node of their routes."""
        if self._is_over:
            return
        due_s = self._ways_back[first].carry_tokens(len(keys), now)
        message = messages.Tokens(self.assignment.node, keys, tokens, due_s)
        if not self._transport.send(self._names.get(first, ""), message):
            logger.warning("%d tokens for node %d could not be sent", len(keys), first)

    def out_of_blocks(self, keys: list[int]) -> None:
        """Report preempted requests to the coordinator, which restarts them."""
        if not self._is_over:
            self._to_coordinator(messages.OutOfBlocks(self.assignment.node, keys))

    def failed(self, keys: list[int], reason: str) -> None:
        """Report failed requests to the coordinator, which ends them."""
        if not self._is_over:
            logger.error("%d requests failed: %s", len(keys), reason)
            self._to_coordinator(messages.Failure(self.assignment.node, keys, reason[:20_000]))

    def _to_coordinator(self, message: messages.Message) -> None:
        self._transport.send(COORDINATOR, message)

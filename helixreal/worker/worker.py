"""A worker process: runs the layers that the coordinator assigns to its node."""

from __future__ import annotations

import logging
import os
import time
from array import array
from collections.abc import Sequence
from math import ceil
from typing import Any
from uuid import uuid4

import zmq

from helixreal.engines import EMULATED, make_engine
from helixreal.engines.engine import Engine, Scores
from helixreal.net import messages
from helixreal.net.clock import Clock, this_host
from helixreal.net.messages import Frame
from helixreal.net.outgoing_link import EmulatedSender, OutgoingLink
from helixreal.net.transport import Transport
from helixreal.worker.emulation import emulated_runner, emulated_sender
from helixreal.worker.looping_executor import NO_TOKEN, LoopingExecutor
from helixreal.worker.node_executor import Gauges, NodeExecutor
from helixreal.worker.passes import check_route, first_sequence, new_sequence, pass_of, token_lists
from helixreal.worker.runner import Runner, ThreadRunner
from helixreal.worker.sequences import (
    TO_COORDINATOR,
    ArrivingPass,
    SequenceState,
    StreamedChunk,
    taken_scores,
)
from helixreal.worker.settings import WorkerSettings, engine_spec, node_scheduler
from helixsim.cluster import COORDINATOR
from helixsim.control.node_schedulers import NODE_SCHEDULERS, decodes_loop
from helixsim.control.prefix_cache import PrefixCache
from helixsim.errors import HelixError, InputError

logger = logging.getLogger(__name__)

_HELLO_S = 0.5
_MAX_WAIT_MS = 100
_MESSAGES_AT_ONCE = 200


class Worker:
    """Joins a cluster as one node: registers, receives its assignment, runs passes until shutdown.

    Parameters
    ----------
    settings
        Settings of the worker.
    transport
        Its sockets, which it flushes at the end.
    """

    def __init__(self, settings: WorkerSettings, transport: Transport) -> None:
        self._settings = settings
        self._transport = transport
        self._incarnation = uuid4().hex
        self._poller = zmq.Poller()
        self._poller.register(transport.inbox, zmq.POLLIN)
        self._assignment: messages.Assignment | None = None
        self._clock = Clock()
        self._runner: Runner | None = None
        self._sender: EmulatedSender | None = None
        self._executor: NodeExecutor | None = None
        self._links: dict[int, OutgoingLink] = {}
        self._ways_back: dict[int, OutgoingLink] = {}
        self._names: dict[int, str] = {}
        self._transits: list[messages.Transit] = []
        self._is_ready = False
        self._next_hello_s = 0.0
        self._next_heartbeat_s = 0.0
        self._heard_s = 0.0
        self._lag_s = 0.0
        self.end_reason: str | None = None

    # -- the loop ----------------------------------------------------------------------------

    def run(self) -> str:
        """Run until shutdown; the reason of the shutdown.

        Raises
        ------
        HelixError
            If the engine cannot be loaded.
        """
        self._transport.connect(COORDINATOR, self._settings.coordinator)
        try:
            while self.end_reason is None:
                self._wait()
                self._check_engine()
                if self._executor is not None:
                    self._executor.advance(self._clock.now())
                self._send_hello_or_heartbeat()
        finally:
            self._transport.flush()
            if self._runner is not None:
                self._runner.close()
        return self.end_reason

    def stop(self, reason: str) -> None:
        """End the loop after the current iteration."""
        self.end_reason = reason

    def _wait(self) -> None:
        wait_ms: float = _MAX_WAIT_MS
        executor = self._executor
        if executor is not None and (at := executor.next_event_s()) is not None:
            wait_ms = min(wait_ms, (at - self._clock.now()) / self._clock.scale * 1000)
        for file, _ in self._poller.poll(max(ceil(wait_ms), 0)):
            if isinstance(file, int):
                os.read(file, 4096)
            else:
                self._receive()

    def _receive(self) -> None:
        for message, frames in self._transport.received(_MESSAGES_AT_ONCE):
            try:
                self._handle(message, frames)
            except (ValueError, InputError) as error:
                self._transport.refuse(f"{type(message).__name__}: {error}")

    def _handle(self, message: messages.AnyMessage, frames: list[Frame]) -> None:
        match message:
            case messages.Work():
                self._on_work(message, frames)
            case messages.Tokens():
                self._on_tokens(message)
            case messages.Drop():
                if self._executor is not None and self._is_ready:
                    self._executor.drop(message.keys)
                    for link in self._links.values():
                        link.forget(message.keys)
            case messages.Alive():
                self._heard_s = time.monotonic()
            case messages.Assignment():
                self._on_assignment(message)
            case messages.Peers():
                self._on_peers(message)
            case messages.Shutdown():
                self.stop(message.reason)
            case messages.Stop():
                self.stop("received a stop message")
            case _:
                raise ValueError("is not expected by workers")

    # -- assignment --------------------------------------------------------------------------

    def _on_assignment(self, assignment: messages.Assignment) -> None:
        if self._assignment is not None:
            return  # sent for a repeated hello, after the first assignment
        if not assignment.start_layer < assignment.end_layer <= assignment.llm.num_layers:
            raise ValueError("the layers are not a part of the LLM's layers")
        self._assignment = assignment
        self._heard_s = time.monotonic()
        self._sender = emulated_sender(assignment)
        self._clock = Clock.like(
            assignment.time_scale, assignment.now_s, assignment.clock_s, assignment.host
        )
        self._runner = self._make_runner(assignment)
        if self._runner.fileno() >= 0:
            self._poller.register(self._runner.fileno(), zmq.POLLIN)

    def _make_runner(self, assignment: messages.Assignment) -> Runner:
        settings = self._settings
        if settings.engine == EMULATED:
            return emulated_runner(settings.node, assignment)
        spec = engine_spec(settings, assignment)

        def load() -> Engine:
            return make_engine(settings.engine, spec)

        return ThreadRunner(load, self._clock.now)

    def _check_engine(self) -> None:
        """Report once that the engine is loaded, or end if it cannot be loaded."""
        runner, assignment = self._runner, self._assignment
        if self._is_ready or runner is None or assignment is None:
            return
        if isinstance(runner, ThreadRunner) and runner.load_failure is not None:
            failure = runner.load_failure
            self._send_to_coordinator(
                messages.Failure(
                    assignment.node, [], f"{type(failure).__name__}: {failure}"[:20_000]
                )
            )
            if isinstance(failure, HelixError):
                raise failure
            raise HelixError(f"the engine cannot be loaded: {failure}") from failure
        engine = runner.engine
        if engine is None:
            return
        settings = self._settings
        loops = decodes_loop(NODE_SCHEDULERS.get(assignment.node_scheduler))
        make_executor = LoopingExecutor if loops else NodeExecutor
        self._executor = make_executor(
            node_scheduler(settings, assignment, engine), runner, self, assignment.time_scale
        )
        self._is_ready = True
        self._send_to_coordinator(
            messages.Ready(
                assignment.node, self._incarnation, engine.kv_blocks, engine.block_tokens
            )
        )

    def _on_peers(self, message: messages.Peers) -> None:
        assignment = self._assignment
        if assignment is None:
            return
        for link in message.links:
            if link.target not in self._links:
                self._links[link.target] = OutgoingLink(
                    link.bandwidth_bytes_per_s,
                    link.latency_s,
                    link.bytes_per_token,
                    is_emulated=assignment.emulate_links,
                    sender=self._sender,
                    to_coordinator=link.target == assignment.coordinator,
                )
        for way in message.ways_back:
            self._ways_back[way.target] = OutgoingLink(
                way.bandwidth_bytes_per_s,
                way.latency_s,
                way.bytes_per_token,
                is_emulated=assignment.emulate_links,
            )
        for peer in message.peers:
            self._names[peer.index] = peer.name
            self._transport.connect(peer.name, peer.address)

    # -- work --------------------------------------------------------------------------------

    def _on_work(self, work: messages.Work, frames: list[Frame]) -> None:
        executor, runner, assignment = self._executor, self._runner, self._assignment
        if executor is None or runner is None or assignment is None:
            return  # meant for an earlier worker at this address
        assert runner.engine is not None
        if work.entry_layer not in assignment.entry_layers:
            raise ValueError(f"layer {work.entry_layer} is not an entry layer of this node")
        num_tokens = [each.num_tokens for each in work.passes]
        payloads: Sequence[Any]
        if work.entry_layer == 0:
            payloads = token_lists(frames, num_tokens)
        else:
            payloads = runner.engine.unpack(frames, num_tokens)
        now = self._clock.now()
        # Routes that begin elsewhere may enter the same node behind its first layer.
        is_first = isinstance(executor, LoopingExecutor) and work.entry_layer == 0
        executor.next_message()
        for place, (each, payload) in enumerate(zip(work.passes, payloads, strict=True)):
            due_s = work.due_s[place] if work.due_s else now
            if is_first:
                self._on_request(each, payload, due_s)
                continue
            sequence = self._sequence(each, work.entry_layer, assignment)
            if sequence is None:
                continue
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
            executor.add_arrival(sequence, arriving, due_s)

    def _on_request(self, each: messages.Pass, tokens: array[int], due_s: float) -> None:
        """Take a whole request, which stays on this node until its answer is complete."""
        executor, assignment = self._executor, self._assignment
        assert executor is not None
        assert assignment is not None
        if each.answer is None or each.route is None or each.key in executor.sequences:
            raise ValueError("a whole request was expected")
        if executor.was_dropped(each.key):
            return
        self._check_route(each, 0, assignment)
        if each.num_tokens + each.answer.max_tokens - 1 > assignment.max_context_tokens:
            most = assignment.max_context_tokens
            self.failed([each.key], f"the request has more than {most} tokens")
            return
        sequence = executor.sequences[each.key] = first_sequence(each, tokens)
        executor.add_arrival(sequence, NO_TOKEN, due_s)

    def _on_tokens(self, message: messages.Tokens) -> None:
        """Take requests back from the last node of their route."""
        if isinstance(self._executor, LoopingExecutor):
            due_s = self._clock.now() if message.due_s is None else message.due_s
            self._executor.take_back(message.keys, message.tokens, due_s)

    def _check_route(
        self, each: messages.Pass, entry_layer: int, assignment: messages.Assignment
    ) -> None:
        check_route(each, entry_layer, assignment)
        assert each.route is not None
        if each.route[1:] and each.route[1].node not in self._links:
            raise ValueError("the route has no link to its next node")

    def _sequence(
        self, each: messages.Pass, entry_layer: int, assignment: messages.Assignment
    ) -> SequenceState | None:
        """The sequence of a pass; None if it has been dropped."""
        assert self._executor is not None
        sequences = self._executor.sequences
        if each.position + each.num_tokens > assignment.max_context_tokens:
            raise ValueError(f"the request has more than {assignment.max_context_tokens} tokens")
        if each.is_streamed and (
            assignment.composition is None
            or each.wants_token
            or each.route is None
            or not each.is_prefill
        ):
            raise ValueError("a chunk in a stream was not expected")
        if each.route is None:
            return sequences.get(each.key)
        if self._executor.was_dropped(each.key):
            return None
        if each.key not in sequences:
            self._check_route(each, entry_layer, assignment)
            loops = isinstance(self._executor, LoopingExecutor)
            if each.position and not loops:
                return None  # the chunk ahead of it went to an earlier worker of this node
            if loops and not each.route[1:] and each.first not in self._ways_back:
                raise ValueError("there is no way back to the first node of the route")
            sequences[each.key] = new_sequence(each, entry_layer, loops=loops)
        sequence = sequences[each.key]
        return StreamedChunk(sequence) if each.is_streamed else sequence

    # -- outbox of the node executor ---------------------------------------------------------

    def send_passes(self, target: int, sequences: list[SequenceState], now: float) -> None:
        """Send passes to the next node, or tokens to the coordinator."""
        assignment = self._assignment
        assert assignment is not None
        if assignment.report_transits:
            self._transits += [
                messages.Transit(sequence.sender, now - sequence.sent_on_s, now)
                for sequence in sequences
            ]
        link = self._links[assignment.coordinator if target == TO_COORDINATOR else target]
        due_s = link.arrival_times(now, [sequence.num_new_tokens for sequence in sequences])
        if due_s and assignment.composition is not None:
            due_s = [
                link.in_order(each.key, at, is_followed=isinstance(each, StreamedChunk))
                if each.is_prefill
                else at
                for each, at in zip(sequences, due_s, strict=True)
            ]
        if target == TO_COORDINATOR:
            self._send_to_coordinator(
                messages.Done(
                    assignment.node,
                    [sequence.key for sequence in sequences],
                    [-1 if each.payload is None else int(each.payload) for each in sequences],
                    due_s,
                    taken_scores(each for each in sequences if each.wants_token),
                )
            )
            return
        assert self._runner is not None
        assert self._runner.engine is not None
        frames = self._runner.engine.pack([sequence.payload for sequence in sequences])
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
        assignment = self._assignment
        assert assignment is not None
        due_s = self._links[assignment.coordinator].carry_tokens(len(keys), now)
        self._send_to_coordinator(
            messages.Done(assignment.node, keys, tokens, [] if due_s is None else [due_s], scores)
        )

    def send_back(self, first: int, keys: list[int], tokens: list[int], now: float) -> None:
        """Send tokens to the first node of their routes."""
        assert self._assignment is not None
        due_s = self._ways_back[first].carry_tokens(len(keys), now)
        message = messages.Tokens(self._assignment.node, keys, tokens, due_s)
        if not self._transport.send(self._names.get(first, ""), message):
            logger.warning("%d tokens for node %d could not be sent", len(keys), first)

    def out_of_blocks(self, keys: list[int]) -> None:
        """Report preempted requests to the coordinator, which restarts them."""
        assert self._assignment is not None
        self._send_to_coordinator(messages.OutOfBlocks(self._assignment.node, keys))

    def failed(self, keys: list[int], reason: str) -> None:
        """Report failed requests to the coordinator, which ends them."""
        assert self._assignment is not None
        logger.error("a batch failed: %s", reason)
        self._send_to_coordinator(messages.Failure(self._assignment.node, keys, reason[:20_000]))

    # -- heartbeats --------------------------------------------------------------------------

    def _send_to_coordinator(self, message: messages.Message) -> None:
        self._transport.send(COORDINATOR, message)

    def _send_hello_or_heartbeat(self) -> None:
        clock_s = time.monotonic()
        assignment = self._assignment
        if assignment is None:
            if clock_s >= self._next_hello_s:
                self._next_hello_s = clock_s + _HELLO_S
                self._send_to_coordinator(
                    messages.Hello(
                        self._settings.node,
                        self._transport.address,
                        this_host(),
                        self._incarnation,
                        self._settings.engine,
                    )
                )
            return
        if clock_s - self._heard_s > assignment.missing_s:
            self.stop(f"the coordinator has been silent for {assignment.missing_s:g} s")
        if clock_s >= self._next_heartbeat_s:
            self._next_heartbeat_s = clock_s + assignment.heartbeat_s
            self._send_to_coordinator(self._heartbeat(assignment))

    def _heartbeat(self, assignment: messages.Assignment) -> messages.Heartbeat:
        executor, runner = self._executor, self._runner
        gauges = executor.gauges if executor is not None else Gauges()
        lag_s, kv, waiting_tokens = 0.0, None, 0
        if executor is not None:
            lag_s, executor.lag_s = executor.lag_s / assignment.time_scale, 0.0
            kv, waiting_tokens = executor.scheduler.kv, executor.scheduler.waiting_tokens
        num_layers = assignment.end_layer - assignment.start_layer
        transits, self._transits = self._transits, []
        return messages.Heartbeat(
            assignment.node,
            self._incarnation,
            gauges.busy_s,
            gauges.num_tokens,
            gauges.num_batches,
            gauges.num_running,
            gauges.num_waiting,
            waiting_tokens,
            0 if kv is None else kv.free_tokens(num_layers),
            None if kv is None else kv.used_token_layers(num_layers),
            runner.busy_for_s if runner is not None and self._is_ready else 0.0,
            lag_s,
            self._transport.num_refused,
            [link.num_bytes for link in self._links.values()],
            [link.num_requests for link in self._links.values()],
            transits,
            *((kv.num_asked_tokens, kv.num_hit_tokens) if isinstance(kv, PrefixCache) else ()),
        )

"""A worker process: runs the layers that the coordinator assigns to its node."""

from __future__ import annotations

import logging
import os
import time
from math import ceil
from uuid import uuid4

import zmq

from helixreal.engines import EMULATED, make_engine
from helixreal.engines.engine import Engine, EngineSpec
from helixreal.engines.failures import EngineLostError, ends_engine, reason_of
from helixreal.net import messages
from helixreal.net.clock import Clock, this_host
from helixreal.net.messages import Frame
from helixreal.net.transport import Transport
from helixreal.worker.emulation import emulated_runner
from helixreal.worker.joining import Joining
from helixreal.worker.node_executor import Gauges
from helixreal.worker.passing import Passing
from helixreal.worker.runner import Runner, ThreadRunner
from helixreal.worker.settings import WorkerSettings, engine_spec
from helixsim.cluster import COORDINATOR
from helixsim.control.kv_cache import KvCache
from helixsim.control.prefix_cache import PrefixCache
from helixsim.errors import HelixError, InputError

logger = logging.getLogger(__name__)

_MAX_WAIT_MS = 100
_MESSAGES_AT_ONCE = 200
_QUIET_AFTER = 4
"""Multiples of the silence that makes the coordinator lost: then hellos replace heartbeats."""


class Worker:
    """Joins a cluster as one node: registers, receives its assignment, runs passes until shutdown.

    While the coordinator is silent, it keeps its requests and says hello again and again. It drops
    them when the coordinator, or another run of it, answers with an assignment; an engine that
    suits the new assignment is kept.

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
        self._joining = Joining(lambda: uuid4().hex, settings.give_up_after_s, time.monotonic())
        self._poller = zmq.Poller()
        self._poller.register(transport.inbox, zmq.POLLIN)
        self._assignment: messages.Assignment | None = None
        self._clock = Clock()
        self._runner: Runner | None = None
        self._spec: EngineSpec | None = None
        self._passing: Passing | None = None
        self._ending: Passing | None = None
        self._cached_before = (0, 0)
        self._next_heartbeat_s = 0.0
        self._fault: str | None = None
        self._lifeline = -1
        self.end_reason: str | None = None

    # -- the loop ----------------------------------------------------------------------------

    def run(self) -> str:
        """Run until shutdown; the reason of the shutdown.

        Raises
        ------
        HelixError
            If the engine cannot be loaded, is stuck or has failed for good, or the coordinator has
            been silent for too long.
        """
        self._transport.connect(COORDINATOR, self._settings.coordinator)
        try:
            while self.end_reason is None:
                self._wait()
                self._check_engine()
                for passing in (self._passing, self._ending):
                    if passing is not None:
                        passing.executor.advance(self._clock.now())
                self._keep_in_touch(time.monotonic())
        except Exception as error:
            if not ends_engine(error):
                raise
            self._report_lost(error)
            if isinstance(error, EngineLostError):
                raise
            raise EngineLostError(_lost_reason(error)) from error
        finally:
            self._transport.flush()
            if self._runner is not None:
                self._runner.close()
        if self._fault is not None:
            raise HelixError(self._fault)
        return self.end_reason

    def _report_lost(self, error: Exception) -> None:
        """Tell the coordinator that the engine has failed for good and the worker leaves."""
        if (assignment := self._assignment) is not None:
            reason = _lost_reason(error)[:20_000]
            self._send(messages.Failure(assignment.node, [], reason, assignment.incarnation))

    def stop(self, reason: str) -> None:
        """End the loop after the current iteration."""
        self.end_reason = reason

    def end_with(self, file: int) -> None:
        """End when a file is closed at its other end, as it is when that process ends."""
        self._poller.register(file, zmq.POLLIN)
        self._lifeline = file

    def _wait(self) -> None:
        wait_ms: float = _MAX_WAIT_MS
        for passing in (self._passing, self._ending):
            if passing is not None and (at := passing.executor.next_event_s()) is not None:
                wait_ms = min(wait_ms, (at - self._clock.now()) / self._clock.scale * 1000)
        for file, _ in self._poller.poll(max(ceil(wait_ms), 0)):
            if file == self._lifeline:
                if not os.read(file, 4096):
                    self.stop("the process that started it has ended")
            elif isinstance(file, int):
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
            case (
                messages.Work()
                | messages.Tokens()
                | messages.Drop()
                | messages.Peers()
                | messages.PeerAlive()
            ):
                if self._passing is not None:  # else meant for an earlier worker at this address
                    self._passing.take(message, frames, time.monotonic())
            case messages.Alive():
                if self._assignment is not None:
                    self._joining.heard(time.monotonic())
            case messages.Assignment():
                self._on_assignment(message)
            case messages.Rejoin():
                self._on_rejoin(message)
            case messages.Shutdown():
                self._on_shutdown(message)
            case messages.Stop():
                self.stop("received a stop message")
            case _:
                raise ValueError("is not expected by workers")

    # -- assignment --------------------------------------------------------------------------

    def _on_assignment(self, assignment: messages.Assignment) -> None:
        joining, before = self._joining, self._assignment
        if assignment.incarnation != joining.offered or (
            before is not None and before.incarnation == assignment.incarnation
        ):
            return  # the answer to an earlier hello, or to one that was said twice
        if not assignment.start_layer < assignment.end_layer <= assignment.llm.num_layers:
            raise ValueError("the layers are not a part of the LLM's layers")
        self._leave()
        self._assignment = assignment
        self._transport.session = assignment.session
        joining.missing_s = assignment.missing_s
        joining.adopted(time.monotonic())
        self._clock = Clock.like(
            assignment.time_scale, assignment.now_s, assignment.clock_s, assignment.host
        )
        self._next_heartbeat_s = 0.0
        self._prepare_runner(assignment)

    def _on_rejoin(self, message: messages.Rejoin) -> None:
        assignment = self._assignment
        if assignment is None or message.incarnation != assignment.incarnation:
            return
        logger.warning("the coordinator has counted this worker as lost: it joins again")
        self._leave()
        self._joining.search(time.monotonic())

    def _on_shutdown(self, message: messages.Shutdown) -> None:
        if message.is_fault:
            self._fault = message.reason
        self.stop(message.reason)

    def _leave(self) -> None:
        """Drop all requests; the engine stays loaded, and a batch that runs is finished."""
        if self._passing is not None:
            self._passing.end()
            self._ending, self._passing = self._passing, None
        self._assignment = None
        self._transport.session = 0

    def _prepare_runner(self, assignment: messages.Assignment) -> None:
        """Keep a loaded engine that suits the assignment; else begin to load one."""
        settings = self._settings
        if settings.engine == EMULATED:
            self._ending = None
            self._runner = emulated_runner(settings.node, assignment)
            return
        spec = engine_spec(settings, assignment)
        if self._runner is not None and spec == self._spec:
            return
        if self._runner is not None:
            self._poller.unregister(self._runner.fileno())
            self._runner.close()
            self._ending = None

        def load() -> Engine:
            return make_engine(settings.engine, spec)

        self._spec = spec
        self._runner = ThreadRunner(load, self._now)
        self._poller.register(self._runner.fileno(), zmq.POLLIN)

    def _now(self) -> float:
        """The time of the run, by the clock of the current assignment."""
        return self._clock.now()

    def _check_engine(self) -> None:
        """Report once that the engine is ready for the assignment, or end if it cannot be loaded.

        Raises
        ------
        HelixError
            If it cannot be loaded.
        """
        runner, assignment = self._runner, self._assignment
        if self._ending is not None and self._ending.is_idle:
            self._ending = None
        if runner is None or assignment is None or self._passing is not None:
            return
        if isinstance(runner, ThreadRunner) and runner.load_failure is not None:
            self._report_load_failure(runner.load_failure, assignment)
        if runner.engine is None or self._ending is not None:
            return
        engine = runner.engine
        self._cached_before = _cache_counts(engine.kv)
        self._passing = Passing(
            self._settings, assignment, engine, runner, self._clock, self._transport
        )
        self._send(
            messages.Ready(
                assignment.node, assignment.incarnation, engine.kv_blocks, engine.block_tokens
            )
        )

    def _report_load_failure(self, failure: BaseException, assignment: messages.Assignment) -> None:
        self._send(messages.Failure(assignment.node, [], reason_of(failure)[:20_000]))
        if isinstance(failure, HelixError):
            raise failure
        raise HelixError(f"the engine cannot be loaded: {failure}") from failure

    # -- hellos and heartbeats ---------------------------------------------------------------

    def _send(self, message: messages.Message) -> None:
        self._transport.send(COORDINATOR, message)

    def _keep_in_touch(self, clock_s: float) -> None:
        """Say hello where the coordinator is sought, and send heartbeats under an assignment."""
        joining, assignment = self._joining, self._assignment
        paused_s = joining.pause_s(clock_s)
        if paused_s and self._passing is not None:
            self._passing.excuse(paused_s, clock_s)
        if joining.check(clock_s):
            logger.warning(
                "the coordinator has been silent for %.1f s: saying hello until it answers",
                joining.unheard_s(clock_s),
            )
        if joining.has_given_up(clock_s):
            self._fault = (
                f"the coordinator at {self._settings.coordinator} has been silent for "
                f"{self._settings.give_up_after_s:g} s: given up (--give-up-after)"
            )
            self.stop(self._fault)
            return
        if joining.hello_is_due(clock_s):
            settings = self._settings
            self._send(
                messages.Hello(
                    settings.node,
                    self._transport.address,
                    this_host(),
                    joining.offered,
                    settings.engine,
                )
            )
        if assignment is None or clock_s < self._next_heartbeat_s:
            return
        self._next_heartbeat_s = clock_s + assignment.heartbeat_s
        if self._passing is not None:
            self._passing.greet_peers()
        if joining.unheard_s(clock_s) <= _QUIET_AFTER * assignment.missing_s:
            self._send(self._heartbeat(assignment, clock_s))

    def _heartbeat(self, assignment: messages.Assignment, clock_s: float) -> messages.Heartbeat:
        passing, runner = self._passing, self._runner
        gauges = passing.executor.gauges if passing is not None else Gauges()
        lag_s, kv, waiting_tokens = 0.0, None, 0
        asked_tokens = hit_tokens = 0
        if passing is not None:
            executor = passing.executor
            lag_s, executor.lag_s = executor.lag_s / assignment.time_scale, 0.0
            kv, waiting_tokens = executor.scheduler.kv, executor.scheduler.waiting_tokens
            # A kept engine keeps its counts, which the coordinator has added up already.
            counts = zip(_cache_counts(kv), self._cached_before, strict=True)
            asked_tokens, hit_tokens = (now - before for now, before in counts)
        num_layers = assignment.end_layer - assignment.start_layer
        links = [] if passing is None else list(passing.links.values())
        is_loading = runner is None or (passing is None and self._ending is None)
        return messages.Heartbeat(
            assignment.node,
            assignment.incarnation,
            gauges.busy_s,
            gauges.num_tokens,
            gauges.num_batches,
            gauges.num_running,
            gauges.num_waiting,
            waiting_tokens,
            0 if kv is None else kv.free_tokens(num_layers),
            None if kv is None else kv.used_token_layers(num_layers),
            0.0 if runner is None or is_loading else runner.busy_for_s,
            lag_s,
            self._transport.num_refused,
            [link.num_bytes for link in links],
            [link.num_requests for link in links],
            [] if passing is None else passing.take_transits(),
            self._joining.unheard_s(clock_s),
            [] if passing is None else passing.silences(clock_s),
            asked_tokens,
            hit_tokens,
        )


def _cache_counts(kv: KvCache | None) -> tuple[int, int]:
    """Tokens looked up in a prefix cache so far, and found there; zeros without one."""
    return (kv.num_asked_tokens, kv.num_hit_tokens) if isinstance(kv, PrefixCache) else (0, 0)


def _lost_reason(error: Exception) -> str:
    """Why the engine has failed for good, in words."""
    if isinstance(error, EngineLostError):
        return str(error)
    return f"the engine has failed: {reason_of(error)}"

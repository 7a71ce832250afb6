"""A worker: one process for one node, which runs the layers that the coordinator gives it."""

from __future__ import annotations

import logging
import os
import struct
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any
from uuid import uuid4

import zmq

from helixreal.engines import make_engine
from helixreal.engines.engine import GREEDY, Engine, EngineSpec, Sampling
from helixreal.net import messages as wire
from helixreal.net.clock import Clock, this_host
from helixreal.net.messages import Frame
from helixreal.net.outgoing_link import OutgoingLink
from helixreal.net.transport import Transport
from helixreal.worker.emulation import capacity_of, emulated_runner
from helixreal.worker.node_executor import HOME, Guest, Outbox, Station, Visit
from helixreal.worker.runner import Runner, ThreadRunner
from helixsim.cluster import COORDINATOR
from helixsim.errors import HelixError, InputError

logger = logging.getLogger(__name__)

_HELLO_S = 0.5
_MAX_WAIT_MS = 100
_MESSAGES_AT_ONCE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker knows before it has met the coordinator.

    Attributes
    ----------
    node
        Name of its node.
    coordinator
        Where that is to be reached, as ``tcp://host:port``.
    engine
        ``emulated``, ``torch`` or ``vllm``.
    model, device, dtype, kv_memory_bytes, dummy_weights, options
        See :class:`helixreal.engines.engine.EngineSpec`.
    """

    node: str
    coordinator: str
    engine: str = "emulated"
    model: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    kv_memory_bytes: int | None = None
    dummy_weights: bool = False
    options: dict[str, Any] = field(default_factory=dict)


class Worker(Outbox):
    """Says hello, is told what to hold, and works until somebody ends it.

    Parameters
    ----------
    settings
        Who it is.
    transport
        Its sockets, which it closes at the end.
    """

    def __init__(self, settings: WorkerSettings, transport: Transport) -> None:
        self._settings = settings
        self._transport = transport
        self._incarnation = uuid4().hex
        self._poller = zmq.Poller()
        self._poller.register(transport.inbox, zmq.POLLIN)
        self._welcome: wire.Welcome | None = None
        self._clock = Clock()
        self._runner: Runner | None = None
        self._station: Station | None = None
        self._links: dict[int, OutgoingLink] = {}
        self._names: dict[int, str] = {}
        self._transits: list[wire.Transit] = []
        self._is_ready = False
        self._next_hello_s = 0.0
        self._next_beat_s = 0.0
        self._heard_s = 0.0
        self._lag_s = 0.0
        self.end_reason: str | None = None

    # -- the loop ----------------------------------------------------------------------------

    def run(self) -> str:
        """Work until the end, and say why it came.

        Raises
        ------
        HelixError
            If the engine cannot be loaded.
        """
        self._transport.connect(COORDINATOR, self._settings.coordinator)
        try:
            while self.end_reason is None:
                self._wait()
                self._look_after_engine()
                if self._station is not None:
                    self._station.advance(self._clock.now())
                self._keep_in_touch()
        finally:
            self._transport.flush()
            if self._runner is not None:
                self._runner.close()
        return self.end_reason

    def stop(self, reason: str) -> None:
        """End the loop when it comes round."""
        self.end_reason = reason

    def _wait(self) -> None:
        wait_ms: float = _MAX_WAIT_MS
        station = self._station
        if station is not None and (at := station.next_event_s()) is not None:
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

    def _handle(self, message: wire.AnyMessage, frames: list[Frame]) -> None:
        match message:
            case wire.Work():
                self._on_work(message, frames)
            case wire.Drop():
                if self._station is not None and self._is_ready:
                    self._station.drop(message.keys)
            case wire.Alive():
                self._heard_s = time.monotonic()
            case wire.Welcome():
                self._on_welcome(message)
            case wire.Peers():
                self._on_peers(message)
            case wire.Farewell():
                self.stop(message.reason)
            case wire.Stop():
                self.stop("asked to stop")
            case _:
                raise ValueError("is not for workers")

    # -- beginning ---------------------------------------------------------------------------

    def _on_welcome(self, welcome: wire.Welcome) -> None:
        if self._welcome is not None:
            return  # a second one, because our hello crossed the first
        if not welcome.start_layer < welcome.end_layer <= welcome.num_layers:
            raise ValueError("layers that cannot be")
        self._welcome = welcome
        self._heard_s = time.monotonic()
        self._clock = Clock.like(welcome.time_scale, welcome.now_s, welcome.clock_s, welcome.host)
        self._runner = self._make_runner(welcome)
        if self._runner.fileno() >= 0:
            self._poller.register(self._runner.fileno(), zmq.POLLIN)

    def _make_runner(self, welcome: wire.Welcome) -> Runner:
        settings = self._settings
        if settings.engine == "emulated":
            return emulated_runner(settings.node, welcome)
        spec = EngineSpec(
            start_layer=welcome.start_layer,
            end_layer=welcome.end_layer,
            num_layers=welcome.num_layers,
            entry_layers=tuple(welcome.entry_layers),
            model=settings.model,
            device=settings.device,
            dtype=settings.dtype,
            kv_memory_bytes=settings.kv_memory_bytes,
            max_batch_tokens=welcome.limits.max_prompts * welcome.limits.max_prompt_tokens
            + welcome.limits.max_decode_tokens,
            max_context_tokens=welcome.max_context_tokens,
            dummy_weights=settings.dummy_weights,
            options=settings.options,
        )

        def load() -> Engine:
            return make_engine(settings.engine, spec)

        return ThreadRunner(load, self._clock.now)

    def _look_after_engine(self) -> None:
        """Report once that it is loaded, or end if it cannot be."""
        runner, welcome = self._runner, self._welcome
        if self._is_ready or runner is None or welcome is None:
            return
        if isinstance(runner, ThreadRunner) and runner.load_failure is not None:
            failure = runner.load_failure
            self._send_home(
                wire.Trouble(welcome.node, [], f"{type(failure).__name__}: {failure}"[:20_000])
            )
            if isinstance(failure, HelixError):
                raise failure
            raise HelixError(f"the engine cannot be loaded: {failure}") from failure
        engine = runner.engine
        if engine is None:
            return
        self._station = Station(
            welcome.start_layer,
            welcome.end_layer,
            welcome.entry_layers,
            capacity_of(welcome.limits),
            runner,
            self,
            welcome.time_scale,
        )
        self._is_ready = True
        self._send_home(
            wire.Ready(welcome.node, self._incarnation, engine.kv_blocks, engine.block_tokens)
        )

    def _on_peers(self, message: wire.Peers) -> None:
        welcome = self._welcome
        if welcome is None:
            return
        for link in message.links:
            if link.target not in self._links:
                self._links[link.target] = OutgoingLink(
                    link.bandwidth_bytes_per_s,
                    link.latency_s,
                    link.bytes_per_token,
                    is_emulated=welcome.emulate_links,
                )
        for peer in message.peers:
            self._names[peer.index] = peer.name
            self._transport.connect(peer.name, peer.address)

    # -- work --------------------------------------------------------------------------------

    def _on_work(self, work: wire.Work, frames: list[Frame]) -> None:
        station, runner, welcome = self._station, self._runner, self._welcome
        if station is None or runner is None or welcome is None:
            return  # for an earlier worker at this address
        assert runner.engine is not None
        if work.entry_layer not in welcome.entry_layers:
            raise ValueError(f"nobody enters at layer {work.entry_layer} here")
        num_tokens = [each.num_tokens for each in work.passes]
        payloads: Sequence[Any]
        if work.entry_layer == 0:
            payloads = token_lists(frames, num_tokens)
        else:
            payloads = runner.engine.unpack(frames, num_tokens)
        now = self._clock.now()
        for place, (each, payload) in enumerate(zip(work.passes, payloads, strict=True)):
            guest = self._guest(each, work.entry_layer, welcome)
            if guest is None:
                continue
            visit = Visit(
                each.key,
                each.position,
                each.num_tokens,
                guest,
                payload,
                is_prefill=each.is_prefill,
                wants_token=each.wants_token,
            )
            visit.sender, visit.sent_on_s = work.sender, work.sent_s
            station.expect(visit, work.due_s[place] if work.due_s else now)

    def _guest(self, each: wire.Pass, entry_layer: int, welcome: wire.Welcome) -> Guest | None:
        assert self._station is not None
        guests = self._station.guests
        if each.position + each.num_tokens > welcome.max_context_tokens:
            raise ValueError(f"more than {welcome.max_context_tokens} tokens")
        if each.route is None:
            return guests.get(each.key)  # None: it was dropped meanwhile
        here = each.route[0] if each.route else None
        if here is None or (here.node, here.start_layer) != (welcome.node, entry_layer):
            raise ValueError("a route that does not begin here")
        if here.end_layer != welcome.end_layer:
            raise ValueError("a route that leaves before the node's last layer")
        if (len(each.route) == 1) != (here.end_layer == welcome.num_layers):
            raise ValueError("a route that does not end at the last layer")
        if each.key not in guests:
            choice = each.choice
            sampling = GREEDY
            if choice is not None:
                sampling = Sampling(
                    temperature=choice.temperature, top_p=choice.top_p, seed=choice.seed
                )
            if each.route[1:] and each.route[1].node not in self._links:
                raise ValueError("a route over a link that is not there")
            guests[each.key] = Guest(entry_layer, here.end_layer, each.route[1:], sampling)
        return guests[each.key]

    # -- what the station wants sent ---------------------------------------------------------

    def depart(self, target: int, visits: list[Visit], now: float) -> None:
        """Send passes to the next node, or tokens home."""
        welcome = self._welcome
        assert welcome is not None
        if welcome.report_transits:
            self._transits += [
                wire.Transit(visit.sender, now - visit.sent_on_s, now) for visit in visits
            ]
        link = self._links[welcome.home if target == HOME else target]
        due_s = link.carry(now, [visit.step_tokens for visit in visits])
        if target == HOME:
            self._send_home(
                wire.Done(
                    welcome.node,
                    [visit.key for visit in visits],
                    [-1 if visit.payload is None else int(visit.payload) for visit in visits],
                    due_s,
                )
            )
            return
        assert self._runner is not None
        assert self._runner.engine is not None
        frames = self._runner.engine.pack([visit.payload for visit in visits])
        work = wire.Work(
            welcome.node,
            visits[0].guest.end_layer,
            now,
            [_pass_of(visit) for visit in visits],
            due_s,
            len(frames),
        )
        if not self._transport.send(self._names.get(target, ""), work, frames):
            logger.warning("%d passes for node %d could not be sent", len(visits), target)

    def no_room(self, keys: list[int]) -> None:
        """Tell the coordinator, which starts them again when there is room."""
        assert self._welcome is not None
        self._send_home(wire.NoRoom(self._welcome.node, keys))

    def trouble(self, keys: list[int], reason: str) -> None:
        """Tell the coordinator, which ends them."""
        assert self._welcome is not None
        logger.error("a batch failed: %s", reason)
        self._send_home(wire.Trouble(self._welcome.node, keys, reason[:20_000]))

    # -- being there -------------------------------------------------------------------------

    def _send_home(self, message: wire.Message) -> None:
        self._transport.send(COORDINATOR, message)

    def _keep_in_touch(self) -> None:
        clock_s = time.monotonic()
        welcome = self._welcome
        if welcome is None:
            if clock_s >= self._next_hello_s:
                self._next_hello_s = clock_s + _HELLO_S
                self._send_home(
                    wire.Hello(
                        self._settings.node,
                        self._transport.address,
                        this_host(),
                        self._incarnation,
                        self._settings.engine,
                    )
                )
            return
        if clock_s - self._heard_s > welcome.missing_s:
            self.stop(f"the coordinator has been silent for {welcome.missing_s:g} s")
        if clock_s >= self._next_beat_s:
            self._next_beat_s = clock_s + welcome.heartbeat_s
            self._send_home(self._beat(welcome))

    def _beat(self, welcome: wire.Welcome) -> wire.Beat:
        station, runner = self._station, self._runner
        gauges = station.gauges if station is not None else None
        lag_s = station.lag_s / welcome.time_scale if station is not None else 0.0
        if station is not None:
            station.lag_s = 0.0
        transits, self._transits = self._transits, []
        return wire.Beat(
            welcome.node,
            self._incarnation,
            gauges.busy_s if gauges else 0.0,
            gauges.num_tokens if gauges else 0,
            gauges.num_batches if gauges else 0,
            gauges.num_running if gauges else 0,
            gauges.num_waiting if gauges else 0,
            runner.busy_for_s if runner is not None and self._is_ready else 0.0,
            lag_s,
            self._transport.num_refused,
            [link.num_bytes for link in self._links.values()],
            [link.num_requests for link in self._links.values()],
            transits,
        )


def _pass_of(visit: Visit) -> wire.Pass:
    """A pass as it goes on from here; with its route while it is a prefill."""
    prefill = visit.is_prefill
    sampling = visit.guest.sampling
    choice = None
    if prefill and sampling is not GREEDY:
        choice = wire.Choice(sampling.temperature, sampling.top_p, sampling.seed)
    return wire.Pass(
        visit.key,
        visit.context_tokens,
        visit.step_tokens,
        prefill,
        visit.wants_token,
        list(visit.guest.onward) if prefill else None,
        choice,
    )


def token_lists(frames: Sequence[Frame], num_tokens: Sequence[int]) -> list[array[int]]:
    """Token ids of some passes from one frame of int32.

    Raises
    ------
    ValueError
        If its size is not that of so many tokens.
    """
    if len(frames) != 1 or len(frames[0]) != 4 * sum(num_tokens):
        raise ValueError("token ids of a wrong size")
    ids = array("i", struct.unpack(f"<{sum(num_tokens)}i", frames[0]))
    lists = []
    at = 0
    for tokens in num_tokens:
        lists.append(ids[at : at + tokens])
        at += tokens
    return lists

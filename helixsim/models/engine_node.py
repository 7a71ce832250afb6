"""A node of the calibrated physics: a worker of an engine, step after step.

The worker looks for messages only between steps. What it has fetched runs in the next step: by
itself, all of it, as far as the limits of a pass and the KV cache allow. Requests that enter in
the middle of its layers join the pass there. With nobody to serve the worker polls, and a message
waits until the round of polling that is under way has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from math import ceil, inf
from typing import Protocol

from helixsim.control.batching import Batch
from helixsim.control.kv_cache import KvCache
from helixsim.models.egress import Egress
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.links import DeliveryQueue, Transfer
from helixsim.physics.calibrated import PassTimes
from helixsim.physics.engine import EngineCosts
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.spec import BLOCK_TOKENS
from helixsim.requests import Request

_LEAST_ROUND_S = 1e-6
"""A round of polling takes no less: time must pass while a worker idles."""


class Evictor(Protocol):
    """Takes requests out of the cluster."""

    def preempt(self, request: Request) -> None:
        """Let a request be begun again, for want of room in a KV cache."""
        ...

    def fail(self, request: Request, reason: str) -> None:
        """End a request that a node can never run."""
        ...


class EngineNode:
    """A worker and its GPU.

    Parameters
    ----------
    environment
        Where time passes.
    node
        Its layers and limits.
    entry_layers
        Layers at which requests may enter, beside its first.
    times
        How long passes take.
    engine
        How steps are made up.
    inbox
        Where requests arrive.
    is_last
        Whether the LLM's layers end here: what it sends are tokens, not hidden states.

    Attributes
    ----------
    index
        Number of the node.
    num_batches, num_tokens
        What it has run: passes, and tokens through its last layer.
    kv
        Its KV cache.
    """

    def __init__(
        self,
        environment: ExactEnvironment,
        node: PlacedNode,
        entry_layers: Iterable[int],
        times: PassTimes,
        engine: EngineCosts,
        inbox: DeliveryQueue,
        *,
        is_last: bool,
    ) -> None:
        self._environment = environment
        self.index = node.index
        self._name = node.name
        self._num_layers = node.num_layers
        self._bounds = (*sorted({node.start_layer, *entry_layers}), node.end_layer)
        self._times = times
        self._mixed = engine.batching == "mixed"
        self._max_tokens = engine.max_batched_tokens
        self._max_decodes = node.capacity.max_decode_tokens
        self._is_last = is_last
        self._round_s = max(times.poll_layer_s * node.num_layers, _LEAST_ROUND_S)
        self._inbox = inbox
        inbox.announce = self._wake_for
        self.kv = KvCache(node.capacity.kv_token_layers, node.end_layer)
        self._event = ReusableEvent(environment, self._wake)
        self._wakes_at = inf
        self._idle_since = 0.0
        self._is_idle = True
        self._entry: dict[Request, int] = {}
        self._prompts: list[Request] = []
        self._decodes: list[Request] = []
        self._passes: list[tuple[float, list[Request]]] = []
        self._fetched_tokens = 0
        self._port: Egress
        self._evictor: Evictor
        self._before_looking: Callable[[float], None] | None = None
        self._when_idle: Callable[[], None] | None = None
        self._has_other_sources = False
        self._busy_s = 0.0
        self._busy_until = 0.0
        self.num_batches = 0
        self.num_tokens = 0

    def connect(
        self,
        port: Egress,
        evictor: Evictor,
        before_looking: Callable[[float], None] | None = None,
        when_idle: Callable[[], None] | None = None,
        *,
        num_sources: int,
    ) -> None:
        """Give it its way out, and who takes out requests that find no room.

        A node behind the coordinator lets that catch up before it looks at who has come, and
        tells it when it idles. `num_sources` says how many machines send to it.
        """
        self._port = port
        self._evictor = evictor
        self._before_looking = before_looking
        self._when_idle = when_idle
        self._has_other_sources = num_sources > 1

    # -- gauges ------------------------------------------------------------------------------

    @property
    def is_unaware(self) -> bool:
        """Whether it idles and does not know when the coordinator sends it something."""
        return self._is_idle and (self._wakes_at == inf or self._has_other_sources)

    @property
    def num_waiting(self) -> int:
        """Requests that have arrived and wait for a step, fetched or not."""
        if self._wakes_at == -inf:
            return 0  # it is dead, and takes no notice of those who come
        now = self._environment._now
        fetched = len(self._prompts) + len(self._decodes)
        return fetched + sum(transfer.num_arrived(now) for transfer in self._inbox.transfers)

    @property
    def num_running(self) -> int:
        """Requests in the step that runs."""
        return sum(len(requests) for _, requests in self._passes)

    def busy_s(self, now: float) -> float:
        """How long it has worked since the start of the run."""
        return self._busy_s - max(self._busy_until - now, 0.0)

    def waiting_at_first_layer(self, now: float) -> int:
        """Requests that have arrived by now and wait, wherever they enter."""
        return self.num_waiting

    # -- requests that leave otherwise ---------------------------------------------------------

    def keep(self, wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more; the step that runs takes its time still."""
        self._inbox.keep(wanted)
        self._port.keep(wanted)
        self._prompts = [request for request in self._prompts if wanted(request)]
        self._decodes = [request for request in self._decodes if wanted(request)]
        self._passes = [
            (end, [request for request in requests if wanted(request)])
            for end, requests in self._passes
        ]
        self._entry = {request: layer for request, layer in self._entry.items() if wanted(request)}
        self.kv.keep(wanted)
        self._look_again()

    def ended(self, request: Request) -> None:
        """Forget a request that has ended: others may take its room."""
        self._entry.pop(request, None)
        if self.kv.release(request):
            self._look_again()

    def _look_again(self) -> None:
        """Idle, begin a step for those who had waited for room."""
        if self._is_idle and self._prompts:
            self._wake_at(self._environment._now)

    def die(self, now: float) -> None:
        """Stop, forget everybody, and take no notice of those who come."""
        self._busy_s = self.busy_s(now)
        self._busy_until = now
        self._wakes_at = self._inbox.wakes_at = -inf
        self._forget()
        self._port.keep(lambda request: False)

    def revive(self, now: float) -> None:
        """Start again; those who have come by now are lost."""
        self._inbox.take(now)
        self._forget()
        self._idle(now)

    def _forget(self) -> None:
        self._prompts, self._decodes, self._passes = [], [], []
        self._is_idle = False
        self._entry = {}
        self._fetched_tokens = 0
        self.kv.keep(lambda request: False)

    # -- what happens ------------------------------------------------------------------------

    def _wake_for(self, transfer: Transfer) -> None:
        """Idle, learn of a train that arrives before any known so far."""
        arrival = transfer.first_arrival_s
        self._inbox.wakes_at = arrival
        rounds = ceil((arrival - self._idle_since) / self._round_s)
        self._wake_at(self._idle_since + max(rounds, 0) * self._round_s)

    def _wake_at(self, at: float) -> None:
        now = self._environment._now
        self._wakes_at = max(at, now)
        self._event.set(self._wakes_at, now)

    def _wake(self) -> None:
        """A pass is through, or an idle worker ends a round of polling."""
        now = self._environment._now
        if now != self._wakes_at:
            return  # an earlier call made this one superfluous
        if self._passes:
            _, requests = self._passes.pop(0)
            if requests:
                self._port.depart(Batch.of(requests), now)
            if self._passes:
                self._wake_at(self._passes[0][0])
                return
        if self._before_looking is not None:
            self._before_looking(now)
        self._is_idle = False
        self._inbox.wakes_at = -inf
        if self._inbox.transfers:
            self._fetch(now)
        self._step(now)

    def _fetch(self, now: float) -> None:
        """Take in who has arrived by now."""
        for transfer in self._inbox.take(now):
            layer = transfer.entry_layer
            if layer:  # not from the coordinator, which sends tokens, not hidden states
                self._fetched_tokens += transfer.num_tokens
            if not transfer.num_prompts:
                self._decodes += transfer.requests
                continue
            for request in transfer.requests:
                if request.is_prefill:
                    self._prompts.append(request)
                    self._entry[request] = layer
                else:
                    self._decodes.append(request)

    def _step(self, now: float) -> None:
        """Begin a step, or idle."""
        decodes = self._take_decodes()
        prompts = self._take_prompts(len(decodes))
        if not prompts and not decodes:
            self._idle(now)
            return
        times = self._times
        end = now + times.copy_s(self._fetched_tokens)
        self._fetched_tokens = 0
        groups = [prompts + decodes] if self._mixed else [prompts, decodes]
        passes: list[tuple[float, list[Request]]] = []
        for requests in groups:
            if not requests:
                end += self._num_layers * times.poll_layer_s
                continue
            end = self._pass_end(end, requests)
            if not self._is_last:
                end += times.copy_s(sum([request.step_tokens for request in requests]))
            self.num_batches += 1
            self.num_tokens += sum([request.step_tokens for request in requests])
            passes.append((end, requests))
        if passes[-1][0] < end:  # the worker looks for decodes before it fetches again
            passes.append((end, []))
        self._passes = passes
        self._busy_s += end - now
        self._busy_until = end
        self._wake_at(passes[0][0])

    def _pass_end(self, start: float, requests: list[Request]) -> float:
        """When a pass is through all layers."""
        times, entry = self._times, self._entry
        bounds = self._bounds
        if len(bounds) == 2:  # nobody enters in the middle
            return start + self._num_layers * self._layer_s(requests)
        first = bounds[0]
        joining: dict[int, list[Request]] = {}
        for request in requests:
            joining.setdefault(entry.get(request, first), []).append(request)
        end = start
        inside: list[Request] = []
        for layer, following in pairwise(bounds):
            inside += joining.get(layer, ())
            layer_s = self._layer_s(inside) if inside else times.poll_layer_s
            end += (following - layer) * layer_s
        return end

    def _layer_s(self, requests: list[Request]) -> float:
        num_prompts = prompt_tokens = context_tokens = 0
        for request in requests:
            if request.is_prefill:
                num_prompts += 1
                prompt_tokens += request.step_tokens
            else:
                context_tokens += request.context_tokens
        num_decodes = len(requests) - num_prompts
        if not num_prompts:
            return self._times.decode_layer_s(num_decodes, context_tokens)
        if not num_decodes:
            return self._times.prefill_layer_s(num_prompts, prompt_tokens)
        return self._times.mixed_layer_s(num_prompts, prompt_tokens, num_decodes, context_tokens)

    def _idle(self, now: float) -> None:
        self._is_idle = True
        self._idle_since = now
        self._wakes_at = self._inbox.wakes_at = inf
        transfer = self._inbox.next_arrival()
        if transfer is not None:
            self._wake_for(transfer)
        if self._when_idle is not None:
            self._when_idle()

    # -- who is in the next step ---------------------------------------------------------------

    def _take_decodes(self) -> list[Request]:
        """Those whose next token finds room, others being preempted for it if need be."""
        kv, entry, first = self.kv, self._entry, self._bounds[0]
        for request in self._decodes[: self._max_decodes]:
            if request.context_tokens % BLOCK_TOKENS == 0:
                missing = kv.missing(request, entry.get(request, first))
                if self._make_room(request, missing, lambda: self._decodes):
                    kv.give(request, missing)
        taken = self._decodes[: self._max_decodes]
        del self._decodes[: self._max_decodes]
        return taken

    def _make_room(
        self, request: Request, num_blocks: int, waiting: Callable[[], list[Request]]
    ) -> bool:
        """Preempt those who came last until there is room, as engines do.

        It may be the request itself that has to go; whether it is still among those who wait.
        """
        while num_blocks > self.kv.num_free and request in waiting():
            self._evictor.preempt(next(self.kv.latest(), request))
        return request in waiting()

    def _take_prompts(self, num_decodes: int) -> list[Request]:
        """The first prompts, as far as a pass and the KV cache have room; others wait.

        Prompts of which chunks are through go first, and do not wait: else two of them might wait
        for each other, each holding what the other needs.
        """
        room = self._max_tokens - (num_decodes if self._mixed else 0)
        kv = self.kv
        taken: list[Request] = []
        self._prompts.sort(key=lambda request: not request.context_tokens)
        while self._prompts:
            request = self._prompts[0]
            if taken and request.step_tokens > room:
                break
            missing = kv.missing(request, self._entry[request])
            if missing > kv.num_blocks:
                self._evictor.fail(request, f"{self._name} has too little KV cache for it")
                continue
            if missing > kv.num_free and not (
                request.context_tokens and self._make_room(request, missing, lambda: self._prompts)
            ):
                if request.context_tokens:
                    continue  # it has gone itself
                break
            kv.give(request, missing)
            room -= request.step_tokens
            taken.append(self._prompts.pop(0))
        return taken

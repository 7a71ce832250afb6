"""The coordinator's machine: carries out what the coordinator decides.

Most of what comes back is a decode that leaves again at once, which no decision depends on.
Nothing need happen for it until a node behind the coordinator wants to know who has come; so
the host catches up when it is asked to, and wakes by itself only for what matters at its own
time: arrivals of new requests, ends of prompts and of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf, nextafter
from typing import Protocol

from helixsim.control.batching import Batch
from helixsim.control.coordinator import Coordinator
from helixsim.models.egress import Egress
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.links import DeliveryQueue, Transfer, interleaved, merge
from helixsim.requests import Request


class FirstNode(Protocol):
    """A node that the coordinator sends to."""

    @property
    def is_unaware(self) -> bool:
        """Whether it idles and does not know when the coordinator sends it something."""
        ...


class CoordinatorNode:
    """Receives, lets the coordinator decide, and sends.

    Parameters
    ----------
    environment
        Where time passes.
    coordinator
        Decides.
    inbox
        Where passes come back.
    eager
        Whether to wake for everything that comes, at its own time; needed where sending
        depends on what else is being sent at that moment.

    Attributes
    ----------
    when_ended
        Called with every request that has ended, where nodes keep what they know of it.
    """

    def __init__(
        self,
        environment: ExactEnvironment,
        coordinator: Coordinator,
        inbox: DeliveryQueue,
        *,
        eager: bool,
    ) -> None:
        self._environment = environment
        self._coordinator = coordinator
        self._inbox = inbox
        self._eager = eager
        self._event = ReusableEvent(environment, self.catch_up)
        self._pending_arrivals: list[tuple[float, float, int, Request]] = []
        self._armed_at = inf
        self._numbers = count()
        self._port: Egress
        self._first_gpus: Sequence[FirstNode] = ()
        self._prepare: Callable[[Request], None]
        self._later: Iterator[Request] = iter(())
        self._followed: Request | None = None
        self.when_ended: Callable[[Request], None] | None = None
        inbox.announce = self._on_transfer

    def connect(
        self, port: Egress, first_gpus: Sequence[FirstNode], prepare: Callable[[Request], None]
    ) -> None:
        """Give it its way out, the nodes behind it, and what readies a request for its way."""
        self._port = port
        self._first_gpus = first_gpus
        self._prepare = prepare

    @property
    def expects_arrivals(self) -> bool:
        """Whether some request is still to arrive."""
        return bool(self._pending_arrivals)

    def add_arrival(self, request: Request, now: float) -> None:
        """Let a request that was created now arrive at its time."""
        heappush(self._pending_arrivals, (request.arrival_s, now, next(self._numbers), request))
        self._event.set(request.arrival_s, now)

    def follow(self, later: Iterator[Request]) -> None:
        """Let requests arrive one after another, each put on the agenda by the one before."""
        self._later = later
        self._follow_on()

    def _follow_on(self) -> None:
        request = next(self._later, None)
        self._followed = request
        if request is not None:
            # As if all had been announced before the run began.
            self.add_arrival(request, 0.0)

    def catch_up(self, now: float | None = None) -> None:
        """Do everything that is due by now."""
        if now is None:
            now = self._environment._now
        agenda = self._pending_arrivals
        while agenda and agenda[0][0] <= now:
            at = agenda[0][0]
            # Who was announced before is served before those who come back at that instant.
            self._take_back(nextafter(at, -inf))
            request = heappop(agenda)[3]
            if request is self._followed:
                self._follow_on()
            if self._coordinator.arrive(request, at):
                self._prepare(request)
                self._port.depart(Batch.of([request]), at)
        self._take_back(now)
        if self._inbox.transfers and not self._eager:
            self.arm_if_needed()

    def arm_if_needed(self) -> None:
        """Wake for the next to come back, if some node behind has nothing to do till then."""
        transfer = self._inbox.next_arrival()
        if transfer is not None and any(gpu.is_unaware for gpu in self._first_gpus):
            self._arm_for(transfer)

    def _on_transfer(self, transfer: Transfer) -> None:
        latency = transfer.latency_s
        for request, sent in zip(transfer.requests, transfer.sent_s, strict=True):
            if request.is_prefill or request.iteration == request.last_iteration:
                self._event.set(sent + latency, sent)
        if self._eager or any(gpu.is_unaware for gpu in self._first_gpus):
            self._arm_for(transfer)

    def _arm_for(self, transfer: Transfer) -> None:
        at = transfer.first_arrival_s
        if at != self._armed_at:  # once is enough
            self._armed_at = at
            self._event.set(at, transfer.sent_s[0])

    def _take_back(self, until: float) -> None:
        transfers = self._inbox.take(until) if self._inbox.transfers else None
        if not transfers:
            return
        if len(transfers) > 1 and interleaved(transfers):
            deliveries = merge(transfers)
            requests = [delivery[5] for delivery in deliveries]
            self._return_each(requests, [delivery[0] for delivery in deliveries])
            return
        for transfer in transfers:
            latency = transfer.latency_s
            self._return_each(transfer.requests, [sent + latency for sent in transfer.sent_s])

    def keep(self, wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more."""
        self._inbox.keep(wanted)
        self._port.keep(wanted)

    def send(self, requests: list[Request], now: float) -> None:
        """Send requests that have been given a new route, after a change of plan."""
        self._add_created()
        for request in requests:
            self._prepare(request)
        if requests:
            self._port.depart(Batch.of(requests), now)
        if not self._eager:
            self.arm_if_needed()

    def _add_created(self) -> None:
        created = self._coordinator.created
        for new, now in created:
            self.add_arrival(new, now)
        created.clear()

    def _return_each(self, requests: list[Request], times: list[float]) -> None:
        coordinator = self._coordinator
        when_ended = self.when_ended
        last = when_ended and [r for r in requests if r.iteration == r.last_iteration]
        again, ready = coordinator.returned(requests, times)
        if when_ended is not None and last:
            for request in last:
                when_ended(request)
        if coordinator.created:
            self._add_created()
        if coordinator.admitted:
            for request in coordinator.admitted:
                self._prepare(request)
            coordinator.admitted.clear()
        if again:
            self._port.depart_each(again, ready)

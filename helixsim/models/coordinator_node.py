"""The coordinator's machine: reports events to the coordinator and carries out its actions.

Most of what returns is a decode that leaves again at once, which no decision depends on. Nothing
need happen for it until a node behind the coordinator wants to know what has arrived; so this
machine catches up when it is asked to, and wakes by itself only for what matters at its own time:
arrivals of new requests, ends of prompts and of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf, nextafter
from typing import Protocol

from helixsim.control.actions import (
    Actions,
    Event,
    PassesReturned,
    RequestArrived,
    RequestFailed,
    RequestPreempted,
    RunStarted,
    TokensReturned,
)
from helixsim.models.egress import Egress
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.links import DeliveryQueue, Transfer, interleaved, merge
from helixsim.models.token_stream import ArrivedTokens
from helixsim.requests import Request
from helixsim.steps import Batch, Step


class Decider(Protocol):
    """The coordinator, as this machine needs it."""

    def handle(self, event: Event, now: float) -> Actions:
        """Decide what follows from an event."""
        ...


class AttachedNode(Protocol):
    """A node, as the coordinator's machine needs it."""

    @property
    def is_unaware(self) -> bool:
        """Whether it idles and does not know when the coordinator sends it something."""
        ...

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more."""
        ...

    def release(self, request: Request) -> None:
        """Free the KV blocks of a request that has ended."""
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
        Where passes return.
    eager
        Whether to wake for everything that returns, at its own time; needed where sending depends
        on what else is being sent at that moment.

    Attributes
    ----------
    tokens
        Tokens in flight to here from nodes whose decodes loop.
    """

    def __init__(
        self,
        environment: ExactEnvironment,
        coordinator: Decider,
        inbox: DeliveryQueue,
        *,
        eager: bool,
    ) -> None:
        self._environment = environment
        self._handle = coordinator.handle
        self._inbox = inbox
        self._eager = eager
        self._event = ReusableEvent(environment, self.catch_up)
        self._pending_arrivals: list[tuple[float, float, int, Request]] = []
        self._armed_at = inf
        self._numbers = count()
        self._egress: Egress
        self._nodes: Sequence[AttachedNode] = ()
        self._first_nodes: Sequence[AttachedNode] = ()
        self._releases = False
        self._prepare: Callable[[Request], None]
        self.tokens = ArrivedTokens()
        inbox.announce = self._on_transfer

    def connect(
        self,
        egress: Egress,
        nodes: Sequence[AttachedNode],
        first_nodes: Sequence[AttachedNode],
        prepare: Callable[[Request], None],
        *,
        releases: bool,
    ) -> None:
        """Give it its way out, all nodes, and what readies a request for its way.

        `first_nodes` are the nodes that it sends to; `releases` says whether nodes are told of
        requests that have ended, because they keep an account of KV blocks.
        """
        self._egress = egress
        self._nodes = nodes
        self._first_nodes = first_nodes
        self._prepare = prepare
        self._releases = releases

    @property
    def expects_arrivals(self) -> bool:
        """Whether some request is still to arrive."""
        return bool(self._pending_arrivals)

    def start(self) -> None:
        """Let the run begin."""
        self._settle(self._handle(RunStarted(), 0.0))

    # -- events --------------------------------------------------------------------------------

    def report(self, event: Event, now: float) -> None:
        """Let the coordinator decide about an event, after all that is due by now."""
        self.catch_up(now)
        self.carry_out(self._handle(event, now), now)

    def report_step(self, step: Step) -> None:
        """Report the requests that a node scheduler took out."""
        now = self._environment._now
        for request in step.preempted:
            self.report(RequestPreempted(request), now)
        for request, reason in step.failed:
            self.report(RequestFailed(request, reason), now)

    def catch_up(self, now: float | None = None) -> None:
        """Do everything that is due by now."""
        if now is None:
            now = self._environment._now
        pending = self._pending_arrivals
        while pending and pending[0][0] <= now:
            at = pending[0][0]
            # Requests announced before are served before passes that return at that instant.
            self._take_back(nextafter(at, -inf))
            request = heappop(pending)[3]
            actions = self._handle(RequestArrived(request), at)
            self._settle(actions)
            if actions.send:
                self._egress.depart(Batch.of(actions.send), at)
        self._take_back(now)
        if self._inbox.transfers and not self._eager:
            self.arm_if_needed()

    def expect_tokens(self, arrival_s: float, sent_s: float) -> None:
        """Look when tokens arrive that something follows from."""
        self._event.schedule(arrival_s, sent_s)

    def _take_back(self, until: float) -> None:
        if self.tokens.messages:
            for arrival, _, _, requests in self.tokens.take(until):
                times = [arrival] * len(requests)
                actions = self._handle(TokensReturned(requests, times), arrival)
                if actions.send or actions.ended or actions.arrivals:
                    self._settle(actions)
                    if actions.send:
                        self._egress.depart_each(actions.send, actions.ready_s)
        transfers = self._inbox.take(until) if self._inbox.transfers else None
        if not transfers:
            return
        if len(transfers) > 1 and interleaved(transfers):
            deliveries = merge(transfers)
            requests = [delivery[5] for delivery in deliveries]
            self._passes_returned(requests, [delivery[0] for delivery in deliveries])
            return
        for transfer in transfers:
            latency = transfer.latency_s
            self._passes_returned(transfer.requests, [sent + latency for sent in transfer.sent_s])

    def _passes_returned(self, requests: list[Request], times: list[float]) -> None:
        actions = self._handle(PassesReturned(requests, times), times[-1])
        if actions.send is not requests:  # more than decodes that are followed by decodes
            self._settle(actions)
        if actions.send:
            self._egress.depart_each(actions.send, actions.ready_s)

    # -- actions -------------------------------------------------------------------------------

    def carry_out(self, actions: Actions, now: float) -> None:
        """Do what the coordinator wants done now."""
        self._settle(actions)
        if actions.send:
            self._egress.depart(Batch.of(actions.send), now)
        if not self._eager:
            self.arm_if_needed()

    def _settle(self, actions: Actions) -> None:
        """Do all but the sending."""
        if actions.dropped:
            self._drop(frozenset(actions.dropped))
        if self._releases:
            for request in actions.ended:
                assert request.route is not None
                for stage in request.route.stages:
                    self._nodes[stage.node].release(request)
        for request, created_s in actions.arrivals:
            heappush(
                self._pending_arrivals,
                (request.arrival_s, created_s, next(self._numbers), request),
            )
            self._event.schedule(request.arrival_s, created_s)
        for request in actions.admitted:
            self._prepare(request)

    def _drop(self, gone: frozenset[Request]) -> None:
        def is_wanted(request: Request) -> bool:
            return request.origin not in gone

        self._inbox.drop_unless(is_wanted)
        self.tokens.drop_unless(is_wanted)
        self._egress.drop_unless(is_wanted)
        for node in self._nodes:
            node.drop_unless(is_wanted)

    # -- waking --------------------------------------------------------------------------------

    def arm_if_needed(self) -> None:
        """Wake for the next pass to return, if some node behind has nothing to do till then."""
        transfer = self._inbox.next_arrival()
        if transfer is not None and self._some_node_is_unaware():
            self._arm_for(transfer)

    def _some_node_is_unaware(self) -> bool:
        return any(node.is_unaware for node in self._first_nodes)

    def _on_transfer(self, transfer: Transfer) -> None:
        latency = transfer.latency_s
        for request, sent in zip(transfer.requests, transfer.sent_s, strict=True):
            if request.is_prefill or request.num_output_tokens == request.num_decodes:
                self._event.schedule(sent + latency, sent)
        if self._eager or self._some_node_is_unaware():
            self._arm_for(transfer)

    def _arm_for(self, transfer: Transfer) -> None:
        at = transfer.first_arrival_s
        if at != self._armed_at:  # once is enough
            self._armed_at = at
            self._event.schedule(at, transfer.sent_s[0])

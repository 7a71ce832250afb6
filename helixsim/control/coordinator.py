"""The life of a request, as the coordinator decides it: events in, actions out.

One door: :meth:`Coordinator.handle` takes an event with its time and returns the actions that an
executor carries out (:mod:`helixsim.control.actions`). No clock, no network: the simulator and a
real cluster use the same object.

A request is created by the load generator, arrives, and is admitted, waits, or is rejected. Its
prefill leaves and returns, in one or several chunks; then its decodes, one at a time; then it has
ended. Where decodes loop, the request leaves once, and its tokens come in while the nodes go on.

When a node is lost, the KV caches that it held are gone. Each request that needs them is
abandoned, and a new attempt takes its place: another :class:`~helixsim.requests.Request` of the
same index, which prefills all tokens known so far and goes on from there. Passes of an abandoned
attempt that still return are ignored.

Invariants, checked by :meth:`Coordinator.validate`:

``one-place``
    Each request that was created is pending, active, waiting or has ended, and only one of these.
``tokens-conserved``
    Output tokens that returned = tokens of requests that ended + tokens of requests in the system.
``kv-conserved``
    The KV use that the policy expects is the sum over active requests.
``progress``
    Requests wait only while others are active: what is active ends and makes room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import cast

from helixsim.cluster import COORDINATOR
from helixsim.control.actions import (
    Actions,
    AnswerStopped,
    Event,
    LinksCut,
    NodeLost,
    NodeRecovered,
    PassesReturned,
    RequestArrived,
    RequestCancelled,
    RequestFailed,
    RequestPreempted,
    RequestStalled,
    RunStarted,
    ScheduledArrival,
    TokensReturned,
    no_actions,
)
from helixsim.control.lateness import Lateness
from helixsim.control.load import Arrival, LoadGenerator
from helixsim.control.node_schedulers.scheduler import ContextBound
from helixsim.control.recorder import Recorder
from helixsim.control.routing.policy import Policy, PreemptingPolicy, Rejection
from helixsim.placement.flow import Flow
from helixsim.requests import Request

Cut = frozenset[tuple[int, int]]
"""Links that do not work: (source, target), by number of the machines."""


class Coordinator:
    """Decides what becomes of requests.

    Parameters
    ----------
    policy
        Finds routes.
    load_generator
        Creates requests.
    recorder
        Keeps what happens.
    passes_beyond_answer
        Decodes that a request runs beyond what its answer needs after the prefill's token. The
        published simulator runs one.
    node_names, front_end_names
        For the reasons of requests that fail.
    reflow
        The flow without some nodes and links, None if no route is left. Without it, none ever is.
    prefill_chunk_tokens
        The most tokens of a prefill that leave at once. None for whole prefills.
    streams_chunks
        Whether the next chunk leaves right behind this one; else, when this one has returned.
    longest_chunk_tokens
        The longest chunk that all nodes take, for chunks in a stream.
    max_waiting
        How many requests may wait for room in the KV caches, instead of being rejected.
    decodes_loop
        Whether decodes go on at the nodes by themselves: then :class:`~.actions.TokensReturned`
        is reported, not :class:`~.actions.PassesReturned`.
    lateness
        Forecasts first tokens, and says what becomes of requests whose token would come too late.

    Attributes
    ----------
    active
        Requests that have been admitted and have not ended.
    waiting
        Requests that wait for room in the KV caches, in order. New attempts wait before all other
        requests, however many there are.
    down
        Nodes that are lost.
    num_restarts
        How many attempts after the first have been sent.
    contexts
        Bound on the length of contexts.
    """

    def __init__(
        self,
        policy: Policy,
        load_generator: LoadGenerator,
        recorder: Recorder,
        passes_beyond_answer: int,
        *,
        node_names: Sequence[str] = (),
        front_end_names: Sequence[str] = (COORDINATOR,),
        reflow: Callable[[frozenset[int], Cut], Flow | None] = lambda down, cut: None,
        prefill_chunk_tokens: int | None = None,
        streams_chunks: bool = False,
        longest_chunk_tokens: int = 2**62,
        max_waiting: int = 0,
        decodes_loop: bool = False,
        lateness: Lateness | None = None,
    ) -> None:
        self._policy = policy
        self._load_generator = load_generator
        self._recorder = recorder
        self._passes_beyond_answer = passes_beyond_answer
        self._node_names = node_names
        self._machine_names = (*node_names, *front_end_names)
        self._reflow = reflow
        self._chunk_tokens = prefill_chunk_tokens
        self._streams_chunks = streams_chunks
        self._longest_chunk = longest_chunk_tokens
        self._max_waiting = max_waiting
        self._decodes_loop = decodes_loop
        self._lateness = lateness or Lateness()
        self._open_loop: Iterator[Arrival] = iter(())
        self._next_of_open_loop: Request | None = None
        self._num_created = 0
        self._num_arrived = 0
        self._num_ended = 0
        self._num_tokens_returned = 0
        self._num_tokens_of_ended = 0
        self._has_route = True
        # Where decodes loop, nodes count their blocks and preempt by themselves.
        self._preempts = not decodes_loop and getattr(policy, "preempts", False)
        self._last_lost = ""
        self._last_alone = (-1, 0)  # the last request that was preempted alone, and its tokens then
        self._num_unreplaced = 0
        self.active: dict[Request, None] = {}
        self.waiting: deque[Request] = deque()
        self.down: frozenset[int] = frozenset()
        self.cut: Cut = frozenset()
        self.num_restarts = 0
        self.contexts = ContextBound()

    @property
    def has_route(self) -> bool:
        """Whether some route leads through all layers now."""
        return self._has_route

    def create(self, arrival: Arrival) -> Request:
        """Create a request that is to arrive, for :class:`~.actions.RequestArrived`."""
        request = Request(
            self._num_created,
            arrival.at_s,
            arrival.prompt_tokens,
            arrival.output_tokens,
            num_decodes=arrival.output_tokens - 1 + self._passes_beyond_answer,
            max_chunk_tokens=self._chunk_size(arrival.prompt_tokens),
        )
        request.prefix, request.priority = arrival.prefix, arrival.priority
        request.user_class = arrival.user_class
        request.front_end = arrival.front_end
        self._num_created += 1
        return request

    def _chunk_size(self, num_tokens: int) -> int | None:
        """The most tokens of a chunk of a prefill; chunks in a stream are of equal length.

        A short last chunk would take a node as long as a longer one: its weights are read all the
        same. So there are as many chunks as come closest to the wanted length.
        """
        wanted = self._chunk_tokens
        if wanted is None or not self._streams_chunks:
            return wanted
        num_chunks = max(round(num_tokens / wanted), -(-num_tokens // self._longest_chunk), 1)
        return -(-num_tokens // num_chunks)

    def handle(self, event: Event, now: float) -> Actions:
        """Decide what follows from an event at time `now`, seconds of the run.

        Times of successive calls do not decrease. Events about a request that has ended, or about
        an attempt that is over, change nothing.
        """
        if event.__class__ is PassesReturned:  # nearly all are
            return self._passes_returned(event.requests, event.times_s)
        if event.__class__ is TokensReturned:
            return self._tokens_returned(event.requests, event.times_s)
        actions = no_actions()
        match event:
            case RequestArrived(request):
                self._arrived(request, now, actions)
            case RunStarted():
                self._started(actions)
            case AnswerStopped(request):
                if request in self.active:
                    request.num_decodes = request.num_output_tokens
            case NodeLost() | NodeRecovered() | LinksCut():
                self._handle_change_of_cluster(event, now, actions)
            case RequestStalled(request):
                self._stalled(request, now, actions)
            case RequestPreempted(request):
                self._preempted(request, now, actions)
            case RequestFailed(request, reason):
                self._lose(request, reason, now, actions)
            case RequestCancelled(request):
                self._lose(request, None, now, actions)
        return actions

    def _handle_change_of_cluster(
        self, event: NodeLost | NodeRecovered | LinksCut, now: float, actions: Actions
    ) -> None:
        match event:
            case NodeLost(node):
                self._node_lost(node, now, actions)
            case NodeRecovered(node):
                self._node_recovered(node, now, actions)
            case LinksCut(links):
                self._links_cut(links, now, actions)

    # -- arrivals ------------------------------------------------------------------------------

    def _started(self, actions: Actions) -> None:
        for arrival in self._load_generator.opening():
            actions.arrivals.append(ScheduledArrival(self.create(arrival), 0.0))
        self._open_loop = self._load_generator.later()
        self._schedule_next_of_open_loop(actions)

    def _schedule_next_of_open_loop(self, actions: Actions) -> None:
        """Create the next request of the open loop, when the one before it has arrived."""
        arrival = next(self._open_loop, None)
        self._next_of_open_loop = None
        if arrival is not None:
            self._next_of_open_loop = self.create(arrival)
            # As if all of them had been announced before the run began.
            actions.arrivals.append(ScheduledArrival(self._next_of_open_loop, 0.0))

    def _arrived(self, request: Request, now: float, actions: Actions) -> None:
        """Admit a request, let it wait, or reject it."""
        self._num_arrived += 1
        if request is self._next_of_open_loop:
            self._schedule_next_of_open_loop(actions)
        self._recorder.arrived(request)
        # What an empty cluster cannot serve in time is served all the same: it is measured by it.
        if self._lateness.refuses and self.active and self._lateness.is_late(request, now):
            self._refuse(request)
            return
        if self.waiting and self._max_waiting:
            reason: Rejection | None = Rejection.KV  # requests that wait already go first
        else:
            reason = self._admit(request, now)
        if reason is None:
            self._send_admitted(actions, request, now)
        elif reason is Rejection.KV and self.active and self._num_new_waiting < self._max_waiting:
            self.waiting.append(request)
        else:
            self._reject(request, reason)

    # -- passes --------------------------------------------------------------------------------

    def _passes_returned(self, requests: list[Request], times: list[float]) -> Actions:
        """Take passes back that returned at these times, in order."""
        if all(
            request.num_output_tokens < request.num_decodes and not request.is_prefill
            for request in requests
        ):
            # Decodes that are followed by decodes: nothing to decide, and most of all passes.
            self._recorder.decodes_ended(requests, times)
            for request, now in zip(requests, times, strict=True):
                request.num_computed_tokens += 1
                request.num_output_tokens += 1
                request.dispatched_s = now
            self._num_tokens_returned += len(requests)
            self._policy.decodes_dispatched(requests)
            actions = Actions(requests, times, [], [], [], [])
            return self._make_room(actions, times[-1]) if self._preempts else actions
        actions = no_actions()
        for request, now in zip(requests, times, strict=True):
            self._returned(request, now, actions)
        return self._make_room(actions, times[-1]) if self._preempts else actions

    def _returned(self, request: Request, now: float, actions: Actions) -> None:
        if request not in self.active:
            return  # a pass of an attempt that is over
        if request.is_prefill and not request.is_last_chunk:
            request.next_chunk()
            _send(actions, request, now)
            return
        number = self._take_token(request, now)
        if number == request.num_decodes:
            self._end(request, now, actions)
            return
        request.num_computed_tokens += request.num_new_tokens
        request.num_new_tokens = 1
        request.is_prefill = False
        request.num_output_tokens = number + 1
        request.dispatched_s = now
        self._policy.decodes_dispatched((request,))
        if not number:
            self._generate_after_prompt(request, now, actions)
        _send(actions, request, now)

    def _tokens_returned(self, requests: list[Request], times: list[float]) -> Actions:
        """Take tokens of requests that go on by themselves; nothing is sent."""
        actions = no_actions()
        # Neither the first token nor the last one: nothing to decide, and most of all tokens.
        between = [
            request for request in requests if 0 < request.num_output_tokens < request.num_decodes
        ]
        others: Iterable[tuple[Request, float]] = ()
        if len(between) < len(requests):
            known = set(between)
            others = [pair for pair in zip(requests, times, strict=True) if pair[0] not in known]
            times = [now for request, now in zip(requests, times, strict=True) if request in known]
        if between:
            self._recorder.decodes_ended(between, times)
            for request, now in zip(between, times, strict=True):
                request.num_output_tokens += 1
                request.dispatched_s = now
            self._num_tokens_returned += len(between)
            self._policy.decodes_dispatched(between)
        for request, now in others:
            if request not in self.active:
                continue  # a token of an attempt that is over
            number = self._take_token(request, now)
            if number == request.num_decodes:
                self._end(request, now, actions)
                continue
            self._policy.decodes_dispatched((request,))
            request.num_output_tokens = number + 1
            request.dispatched_s = now
            if not number:
                self._generate_after_prompt(request, now, actions)
        return actions

    def _take_token(self, request: Request, now: float) -> int:
        """Record a token of an active request; its number."""
        number = request.num_output_tokens
        if number:
            self._recorder.decodes_ended((request,), (now,))
        else:
            self._recorder.prompt_ended(request, now)
            self._lateness.prompt_ended(request, now)
            request.first_token_s = now
        self._num_tokens_returned += 1
        return number

    def _generate_after_prompt(self, request: Request, now: float, actions: Actions) -> None:
        share = self._policy.bottleneck_share()
        self._generate(self._load_generator.after_prompt(now, share, request.index), now, actions)

    def _end(self, request: Request, now: float, actions: Actions) -> None:
        self._policy.finished(request)
        del self.active[request]
        self._count_ended(request.num_output_tokens + 1)
        self._recorder.ended(request, now)
        actions.ended.append(request)
        self._serve_waiting(now, actions)
        self._generate_after_end(now, request.index, actions)

    # -- disruptions ---------------------------------------------------------------------------

    def _node_lost(self, node: int, now: float, actions: Actions) -> None:
        """Restart all requests that need the node, or let them fail."""
        if node in self.down:
            return
        self.down |= {node}
        self._last_lost = self._node_names[node]
        self._reroute()
        self._restart_cut_off(now, actions)

    def _restart_cut_off(self, now: float, actions: Actions) -> None:
        abandoned = [request for request in self.active if self._is_cut_off(request)]
        # All give their room back before the first of them asks for some.
        attempts = [self._abandon(request, actions) for request in abandoned]
        self.waiting.extendleft(reversed(attempts))
        self._serve_waiting(now, actions)

    def _node_recovered(self, node: int, now: float, actions: Actions) -> None:
        if node not in self.down:
            return
        self.down -= {node}
        self._reroute()
        self._serve_again(now, actions)

    def _serve_again(self, now: float, actions: Actions) -> None:
        """Serve waiting requests after a node or a link has come back."""
        self._serve_waiting(now, actions)
        if self._has_route:
            # A closed loop replaces the requests that were rejected for want of a route.
            missing, self._num_unreplaced = self._num_unreplaced, 0
            for _ in range(missing):
                self._generate_after_end(now, None, actions)

    def _links_cut(self, links: Cut, now: float, actions: Actions) -> None:
        """Restart all requests whose route leads over a link that does not work, or fail them."""
        if links == self.cut:
            return
        new, self.cut = links - self.cut, links
        self._reroute()
        if new:
            source, target = min(new)
            self._last_lost = (
                f"the link {self._machine_names[source]} -> {self._machine_names[target]}"
            )
            self._restart_cut_off(now, actions)
        self._serve_again(now, actions)

    def _stalled(self, request: Request, now: float, actions: Actions) -> None:
        """Begin a request anew, before all others."""
        if request not in self.active:
            return
        self.waiting.appendleft(self._abandon(request, actions))
        self._serve_waiting(now, actions)

    def _preempted(self, request: Request, now: float, actions: Actions) -> None:
        """Restart a request for which a node had no KV blocks.

        The expected KV use has just been shown to be too low, so the request waits, before all
        others, until a request has ended; if none is active, it is sent at once.
        """
        if request not in self.active:
            return
        if self._preempts:
            cast("PreemptingPolicy", self._policy).preempted()
        if len(self.active) == 1:
            # Alone, it has all the room that there is: if it gets no further, it never will.
            progress = request.index, request.num_output_tokens
            if progress == self._last_alone:
                self._lose(request, "too little KV cache for its context", now, actions)
                return
            self._last_alone = progress
        self.waiting.appendleft(self._abandon(request, actions))
        if not self.active:
            self._serve_waiting(now, actions)

    def _make_room(self, actions: Actions, now: float) -> Actions:
        """Preempt requests, the last admitted first, until what they hold fits every node.

        Each is at the head of the queue then: it begins anew when it fits, its growth included.
        """
        policy = cast("PreemptingPolicy", self._policy)
        while (node := policy.overfull_node()) is not None:
            victim = next(request for request in reversed(self.active) if _runs_on(request, node))
            if not any(_runs_on(other, node) for other in self.active if other is not victim):
                self._lose(victim, "its context has outgrown the KV cache", now, actions)
                continue
            victim.num_preemptions += 1
            self.waiting.appendleft(self._abandon(victim, actions))
        if not actions.dropped:
            return actions
        policy.preempted()
        gone = frozenset(actions.dropped)
        kept = [
            (request, ready)
            for request, ready in zip(actions.send, actions.ready_s, strict=True)
            if request.origin not in gone
        ]
        return actions._replace(
            send=[request for request, _ in kept], ready_s=[ready for _, ready in kept]
        )

    def _take_out(self, request: Request, actions: Actions) -> bool:
        """Take a request out of wherever it is; False if it has ended already."""
        if request in self.active:
            self._release(request, actions)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return False
        self._count_ended(request.num_output_tokens)
        return True

    def _lose(self, request: Request, reason: str | None, now: float, actions: Actions) -> None:
        """Let a request fail for a reason, or, without one, be cancelled; others go on."""
        if not self._take_out(request, actions):
            return
        if reason is None:
            self._recorder.cancelled(request, now)
        else:
            self._recorder.failed(request, reason, now)
        self._serve_waiting(now, actions)
        self._generate_after_end(now, request.index, actions)

    def _reroute(self) -> None:
        flow = self._reflow(self.down, self.cut)
        self._has_route = flow is not None
        if flow is not None:
            self._policy.reroute(flow, self.down, self.cut)

    def _is_cut_off(self, request: Request) -> bool:
        assert request.route is not None
        return (
            not self._has_route
            or any(stage.node in self.down for stage in request.route.stages)
            or (self.cut and not self.cut.isdisjoint(self._hops(request)))
            or self._policy.is_stranded(request)
        )

    def _hops(self, request: Request) -> Iterator[tuple[int, int]]:
        """The links of a request's route; if it is not complete, the links so far."""
        assert request.route is not None
        home = len(self._node_names) + request.front_end
        nodes = [stage.node for stage in request.route.stages]
        return pairwise((home, *nodes, home))

    def _abandon(self, request: Request, actions: Actions) -> Request:
        """End an attempt, and make the next."""
        attempt = request.restarted(self._chunk_size(request.num_tokens))
        self._release(request, actions)
        return attempt

    def _release(self, request: Request, actions: Actions) -> None:
        self._policy.finished(request)
        del self.active[request]
        request.abandon()
        actions.dropped.append(request)

    def _fail(self, request: Request, now: float, actions: Actions) -> None:
        is_cut = self.down or self.cut
        reason = f"{self._last_lost} was lost" if is_cut else "no room to begin it again"
        self._count_ended(request.num_output_tokens)
        self._recorder.failed(request, reason, now)
        self._generate_after_end(now, request.index, actions)

    # -- admission -----------------------------------------------------------------------------

    @property
    def _num_new_waiting(self) -> int:
        return sum(not request.attempt for request in self.waiting)

    def _admit(self, request: Request, now: float) -> Rejection | None:
        if not self._has_route:
            return Rejection.NODES
        reason = self._policy.admit(request)
        if reason is Rejection.LENGTH and request.num_tokens > request.prompt_tokens:
            # With its answer so far it is longer than a batch may be; its prompt was not.
            request.split_prefill(min(request.prompt_tokens, request.max_chunk_tokens))
            reason = self._policy.admit(request)
        if reason is not None:
            return reason
        if request.attempt:
            self.num_restarts += 1
        else:
            request.first_dispatch_s = request.dispatched_s = now
        self.active[request] = None
        self.contexts.longest = max(self.contexts.longest, request.longest_context)
        return None

    def _send_admitted(self, actions: Actions, request: Request, now: float) -> None:
        """Send an admitted request: its whole prefill, the first chunk of it, or all chunks."""
        if self._streams_chunks:
            for chunk in request.stream():
                _send(actions, chunk, now)
        _send(actions, request, now)
        actions.admitted.append(request)

    def _reject(self, request: Request, reason: Rejection) -> None:
        if reason is Rejection.NODES:
            self._num_unreplaced += 1
        self._count_ended(0)
        self._recorder.rejected(request, reason)

    def _serve_waiting(self, now: float, actions: Actions) -> None:
        """Admit requests that wait, in order, while there is room.

        Where no use of the KV caches is expected, nothing tells whether there is room for requests
        that were preempted: one at a time begins anew, so that they do not preempt one another.
        """
        if not self.waiting:
            return
        knows_room = self._policy.bottleneck_share() is not None
        num_restarts = 0
        if self._lateness.refuses or self._lateness.lets_wait:
            self._sort_out_late(now)
        while self.waiting:
            request = self.waiting[0]
            if request.attempt and not knows_room and self.active:
                if num_restarts:
                    break
                num_restarts += 1
            reason = self._admit(request, now)
            if reason is Rejection.KV and self.active:
                break
            self.waiting.popleft()
            if reason is None:
                self._send_admitted(actions, request, now)
            elif request.attempt:
                self._fail(request, now, actions)
            else:
                self._reject(request, reason)

    def _sort_out_late(self, now: float) -> None:
        """Refuse waiting requests whose first token would come too late, or let others pass."""
        is_late = self._lateness.is_late
        late = [request for request in self.waiting if is_late(request, now)]
        if not late:
            return
        in_time = deque(request for request in self.waiting if not is_late(request, now))
        if self._lateness.lets_wait:
            self.waiting = in_time + deque(late)
            return
        if not self.active and not in_time:
            in_time.append(late.pop(0))  # an empty cluster serves even this one
        self.waiting = in_time
        for request in late:
            self._refuse(request)

    def _refuse(self, request: Request) -> None:
        """Reject a request that is late."""
        self._lateness.refused()
        self._reject(request, Rejection.LATE)

    # -- load ----------------------------------------------------------------------------------

    def _generate_after_end(self, now: float, index: int | None, actions: Actions) -> None:
        share = self._policy.bottleneck_share()
        self._generate(self._load_generator.after_end(now, share, index), now, actions)

    def _generate(self, arrival: Arrival | None, now: float, actions: Actions) -> None:
        if arrival is not None:
            actions.arrivals.append(ScheduledArrival(self.create(arrival), now))

    # -- invariants ----------------------------------------------------------------------------

    def _count_ended(self, num_tokens: int) -> None:
        self._num_ended += 1
        self._num_tokens_of_ended += num_tokens

    def validate(self) -> None:
        """Check the invariants named at the head of this module.

        Raises
        ------
        AssertionError
            With the name of the invariant that does not hold.
        """
        inside = [*self.active, *self.waiting]
        indices = {request.index for request in inside}
        assert len(indices) == len(inside), "one-place: a request is active and waiting"
        assert len(inside) + self._num_ended == self._num_arrived <= self._num_created, (
            f"one-place: {self._num_created} created, {self._num_arrived} arrived, "
            f"{len(inside)} inside, {self._num_ended} ended"
        )
        tokens = sum(request.num_output_tokens for request in inside)
        assert self._num_tokens_returned == self._num_tokens_of_ended + tokens, (
            f"tokens-conserved: {self._num_tokens_returned} returned, "
            f"{self._num_tokens_of_ended} of ended requests, {tokens} inside"
        )
        for request in self.active:
            if self._decodes_loop:
                # The last node of a route tells the coordinator and the first node at once.
                assert request.num_output_tokens <= request.num_generated_tokens + 1, (
                    f"tokens-conserved: request {request.index} has tokens that no node made"
                )
                continue
            known = request.prompt_tokens + request.num_output_tokens
            position = request.num_computed_tokens + request.num_new_tokens
            assert position <= known, f"tokens-conserved: request {request.index} runs ahead"
            if not request.is_prefill:
                assert position == known, f"tokens-conserved: request {request.index} lacks tokens"
        self._policy.validate(self.active)
        assert self.active or not self.waiting, "progress: requests wait and none is active"


def _runs_on(request: Request, node: int) -> bool:
    return request.route is not None and any(stage.node == node for stage in request.route.stages)


def _send(actions: Actions, request: Request, now: float) -> None:
    actions.send.append(request)
    actions.ready_s.append(now)

"""Sends the passes of requests to workers, and takes returned passes and their tokens."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import NamedTuple

from helixreal.coordinator.attempts import Attempt, Generation, PromptMaker
from helixreal.coordinator.deadlines import Deadlines
from helixreal.coordinator.events import Events
from helixreal.coordinator.live_recorder import LiveRecorder
from helixreal.coordinator.membership import Membership
from helixreal.engines.engine import Scores
from helixreal.net import messages
from helixreal.net.outgoing_link import OutgoingLink
from helixreal.net.transport import Transport
from helixreal.serving.frontend import Failed, Finished, Refused, Token
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
    TokensReturned,
)
from helixsim.control.control_plane import ControlPlane
from helixsim.control.links_to_avoid import links_to_avoid
from helixsim.control.routing.policy import complete_route
from helixsim.requests import Request

logger = logging.getLogger(__name__)


class _Returned(NamedTuple):
    """Passes to report in one event: requests in order, and when each returned."""

    requests: dict[Request, None]
    times_s: list[float]


class Dispatcher:
    """Carries out the coordinator's actions: sends passes, processes returned passes, keeps tokens.

    Parameters
    ----------
    control_plane
        The control plane of the run.
    recorder
        Records the requests of the run.
    transport, membership
        The coordinator's sockets, and the workers to which they lead.
    links
        The coordinator's outgoing links, by number of the target node.
    events
        Log of all passes.
    prompts
        Makes the prompts of requests of which only lengths are known.
    deadlines
        Finds passes that were lost, and requests that take too long.
    slack_s
        Up to this delay, events keep the times at which they were due. Seconds of the run.

    Attributes
    ----------
    lag_s
        The longest delay between a due time and its processing, in seconds of the run.
    num_output_tokens
        Number of output tokens so far.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        recorder: LiveRecorder,
        transport: Transport,
        membership: Membership,
        links: dict[int, OutgoingLink],
        events: Events,
        prompts: PromptMaker,
        deadlines: Deadlines,
        slack_s: float,
    ) -> None:
        self._topology = control_plane.topology
        self._policy = control_plane.policy
        self._coordinator = control_plane.coordinator
        self._loops = control_plane.decodes_loop
        self._transport = transport
        self._membership = membership
        self._links = links
        self._events = events
        self._prompts = prompts
        self._deadlines = deadlines
        self._slack_s = slack_s
        self._last_numbers: dict[int, int] = {}
        self._numbers = count()
        self._pending_arrivals: list[tuple[float, float, int, Request]] = []
        self._returning: list[
            tuple[float, int, Sequence[int], Sequence[int], Mapping[int, Scores]]
        ] = []
        self._next_key = 1
        self._attempts: dict[int, Attempt] = {}
        self._attempt_of: dict[Request, Attempt] = {}
        self._generations: dict[int, Generation] = {}
        self._to_drop: dict[int, list[int]] = {}
        self._last_s = 0.0
        self.lag_s = 0.0
        self.num_output_tokens = 0
        recorder.on_end = self._on_end
        recorder.can_wait = self._can_wait
        self._handle(RunStarted(), 0.0)

    def _handle(self, event: Event, now: float) -> None:
        """Report an event to the coordinator and carry out the actions that it returns."""
        self._carry_out(self._coordinator.handle(event, now))

    def _carry_out(self, actions: Actions) -> None:
        for request in (*actions.dropped, *actions.ended):
            if (attempt := self._attempt_of.get(request)) is not None:
                self._end_attempt(attempt)
        if actions.dropped or actions.admitted:
            # Workers free these blocks before the passes of admitted requests allocate them.
            self.send_drops()
        for request, created_s in actions.arrivals:
            heappush(
                self._pending_arrivals,
                (request.arrival_s, created_s, next(self._numbers), request),
            )
        for request in actions.admitted:
            if request not in actions.dropped:  # to make room for others
                self._start_attempt(request)
        self._send(actions.send, actions.ready_s)

    @property
    def next_key(self) -> int:
        """The key of the next attempt."""
        return self._next_key

    # -- arrivals ----------------------------------------------------------------------------

    def submit(self, request: Request, generation: Generation, now: float) -> None:
        """Report the arrival of a request whose prompt tokens are known."""
        self._generations[request.index] = generation
        self._handle(RequestArrived(request), now)

    def cancel(self, index: int, now: float) -> None:
        """Cancel a request; its listener is not called any more."""
        generation = self._generations.get(index)
        if generation is None:
            return
        generation.listener = None
        for request in (*self._coordinator.active, *self._coordinator.waiting):
            if request.index == index:
                self._handle(RequestCancelled(request), now)
                return

    def fail_all(self, reason: str) -> None:
        """Report a failure to the listeners of all requests that have not ended."""
        for generation in self._generations.values():
            if generation.listener is not None:
                generation.listener(Failed(reason))
        self._generations.clear()

    # -- time --------------------------------------------------------------------------------

    @property
    def expects_arrivals(self) -> bool:
        """Whether arrivals are pending."""
        return bool(self._pending_arrivals)

    def next_due_s(self) -> float:
        """Time of the next pending arrival or returning pass; infinite if there is none."""
        due = self._pending_arrivals[0][0] if self._pending_arrivals else inf
        return min(due, self._returning[0][0]) if self._returning else due

    def process(self, now: float) -> None:
        """Process all arrivals and returned passes that are due, in order of their due times."""
        while (due := self.next_due_s()) <= now:
            self.lag_s = max(self.lag_s, now - due)
            at = self._last_s = max(due, now - self._slack_s, self._last_s)
            if self._pending_arrivals and self._pending_arrivals[0][0] <= due:
                self._handle(RequestArrived(heappop(self._pending_arrivals)[3]), at)
            else:
                next_arrival_s = self._pending_arrivals[0][0] if self._pending_arrivals else now
                self._process_done(min(now, next_arrival_s), at)
        self.send_drops()

    def passes_done(self, done: messages.Done, now: float) -> None:
        """Queue passes that have left the last layer, to be processed when they are due.

        Where decodes loop, a message that was lost would leave a hole in answers: the requests of
        the node begin anew.
        """
        if done.number:
            expected = self._last_numbers.get(done.sender, 0) + 1
            self._last_numbers[done.sender] = done.number
            if done.number != expected:
                self._restart_through(done.sender, now)
        if len(done.due_s) < 2:
            due = done.due_s[0] if done.due_s else now
            heappush(
                self._returning, (due, next(self._numbers), done.keys, done.tokens, done.scores)
            )
            return
        for due, key, token in zip(done.due_s, done.keys, done.tokens, strict=True):
            heappush(self._returning, (due, next(self._numbers), (key,), (token,), done.scores))

    def _process_done(self, until: float, floor: float) -> None:
        """Process the returned passes that are due at `until`, at times not before `floor`."""
        returned = _Returned({}, [])
        while self._returning and self._returning[0][0] <= until:
            due, _, keys, tokens, scores = heappop(self._returning)
            floor = self._last_s = max(floor, due)
            for key, token in zip(keys, tokens, strict=True):
                attempt = self._attempts.get(key)
                if attempt is not None and attempt.request in returned.requests:
                    # A request is named once in an event.
                    returned = self._report(returned)
                    attempt = self._attempts.get(key)
                if attempt is None:
                    continue  # a pass of an attempt that has ended
                request = attempt.request
                self._events.pass_returned(request, floor)
                self._deadlines.returned(attempt, floor)
                if not request.is_prefill or request.is_last_chunk:
                    self._append_token(attempt, token, scores.get(key), floor)
                returned.requests[request] = None
                returned.times_s.append(floor)
        self._report(returned)

    def _report(self, returned: _Returned) -> _Returned:
        """Report passes that have returned; what is to be reported then: nothing yet."""
        requests, times = list(returned.requests), returned.times_s
        if not requests:
            return returned
        if not self._loops:
            self._handle(PassesReturned(requests, times), times[-1])
            return _Returned({}, [])
        for request in requests:
            # The decode that the token begins is in progress.
            request.num_computed_tokens += request.num_new_tokens
            request.num_new_tokens = 1
            request.num_generated_tokens += 1
            request.is_prefill = False
        self._handle(TokensReturned(requests, times), times[-1])
        for request, at in zip(requests, times, strict=True):
            if request in self._attempt_of:
                self._events.pass_sent(request, at)
        return _Returned({}, [])

    def _append_token(
        self, attempt: Attempt, token: int, scores: Scores | None, now: float
    ) -> None:
        """Append the next token to an answer; a stop token ends the answer."""
        generation = attempt.generation
        if token in generation.stop_tokens:
            generation.stopped = True
            self._handle(AnswerStopped(attempt.request), now)
            return
        is_first = len(generation.tokens) == generation.prompt_tokens
        generation.tokens.append(max(token, 0))
        self.num_output_tokens += 1
        if generation.listener is not None:
            request = attempt.request
            queued_s = request.first_dispatch_s - request.arrival_s if is_first else 0.0
            generation.listener(Token(token, queued_s, scores))

    def _on_end(self, request: Request, how: Finished | Failed | Refused | None) -> None:
        """Report the end of a request to its listener."""
        self._events.request_ended(request.index)
        generation = self._generations.pop(request.index, None)
        if generation is None or generation.listener is None or how is None:
            return
        if isinstance(how, Finished) and generation.stopped:
            how = Finished("stop")
        generation.listener(how)

    def _can_wait(self) -> bool:
        """Whether KV capacity will become free: requests hold some, or nodes are down."""
        return bool(self._coordinator.active or self._membership.absent)

    # -- sending -----------------------------------------------------------------------------

    def _send(self, requests: Sequence[Request], ready_s: Sequence[float]) -> None:
        """Send the next pass of each request, in one message for each entry node."""
        groups: dict[int, list[tuple[Attempt, Request, float]]] = {}
        for request, at in zip(requests, ready_s, strict=True):
            attempt = self._attempt_of[request.origin]
            attempt.progress_s = at
            self._events.pass_sent(request, at)
            groups.setdefault(attempt.first, []).append((attempt, request, at))
        for first, group in groups.items():
            self._send_to(first, group)

    def _start_attempt(self, request: Request) -> None:
        """Begin an attempt of an admitted request: set its key, its route and its prompt."""
        generation = self._generations.get(request.index)
        if generation is None:
            prompt = self._prompts(request.index, request.prompt_tokens)
            generation = self._generations[request.index] = Generation(prompt, len(prompt))
        attempt = Attempt(request, self._next_key, generation)
        self._next_key += 1
        route = complete_route(self._policy, self._topology, request)
        attempt.route = [
            messages.Stage(stage.node, stage.start_layer, stage.end_layer) for stage in route.stages
        ]
        if self._loops:
            request.split_prefill(None)  # nodes split it
        self._attempts[attempt.key] = self._attempt_of[request] = attempt
        self._events.route_assigned(request)

    def _send_to(self, first: int, group: list[tuple[Attempt, Request, float]]) -> None:
        passes: list[messages.Pass] = []
        token_ids: list[int] = []
        due_s: list[float] = []
        link = self._links[first]
        for attempt, request, at in group:
            sent, tokens = attempt.whole() if self._loops else attempt.pass_of(request)
            passes.append(sent)
            token_ids += tokens
            arrivals_s = link.arrival_times(at, [sent.num_tokens])
            if arrivals_s and sent.is_prefill:
                arrivals_s = [link.in_order(sent.key, arrivals_s[0], is_followed=sent.is_streamed)]
            due_s += arrivals_s
        frame = struct.pack(f"<{len(token_ids)}i", *token_ids)
        work = messages.Work(self._topology.coordinator, 0, group[0][2], passes, due_s, 1)
        self._transport.send(self._membership.workers[first].name, work, [frame])

    # -- disruptions -------------------------------------------------------------------------

    def node_lost(self, node: int, now: float) -> None:
        """Report the loss of a node: the coordinator restarts the requests that need it."""
        self._handle(NodeLost(node), now)

    def node_recovered(self, node: int, now: float) -> None:
        """Report that a node is available again."""
        self._handle(NodeRecovered(node), now)

    def links_cut(self, cut: frozenset[tuple[int, int]], now: float) -> None:
        """Report the connections between nodes that do not work now, (source, target)."""
        avoided = links_to_avoid(self._topology, self._coordinator.down, cut)
        if avoided != self._coordinator.cut:
            self._handle(LinksCut(avoided), now)

    def worker_joined(self, node: int) -> None:
        """Take note that a new worker of a node counts its messages from 1."""
        self._last_numbers.pop(node, None)

    def _restart_through(self, node: int, now: float) -> None:
        """Begin all requests anew whose tokens come from a node: a message of it was lost."""
        logger.warning("a message of %s was lost", self._membership.name_of(node))
        for attempt in list(self._attempts.values()):
            if attempt.route[-1].node == node:
                self._handle(RequestStalled(attempt.request), now)

    def excuse(self, paused_s: float, now: float) -> None:
        """Do not count this time, in seconds of the run, up to now: this process was paused."""
        for attempt in self._attempts.values():
            attempt.progress_s = min(attempt.progress_s + paused_s, now)

    def check_deadlines(self, now: float) -> None:
        """Begin requests anew whose pass was lost; let requests fail that take too long."""
        deadlines = self._deadlines
        if not deadlines.is_due(now):
            return
        for attempt in deadlines.overdue(list(self._attempts.values()), now):
            where = " -> ".join(self._membership.name_of(stage.node) for stage in attempt.route)
            late_s = now - attempt.progress_s
            logger.warning("a request got no answer from %s for %.0f s", where, late_s)
            if deadlines.give_up(attempt):
                reason = f"no answer from {where} for {late_s:.0f} s"
                self._handle(RequestFailed(attempt.request, reason), now)
            else:
                self._handle(RequestStalled(attempt.request), now)
        coordinator = self._coordinator
        for request in deadlines.too_late([*coordinator.active, *coordinator.waiting], now):
            reason = f"the answer took longer than {deadlines.request_s:g} s (--request-timeout)"
            self._handle(RequestFailed(request, reason), now)

    def requests_preempted(self, keys: Iterable[int], now: float) -> None:
        """Report requests that a worker preempted: the coordinator restarts them."""
        for key in keys:
            if (attempt := self._attempts.get(key)) is not None:
                self._handle(RequestPreempted(attempt.request), now)

    def requests_failed(self, keys: Iterable[int], reason: str, now: float) -> None:
        """Report requests that a worker cannot continue: they fail."""
        for key in keys:
            if (attempt := self._attempts.get(key)) is not None:
                self._handle(RequestFailed(attempt.request, reason), now)

    def _end_attempt(self, attempt: Attempt) -> None:
        del self._attempts[attempt.key], self._attempt_of[attempt.request]
        for place in attempt.route:
            self._to_drop.setdefault(place.node, []).append(attempt.key)

    def send_drops(self) -> None:
        """Send workers the keys of ended attempts, whose KV blocks they release."""
        for node, keys in self._to_drop.items():
            self._transport.send(self._membership.workers[node].name, messages.Drop(keys))
        self._to_drop.clear()

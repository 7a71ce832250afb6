"""The passes of a cluster's requests: sent, on their way, back, and what is heard of them."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf

from helixreal.coordinator.attempts import Attempt, Conversation, PromptMaker
from helixreal.coordinator.events import EventLog
from helixreal.coordinator.membership import Roster
from helixreal.coordinator.routing import complete_route
from helixreal.net import messages as wire
from helixreal.net.outgoing_link import OutgoingLink
from helixreal.net.transport import Transport
from helixreal.serving.frontend import Failed, Finished, Refused, Token
from helixsim.control.control_plane import ControlPlane
from helixsim.control.coordinator import Disruption
from helixsim.control.routing.policy import Rejection
from helixsim.metrics.recorder import RunRecorder
from helixsim.requests import Request

logger = logging.getLogger(__name__)

_WHY = {
    Rejection.FLOW: "no route leads on for this request",
    Rejection.LENGTH: "the prompt and its answer are longer than the nodes on any route take",
    Rejection.KV: "the cluster is full",
    Rejection.NODES: "no route leads through all layers without the nodes that are down",
}
_FOR_NOW = (Rejection.KV, Rejection.NODES)


class LiveRecorder(RunRecorder):
    """Records, and lets those know who wait for an end."""

    def __init__(
        self,
        window_start_s: float,
        window_end_s: float,
        node_names: tuple[str, ...],
        *,
        keep_iterations: bool,
    ) -> None:
        super().__init__(window_start_s, window_end_s, node_names, keep_iterations=keep_iterations)
        self.on_end: Callable[[Request, Finished | Failed | Refused | None], None] = _ignore
        self.retry_after_s: Callable[[], float] = lambda: 1.0

    def rejected(self, request: Request, reason: Rejection) -> None:
        """It has been turned away."""
        super().rejected(request, reason)
        retry_after_s = self.retry_after_s() if reason in _FOR_NOW else None
        self.on_end(request, Refused(_WHY[reason], retry_after_s))

    def ended(self, request: Request, now: float) -> None:
        """Its last pass has come back."""
        super().ended(request, now)
        self.on_end(request, Finished("length"))

    def failed(self, request: Request, reason: str, now: float) -> None:
        """It cannot be served to its end."""
        super().failed(request, reason, now)
        self.on_end(request, Failed(reason))

    def cancelled(self, request: Request, now: float) -> None:
        """Nobody wants it any more."""
        super().cancelled(request, now)
        self.on_end(request, None)


def _ignore(request: Request, how: object) -> None:
    """Nobody waits."""


class Traffic:
    """Sends requests' passes, takes them back, and keeps their tokens.

    Parameters
    ----------
    control_plane
        What decides; its recorder is a :class:`LiveRecorder`.
    transport, roster
        The coordinator's sockets, and who is at their other ends.
    links
        The coordinator's links to nodes, by their number.
    prompts
        Makes the prompts of requests of which only lengths are known.
    slack_s
        By so much, in time of the run, may the coordinator be late without that being billed.

    Attributes
    ----------
    lag_s
        The longest that it was late, in time of the run.
    num_output_tokens
        Tokens of answers so far.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        transport: Transport,
        roster: Roster,
        links: dict[int, OutgoingLink],
        events: EventLog,
        prompts: PromptMaker,
        slack_s: float,
    ) -> None:
        self._topology = control_plane.topology
        self._policy = control_plane.policy
        self._coordinator = control_plane.coordinator
        self._transport = transport
        self._roster = roster
        self._links = links
        self._events = events
        self._prompts = prompts
        self._slack_s = slack_s
        self._numbers = count()
        self._pending_arrivals: list[tuple[float, int, Request]] = []
        self._returning: list[tuple[float, int, int, int]] = []
        self._later = iter(self._coordinator.later())
        self._followed: Request | None = None
        self._keys = count(1)
        self._attempts: dict[int, Attempt] = {}
        self._attempt_of: dict[Request, Attempt] = {}
        self._conversations: dict[int, Conversation] = {}
        self._to_drop: dict[int, list[int]] = {}
        self._last_s = 0.0
        self.lag_s = 0.0
        self.num_output_tokens = 0
        assert isinstance(control_plane.recorder, LiveRecorder)
        control_plane.recorder.on_end = self._on_end
        for request in self._coordinator.opening():
            self._add_arrival(request)
        self._follow_on()

    # -- arrivals ----------------------------------------------------------------------------

    def converse(self, request: Request, conversation: Conversation, now: float) -> None:
        """Let a request with tokens of its own arrive now."""
        self._conversations[request.index] = conversation
        self._arrive(request, now)

    def cancel(self, index: int, now: float) -> None:
        """Nobody wants the answer to that request any more."""
        conversation = self._conversations.get(index)
        if conversation is None:
            return
        conversation.listener = None
        for request in (*self._coordinator.active, *self._coordinator.waiting):
            if request.index == index:
                self._send(self._coordinator.cancel(request, now), now)
                self._take_created()
                return

    def fail_all(self, reason: str) -> None:
        """Tell everybody who still listens that no answer will come."""
        for conversation in self._conversations.values():
            if conversation.listener is not None:
                conversation.listener(Failed(reason))
        self._conversations.clear()

    def _add_arrival(self, request: Request) -> None:
        heappush(self._pending_arrivals, (request.arrival_s, next(self._numbers), request))

    def _follow_on(self) -> None:
        """Put the next of those on the agenda that come at times of their own."""
        self._followed = next(self._later, None)
        if self._followed is not None:
            self._add_arrival(self._followed)

    def _take_created(self) -> None:
        for request, _ in self._coordinator.created:
            self._add_arrival(request)
        self._coordinator.created.clear()

    def _arrive(self, request: Request, now: float) -> None:
        if self._coordinator.arrive(request, now):
            self._send([request], now)
        self._take_created()

    # -- time --------------------------------------------------------------------------------

    @property
    def expects_arrivals(self) -> bool:
        """Whether some request is still to come."""
        return bool(self._pending_arrivals)

    def next_due_s(self) -> float:
        """When something is to be done, as far as that is known."""
        due = self._pending_arrivals[0][0] if self._pending_arrivals else inf
        return min(due, self._returning[0][0]) if self._returning else due

    def process(self, now: float) -> None:
        """Do everything that is due by now, in order."""
        while (due := self.next_due_s()) <= now:
            self.lag_s = max(self.lag_s, now - due)
            at = self._last_s = max(due, now - self._slack_s, self._last_s)
            if self._pending_arrivals and self._pending_arrivals[0][0] <= due:
                request = heappop(self._pending_arrivals)[2]
                if request is self._followed:
                    self._follow_on()
                self._arrive(request, at)
            else:
                next_arrival_s = self._pending_arrivals[0][0] if self._pending_arrivals else now
                self._take_back(min(now, next_arrival_s), at)
        self.send_drops()

    def back(self, done: wire.Done, now: float) -> None:
        """Take note of passes that are through the last layer."""
        for place, (key, token) in enumerate(zip(done.keys, done.tokens, strict=True)):
            due = done.due_s[place] if done.due_s else now
            heappush(self._returning, (due, next(self._numbers), key, token))

    def _take_back(self, until: float, floor: float) -> None:
        """Take back everything that is due by then."""
        requests: list[Request] = []
        times: list[float] = []
        while self._returning and self._returning[0][0] <= until:
            due, _, key, token = heappop(self._returning)
            attempt = self._attempts.get(key)
            if attempt is None:
                continue  # of an attempt that is over
            floor = self._last_s = max(floor, due)
            request = attempt.request
            self._events.back(request, floor)
            if not request.is_prefill or request.is_last_chunk:
                self._hear(attempt, token)
            requests.append(request)
            times.append(floor)
        if requests:
            again, ready = self._coordinator.returned(requests, times)
            self._send(again, ready)
            self._take_created()

    def _hear(self, attempt: Attempt, token: int) -> None:
        """Take the next token of an answer; a stop token ends it."""
        conversation = attempt.conversation
        if token in conversation.stop_tokens:
            conversation.stopped = True
            attempt.request.last_iteration = attempt.request.iteration
            return
        conversation.tokens.append(max(token, 0))
        self.num_output_tokens += 1
        if conversation.listener is not None:
            conversation.listener(Token(token))

    def _on_end(self, request: Request, how: Finished | Failed | Refused | None) -> None:
        """A request has come to its end, whichever."""
        conversation = self._conversations.pop(request.index, None)
        attempt = self._attempt_of.get(request)
        if attempt is not None:
            self._forget(attempt)
        if conversation is None or conversation.listener is None or how is None:
            return
        if isinstance(how, Finished) and conversation.stopped:
            how = Finished("stop")
        conversation.listener(how)

    # -- sending -----------------------------------------------------------------------------

    def _send(self, requests: Sequence[Request], ready: float | Sequence[float]) -> None:
        """Send each on its next pass; one message for each node that they enter."""
        self._coordinator.admitted.clear()  # whoever has no attempt yet is readied below
        groups: dict[int, list[tuple[Attempt, float]]] = {}
        for place, request in enumerate(requests):
            attempt = self._attempt_of.get(request) or self._begin(request)
            at = ready if isinstance(ready, float) else ready[place]
            self._events.out(request, at)
            groups.setdefault(attempt.first, []).append((attempt, at))
        for first, group in groups.items():
            self._send_to(first, group)

    def _begin(self, request: Request) -> Attempt:
        """Ready a request that was admitted: its route, its key, its prompt."""
        conversation = self._conversations.get(request.index)
        if conversation is None:
            prompt = self._prompts(request.index, request.prompt_tokens)
            conversation = self._conversations[request.index] = Conversation(prompt, len(prompt))
        attempt = Attempt(request, next(self._keys), conversation)
        members = self._roster.members
        route = complete_route(
            self._policy, self._topology, request, lambda node: members[node].num_waiting
        )
        attempt.route = [
            wire.Place(stage.node, stage.start_layer, stage.end_layer) for stage in route.stages
        ]
        self._attempts[attempt.key] = self._attempt_of[request] = attempt
        self._events.took(request)
        return attempt

    def _send_to(self, first: int, group: list[tuple[Attempt, float]]) -> None:
        passes: list[wire.Pass] = []
        token_ids: list[int] = []
        due_s: list[float] = []
        link = self._links[first]
        for attempt, at in group:
            sent, tokens = attempt.next_pass()
            passes.append(sent)
            token_ids += tokens
            due_s += link.carry(at, [sent.num_tokens])
        frame = struct.pack(f"<{len(token_ids)}i", *token_ids)
        work = wire.Work(self._topology.coordinator, 0, group[0][1], passes, due_s, 1)
        self._transport.send(self._roster.members[first].name, work, [frame])

    # -- what goes wrong ---------------------------------------------------------------------

    def lost(self, node: int, now: float) -> None:
        """A node is gone: begin all again that need it."""
        self._disrupt(self._coordinator.node_lost(node, now), now)

    def found(self, node: int, now: float) -> None:
        """A node is back."""
        self._send(self._coordinator.node_back(node, now), now)
        self._take_created()

    def no_room(self, keys: Iterable[int], now: float) -> None:
        """A worker has no KV blocks left for these: they begin again when there is room."""
        for key in keys:
            if (attempt := self._attempts.get(key)) is not None:
                self._disrupt(self._coordinator.preempt(attempt.request, now), now)

    def fail(self, keys: Iterable[int], reason: str, now: float) -> None:
        """A worker cannot go on with these."""
        for key in keys:
            if (attempt := self._attempts.get(key)) is not None:
                self._send(self._coordinator.fail(attempt.request, reason, now), now)
                self._take_created()

    def _disrupt(self, disruption: Disruption, now: float) -> None:
        for request in disruption.abandoned:
            if (attempt := self._attempt_of.get(request)) is not None:
                self._forget(attempt)
        self.send_drops()  # before their next attempts take the room
        self._send(disruption.restarted, now)
        self._take_created()

    def _forget(self, attempt: Attempt) -> None:
        del self._attempts[attempt.key], self._attempt_of[attempt.request]
        for place in attempt.route:
            self._to_drop.setdefault(place.node, []).append(attempt.key)

    def send_drops(self) -> None:
        """Tell workers which requests they can forget."""
        for node, keys in self._to_drop.items():
            self._transport.send(self._roster.members[node].name, wire.Drop(keys))
        self._to_drop.clear()

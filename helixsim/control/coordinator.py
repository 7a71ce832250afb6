"""The life of a request, as the coordinator decides it.

Events go in with their time; what is to be done comes out. No clock, no network: the simulator
and the real cluster carry out the same instructions.

A request is created by the feeder, arrives, and is admitted, has to wait, or is turned away. Its
prefill leaves and comes back, in one or several chunks; then, one at a time, its decodes; then it
has ended.

When a node is lost, what it knew of requests is gone. Each of them is abandoned and a new attempt,
another :class:`~helixsim.requests.Request` of the same index, takes its place: it prefills all
tokens known so far and goes on from there. Whatever comes back of an abandoned attempt is ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from helixsim.control.load import Arrival, LoadGenerator
from helixsim.control.routing.policy import Policy, Rejection
from helixsim.placement.flow import Flow
from helixsim.requests import Request


class Recorder(Protocol):
    """Is told what has happened, for the results of the run."""

    def arrived(self, request: Request) -> None:
        """A request has reached the coordinator."""
        ...

    def rejected(self, request: Request, reason: Rejection) -> None:
        """It has been turned away."""
        ...

    def prompt_ended(self, request: Request, now: float) -> None:
        """Its prefill has come back."""
        ...

    def decodes_ended(self, requests: Sequence[Request], times: Sequence[float]) -> None:
        """Decodes have come back at these times; each `iteration` is still that pass."""
        ...

    def ended(self, request: Request, now: float) -> None:
        """Its last pass has come back."""
        ...

    def failed(self, request: Request, reason: str, now: float) -> None:
        """It had been admitted, but cannot be served to its end."""
        ...

    def cancelled(self, request: Request, now: float) -> None:
        """Its user does not want it any more."""
        ...


class Admission(Enum):
    """What becomes of a request that arrives; true if it is to be sent."""

    ADMITTED = "admitted"
    WAITING = "waiting"
    REJECTED = "rejected"

    def __bool__(self) -> bool:
        """Whether it has been admitted."""
        return self is Admission.ADMITTED


@dataclass(frozen=True, slots=True)
class Disruption:
    """What follows from the loss of a node, or of what a node knew of a request.

    Attributes
    ----------
    abandoned
        Attempts that are over: nodes may drop what they have of them.
    restarted
        Requests that are to be sent now, to be readied like those just admitted: new attempts,
        and requests that have waited.
    ended
        Requests that have ended by it: new attempts that cannot be, and requests that have
        waited and find no way any more.
    """

    abandoned: list[Request]
    restarted: list[Request]
    ended: list[Request]


class ContextBound:
    """The most tokens that any request admitted so far may come to hold."""

    __slots__ = ("longest",)

    def __init__(self) -> None:
        self.longest = 0


class Coordinator:
    """Decides what becomes of requests.

    Parameters
    ----------
    policy
        Finds routes.
    load_generator
        Sends requests.
    recorder
        Is told what happens.
    passes_beyond_answer
        Decodes that a request runs beyond what its answer needs after the prefill's token. The
        published simulator runs one.
    node_names
        For what is said of requests that fail.
    reflow
        The flow without some nodes, None if no route is left. Without it, none ever is.
    prefill_chunk_tokens
        The most tokens of a prefill that leave at once; the next leave when these are back. None
        for whole prefills.
    max_waiting
        How many requests may wait for KV caches to have room, instead of being turned away.

    Attributes
    ----------
    created
        Requests that have been created, whose time has yet to come, and when they were created;
        whoever carries requests around takes them from here.
    active
        Requests that have been admitted and have not ended.
    waiting
        Requests that wait for room in the KV caches, in order. Attempts that are to begin again
        wait before all others, however many there are. Nobody waits where nobody is active.
    admitted
        Those among what :meth:`returned` has handed out that had waited: whoever carries requests
        around readies them like those just admitted, and takes them from here.
    down
        Nodes that are lost.
    num_restarts
        How many attempts after the first have been sent.
    contexts
        Bound on how long contexts get.
    """

    def __init__(
        self,
        policy: Policy,
        load_generator: LoadGenerator,
        recorder: Recorder,
        passes_beyond_answer: int,
        *,
        node_names: Sequence[str] = (),
        reflow: Callable[[frozenset[int]], Flow | None] = lambda down: None,
        prefill_chunk_tokens: int | None = None,
        max_waiting: int = 0,
    ) -> None:
        self._policy = policy
        self._load_generator = load_generator
        self._recorder = recorder
        self._passes_beyond_answer = passes_beyond_answer
        self._node_names = node_names
        self._reflow = reflow
        self._chunk_tokens = prefill_chunk_tokens
        self._max_waiting = max_waiting
        self._num_created = 0
        self._has_route = True
        self._last_lost = ""
        self._num_owed = 0
        self.created: list[tuple[Request, float]] = []
        self.active: dict[Request, None] = {}
        self.waiting: deque[Request] = deque()
        self.admitted: list[Request] = []
        self.down: frozenset[int] = frozenset()
        self.num_restarts = 0
        self.contexts = ContextBound()

    @property
    def has_route(self) -> bool:
        """Whether some route leads through all layers now."""
        return self._has_route

    # -- arrivals ------------------------------------------------------------------------------

    def opening(self) -> list[Request]:
        """Create the requests that are there when the run begins."""
        return [self.create(arrival) for arrival in self._load_generator.opening()]

    def later(self) -> Iterator[Request]:
        """Create, one when the one before has arrived, those that come at times of their own."""
        for arrival in self._load_generator.later():
            yield self.create(arrival)

    def create(self, arrival: Arrival) -> Request:
        """Create a request that is to arrive."""
        request = Request(
            self._num_created,
            arrival.at_s,
            arrival.prompt_tokens,
            arrival.output_tokens,
            last_iteration=arrival.output_tokens - 1 + self._passes_beyond_answer,
            chunk_tokens=self._chunk_tokens,
        )
        self._num_created += 1
        return request

    def arrive(self, request: Request, now: float) -> Admission:
        """Admit a request, ready to be sent, let it wait, or turn it away."""
        self._recorder.arrived(request)
        if self.waiting and self._max_waiting:
            reason: Rejection | None = Rejection.KV  # who came before goes first
        else:
            reason = self._admit(request, now)
        if reason is None:
            return Admission.ADMITTED
        if reason is Rejection.KV and self.active and self._num_new_waiting < self._max_waiting:
            self.waiting.append(request)
            return Admission.WAITING
        self._reject(request, reason)
        return Admission.REJECTED

    # -- passes --------------------------------------------------------------------------------

    def returned(
        self, requests: list[Request], times: list[float]
    ) -> tuple[list[Request], list[float]]:
        """Take passes back that returned at these times, in order.

        Returns
        -------
        tuple of list
            The requests that are to be sent at once, and when: the same again, with their next
            chunk or pass, and those that had waited till one ended, see `admitted`.
        """
        if all(
            request.iteration < request.last_iteration and not request.is_prefill
            for request in requests
        ):
            # Decodes that are followed by decodes: nothing to decide, and most of all passes.
            self._recorder.decodes_ended(requests, times)
            for request, now in zip(requests, times, strict=True):
                request.context_tokens += 1
                request.iteration += 1
                request.dispatched_s = now
            self._policy.decodes_dispatched(requests)
            return requests, times
        again: list[Request] = []
        ready: list[float] = []
        for request, now in zip(requests, times, strict=True):
            for one in self._returned_one(request, now):
                again.append(one)
                ready.append(now)
        return again, ready

    def _returned_one(self, request: Request, now: float) -> Sequence[Request]:
        """Take one pass back; what is to be sent now."""
        if request not in self.active:
            return ()  # of an attempt that is over
        if request.is_prefill and not request.is_last_chunk:
            request.next_chunk()
            return (request,)
        iteration = request.iteration
        if iteration:
            self._recorder.decodes_ended((request,), (now,))
        else:
            self._recorder.prompt_ended(request, now)
            request.first_token_s = now
        if iteration == request.last_iteration:
            return self._end(request, now)
        request.context_tokens += request.step_tokens
        request.step_tokens = 1
        request.is_prefill = False
        request.iteration = iteration + 1
        request.dispatched_s = now
        self._policy.decodes_dispatched((request,))
        if not iteration:
            share = self._policy.bottleneck_share()
            self._generate(self._load_generator.after_prompt(now, share, request.index), now)
        return (request,)

    def _end(self, request: Request, now: float) -> list[Request]:
        self._policy.finished(request)
        del self.active[request]
        self._recorder.ended(request, now)
        sent, _ = self._serve_waiting(now)
        self.admitted += sent
        self._generate_after_end(now, request.index)
        return sent

    # -- what goes wrong -----------------------------------------------------------------------

    def node_lost(self, node: int, now: float) -> Disruption:
        """Do without a node: begin all requests again that need it, or let them fail."""
        if node in self.down:
            return Disruption([], [], [])
        self.down |= {node}
        self._last_lost = self._node_names[node]
        self._follow()
        abandoned = [request for request in self.active if self._is_cut_off(request)]
        # All give their room back before the first of them asks for some.
        attempts = [self._abandon(request) for request in abandoned]
        self.waiting.extendleft(reversed(attempts))
        return Disruption(abandoned, *self._serve_waiting(now))

    def node_back(self, node: int, now: float) -> list[Request]:
        """Use a node again, which remembers nothing; who had waited and is to be sent now."""
        if node not in self.down:
            return []
        self.down -= {node}
        self._follow()
        sent, _ = self._serve_waiting(now)
        if self._has_route:
            # A closed loop goes on with those that were turned away for want of a route.
            owed, self._num_owed = self._num_owed, 0
            for _ in range(owed):
                self._generate_after_end(now, None)
        return sent

    def preempt(self, request: Request, now: float) -> Disruption:
        """Take a request out because a node has no room for it, to be begun again.

        That there is room by expectation has just been shown to be wrong, so it waits, before
        all others, until a request has ended; if none is active, it is sent at once.
        """
        if request not in self.active:
            return Disruption([], [], [])
        self.waiting.appendleft(self._abandon(request))
        if self.active:
            return Disruption([request], [], [])
        return Disruption([request], *self._serve_waiting(now))

    def cancel(self, request: Request, now: float) -> list[Request]:
        """End a request whose user has left; who had waited and is to be sent now.

        A request that has ended already, or an attempt that is over, is left as it is.
        """
        if not self._take_out(request):
            return []
        self._recorder.cancelled(request, now)
        return self._go_on_without(request, now)

    def fail(self, request: Request, reason: str, now: float) -> list[Request]:
        """End a request that a node cannot go on with; who had waited and is to be sent now."""
        if not self._take_out(request):
            return []
        self._recorder.failed(request, reason, now)
        return self._go_on_without(request, now)

    def _take_out(self, request: Request) -> bool:
        """Take a request out of wherever it is; False if it has ended already."""
        if request in self.active:
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return False
        return True

    def _go_on_without(self, request: Request, now: float) -> list[Request]:
        sent, _ = self._serve_waiting(now)
        self._generate_after_end(now, request.index)
        return sent

    def _follow(self) -> None:
        flow = self._reflow(self.down)
        self._has_route = flow is not None
        if flow is not None:
            self._policy.follow(flow, self.down)

    def _is_cut_off(self, request: Request) -> bool:
        assert request.route is not None
        return (
            not self._has_route
            or any(stage.node in self.down for stage in request.route.stages)
            or self._policy.is_stranded(request)
        )

    def _abandon(self, request: Request) -> Request:
        """Let an attempt be over, and make the next."""
        attempt = request.begun_again(self._chunk_tokens)
        self._release(request)
        return attempt

    def _release(self, request: Request) -> None:
        self._policy.finished(request)
        del self.active[request]
        request.give_up()

    def _fail(self, request: Request, now: float) -> None:
        reason = f"{self._last_lost} was lost" if self.down else "no room to begin it again"
        self._recorder.failed(request, reason, now)
        self._generate_after_end(now, request.index)

    # -- admission -----------------------------------------------------------------------------

    @property
    def _num_new_waiting(self) -> int:
        return sum(not request.attempt for request in self.waiting)

    def _admit(self, request: Request, now: float) -> Rejection | None:
        if not self._has_route:
            return Rejection.NODES
        reason = self._policy.admit(request)
        if reason is Rejection.LENGTH and request.prefill_tokens > request.prompt_tokens:
            # With its answer so far it is longer than a batch may be; its prompt was not.
            request.split_prefill(min(request.prompt_tokens, request.chunk_tokens))
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

    def _reject(self, request: Request, reason: Rejection) -> None:
        if reason is Rejection.NODES:
            self._num_owed += 1
        self._recorder.rejected(request, reason)

    def _serve_waiting(self, now: float) -> tuple[list[Request], list[Request]]:
        """Admit those who wait, in order, while there is room; who is to be sent, who has ended."""
        sent: list[Request] = []
        ended: list[Request] = []
        while self.waiting:
            request = self.waiting[0]
            reason = self._admit(request, now)
            if reason is Rejection.KV and self.active:
                break
            self.waiting.popleft()
            if reason is None:
                sent.append(request)
                continue
            ended.append(request)
            if request.attempt:
                self._fail(request, now)
            else:
                self._reject(request, reason)
        return sent, ended

    # -- feeding -------------------------------------------------------------------------------

    def _generate_after_end(self, now: float, index: int | None) -> None:
        share = self._policy.bottleneck_share()
        self._generate(self._load_generator.after_end(now, share, index), now)

    def _generate(self, arrival: Arrival | None, now: float) -> None:
        if arrival is not None:
            self.created.append((self.create(arrival), now))

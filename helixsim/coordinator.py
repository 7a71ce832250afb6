"""The life of a request, as the coordinator decides it.

Events go in with their time; what is to be done comes out. No clock, no network: the simulator
and the real cluster carry out the same instructions.

A request is created by the feeder, arrives, and is admitted or turned away. Its prefill leaves
and comes back; then, one at a time, its decodes; then it has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from helixsim.feeders import Arrival, Feeder
from helixsim.requests import Request
from helixsim.scheduling.policy import Policy, Rejection


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
    feeder
        Sends requests.
    recorder
        Is told what happens.
    passes_beyond_answer
        Decodes that a request runs beyond what its answer needs after the prefill's token. The
        published simulator runs one.

    Attributes
    ----------
    created
        Requests that have been created, whose time has yet to come, and when they were created;
        whoever carries requests around takes them from here.
    active
        Requests that have been admitted and have not ended.
    contexts
        Bound on how long contexts get.
    """

    def __init__(
        self, policy: Policy, feeder: Feeder, recorder: Recorder, passes_beyond_answer: int
    ) -> None:
        self._policy = policy
        self._feeder = feeder
        self._recorder = recorder
        self._passes_beyond_answer = passes_beyond_answer
        self._num_created = 0
        self.created: list[tuple[Request, float]] = []
        self.active: dict[Request, None] = {}
        self.contexts = ContextBound()

    def opening(self) -> list[Request]:
        """Create the requests that are there when the run begins."""
        return [self._create(arrival) for arrival in self._feeder.opening()]

    def later(self) -> Iterator[Request]:
        """Create, one when the one before has arrived, those that come at times of their own."""
        for arrival in self._feeder.later():
            yield self._create(arrival)

    def arrive(self, request: Request, now: float) -> bool:
        """Admit a request, ready to be sent, or turn it away."""
        self._recorder.arrived(request)
        reason = self._policy.admit(request)
        if reason is not None:
            self._recorder.rejected(request, reason)
            return False
        request.first_dispatch_s = request.dispatched_s = now
        self.active[request] = None
        longest = request.prompt_tokens + request.last_iteration
        self.contexts.longest = max(self.contexts.longest, longest)
        return True

    def returned(
        self, requests: list[Request], times: list[float]
    ) -> tuple[list[Request], list[float]]:
        """Take passes back that returned at these times, in order.

        Returns
        -------
        tuple of list
            The requests that are to be sent again at once, on their next pass, and when.
        """
        if all(0 < request.iteration < request.last_iteration for request in requests):
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
            if self._returned_one(request, now):
                again.append(request)
                ready.append(now)
        return again, ready

    def _returned_one(self, request: Request, now: float) -> bool:
        """Take one pass back; whether the request is to be sent again."""
        iteration = request.iteration
        if iteration:
            self._recorder.decodes_ended((request,), (now,))
        else:
            self._recorder.prompt_ended(request, now)
            request.first_token_s = now
        if iteration == request.last_iteration:
            self._end(request, now)
            return False
        if iteration:
            request.context_tokens += 1
        else:
            request.context_tokens = request.prompt_tokens
            request.step_tokens = 1
        request.iteration = iteration + 1
        request.dispatched_s = now
        self._policy.decodes_dispatched((request,))
        if not iteration:
            self._feed(self._feeder.after_prompt(now, self._policy.bottleneck_share()), now)
        return True

    def _end(self, request: Request, now: float) -> None:
        self._policy.finished(request)
        del self.active[request]
        self._recorder.ended(request, now)
        self._feed(self._feeder.after_end(now, self._policy.bottleneck_share()), now)

    def _feed(self, arrival: Arrival | None, now: float) -> None:
        if arrival is not None:
            self.created.append((self._create(arrival), now))

    def _create(self, arrival: Arrival) -> Request:
        request = Request(
            self._num_created,
            arrival.at_s,
            arrival.prompt_tokens,
            arrival.output_tokens,
            last_iteration=arrival.output_tokens - 1 + self._passes_beyond_answer,
        )
        self._num_created += 1
        return request

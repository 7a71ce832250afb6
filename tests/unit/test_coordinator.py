"""The life of a request, event by event."""

from __future__ import annotations

import pytest

from helixsim.control.coordinator import Coordinator
from helixsim.control.load import Arrival
from helixsim.control.routing.policy import Rejection


class Noting:
    """Policy, feeder and recorder in one, that note all calls and do as they are told."""

    def __init__(self, opening=(), later=(), after_prompt=None, after_end=None, reason=None):
        self.log = []
        self._opening, self._later = list(opening), list(later)
        self._after_prompt, self._after_end = after_prompt, after_end
        self.reason = reason

    # policy
    def admit(self, request):
        self.log.append(("admit", request.index))
        return self.reason

    def decodes_dispatched(self, requests):
        for request in requests:
            self.log.append(("decode dispatched", request.index, request.iteration))

    def finished(self, request):
        self.log.append(("finished", request.index))

    def bottleneck_share(self):
        return 0.25

    # feeder
    def opening(self):
        return iter(self._opening)

    def later(self):
        return iter(self._later)

    def after_prompt(self, now, share, index):
        self.log.append(("after prompt", now, share))
        return self._after_prompt

    def after_end(self, now, share, index):
        self.log.append(("after end", now, share))
        return self._after_end

    # recorder
    def arrived(self, request):
        self.log.append(("arrived", request.index))

    def rejected(self, request, reason):
        self.log.append(("rejected", request.index, reason))

    def prompt_ended(self, request, now):
        self.log.append(("pass ended", request.index, request.iteration, now))

    def decodes_ended(self, requests, times):
        for request, now in zip(requests, times, strict=True):
            self.log.append(("pass ended", request.index, request.iteration, now))

    def ended(self, request, now):
        self.log.append(("ended", request.index, now))


def coordinator_of(noting, passes_beyond_answer=1):
    return Coordinator(noting, noting, noting, passes_beyond_answer)  # type: ignore[arg-type]


def goes_on(coordinator, request, now):
    """Let one pass return; whether its request is sent again, which it is at once."""
    again, ready = coordinator.returned([request], [now])
    assert (again, ready) in (([request], [now]), ([], []))
    return bool(again)


def test_a_request_from_arrival_to_end():
    noting = Noting(opening=[Arrival(2.0, 10, 2)])
    coordinator = coordinator_of(noting)
    (request,) = coordinator.opening()
    assert (request.index, request.arrival_s, request.last_iteration) == (0, 2.0, 2)

    assert coordinator.arrive(request, 2.0)
    assert list(coordinator.active) == [request]
    assert (request.dispatched_s, request.first_dispatch_s) == (2.0, 2.0)
    assert (request.iteration, request.step_tokens, request.context_tokens) == (0, 10, 0)

    assert goes_on(coordinator, request, 3.0)
    assert (request.iteration, request.step_tokens, request.context_tokens) == (1, 1, 10)
    assert (request.dispatched_s, request.first_token_s) == (3.0, 3.0)

    assert goes_on(coordinator, request, 5.0)
    assert (request.iteration, request.step_tokens, request.context_tokens) == (2, 1, 11)

    assert not goes_on(coordinator, request, 6.0)
    assert (request.first_dispatch_s, request.first_token_s) == (2.0, 3.0)
    assert coordinator.active == {}
    assert noting.log == [
        ("arrived", 0),
        ("admit", 0),
        ("pass ended", 0, 0, 3.0),
        ("decode dispatched", 0, 1),
        ("after prompt", 3.0, 0.25),
        ("pass ended", 0, 1, 5.0),
        ("decode dispatched", 0, 2),
        ("pass ended", 0, 2, 6.0),
        ("finished", 0),  # its KV cache is free before the feeder asks how full caches are
        ("ended", 0, 6.0),
        ("after end", 6.0, 0.25),
    ]


@pytest.mark.parametrize(("beyond", "passes"), [(0, 1), (1, 2), (3, 4)])
def test_how_many_passes_an_answer_of_one_token_takes(beyond, passes):
    noting = Noting(opening=[Arrival(0.0, 10, 1)])
    coordinator = coordinator_of(noting, beyond)
    (request,) = coordinator.opening()
    coordinator.arrive(request, 0.0)
    count = 1
    while goes_on(coordinator, request, float(count)):
        count += 1
    assert count == passes
    assert request.first_token_s == 1.0
    # With nothing but the prefill, there is an end but no prompt after which decodes come.
    assert [entry[0] for entry in noting.log].count("after prompt") == (1 if beyond else 0)


def test_a_rejected_request_is_gone():
    noting = Noting(opening=[Arrival(0.0, 10, 1)], reason=Rejection.KV)
    coordinator = coordinator_of(noting)
    (request,) = coordinator.opening()
    assert not coordinator.arrive(request, 0.0)
    assert coordinator.active == {}
    assert coordinator.contexts.longest == 0
    assert noting.log == [("arrived", 0), ("admit", 0), ("rejected", 0, Rejection.KV)]


def test_requests_are_numbered_in_order_of_creation():
    noting = Noting(
        opening=[Arrival(0.0, 10, 1), Arrival(0.1, 10, 1)],
        later=[Arrival(5.0, 10, 1)],
        after_prompt=Arrival(1.1, 20, 1),
        after_end=Arrival(2.1, 30, 1),
    )
    coordinator = coordinator_of(noting)
    first, second = coordinator.opening()
    later = coordinator.later()
    coordinator.arrive(first, 0.0)
    goes_on(coordinator, first, 1.0)
    assert [(r.index, r.arrival_s, r.prompt_tokens, at) for r, at in coordinator.created] == [
        (2, 1.1, 20, 1.0)
    ]
    goes_on(coordinator, first, 2.0)
    assert [(r.index, at) for r, at in coordinator.created] == [(2, 1.0), (3, 2.0)]
    assert second.index == 1
    assert next(later).index == 4  # created when it is asked for
    assert next(later, None) is None


def test_the_longest_context_that_may_come():
    noting = Noting(opening=[Arrival(0, 10, 5), Arrival(0, 12, 2), Arrival(0, 8, 1)])
    coordinator = coordinator_of(noting)
    longest = []
    for request in coordinator.opening():
        coordinator.arrive(request, 0.0)
        longest.append(coordinator.contexts.longest)
    assert longest == [15, 15, 15]


def test_a_train_of_decodes_is_taken_back_as_one_by_one():
    def served(together):
        noting = Noting(opening=[Arrival(0.0, 10, 5), Arrival(0.0, 20, 5), Arrival(0.0, 30, 1)])
        coordinator = coordinator_of(noting)
        requests = coordinator.opening()
        for request in requests:
            coordinator.arrive(request, 0.0)
        sent = []
        for start in (1.0, 2.0, 3.0, 4.0):
            times = [start, start + 0.1, start + 0.2][: len(requests)]
            if together:
                again, ready = coordinator.returned(requests, times)
            else:
                again, ready = [], []
                for request, now in zip(requests, times, strict=True):
                    one, at = coordinator.returned([request], [now])
                    again += one
                    ready += at
            sent += [(r.index, r.iteration, r.context_tokens) for r in again]
            sent += ready
            requests = again
        return sent, sorted(noting.log, key=str)

    assert served(together=True) == served(together=False)

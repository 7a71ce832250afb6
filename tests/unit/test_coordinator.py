"""The life of a request, event by event."""

from __future__ import annotations

import pytest
from builders import make_inputs, make_scenario
from checked_coordinator import CheckedCoordinator

from helixsim.control.actions import (
    Actions,
    AnswerStopped,
    RequestCancelled,
    RequestFailed,
    RequestPreempted,
    ScheduledArrival,
    no_actions,
)
from helixsim.control.load import Arrival
from helixsim.control.routing.maxflow import MaxFlowPolicy
from helixsim.control.routing.policy import Rejection
from helixsim.requests import Request, SharedPrefix


class Noting:
    """Policy, load generator and recorder in one, that note all calls and do as they are told."""

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
            self.log.append(("decode dispatched", request.index, request.num_output_tokens))

    def finished(self, request):
        self.log.append(("finished", request.index))

    def bottleneck_share(self):
        return 0.25

    def validate(self, active):
        pass

    # load generator
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
        self.log.append(("pass ended", request.index, request.num_output_tokens, now))

    def decodes_ended(self, requests, times):
        for request, now in zip(requests, times, strict=True):
            self.log.append(("pass ended", request.index, request.num_output_tokens, now))

    def ended(self, request, now):
        self.log.append(("ended", request.index, now))

    def failed(self, request, reason, now):
        self.log.append(("failed", request.index, reason, now))

    def cancelled(self, request, now):
        self.log.append(("cancelled", request.index, now))


def coordinator_of(noting, passes_beyond_answer=1, policy=None):
    return CheckedCoordinator(policy or noting, noting, noting, passes_beyond_answer)


def counters(request):
    return request.num_output_tokens, request.num_new_tokens, request.num_computed_tokens


def goes_on(coordinator, request, now):
    """Let one pass return; whether its request is sent again, which it is at once."""
    actions = coordinator.returned([request], [now])
    assert (actions.send, actions.ready_s) in (([request], [now]), ([], []))
    assert (actions.ended, actions.dropped, actions.admitted) == (
        [] if actions.send else [request],
        [],
        [],
    )
    return bool(actions.send)


def test_a_request_knows_what_it_shares_and_its_priority():
    shared = SharedPrefix((1,), 16)
    request = coordinator_of(Noting()).create(Arrival(2.0, 20, 2, shared, 3))
    assert (request.prefix, request.priority) == (shared, 3)
    again = request.restarted(None)
    assert (again.prefix, again.priority) == (shared, 3)


def test_blocks_are_known_by_key_and_place():
    request = Request(5, 0.0, 40, 20, num_decodes=20)
    assert request.block_key(0, 16) == (5, 0, None)
    request.prefix = SharedPrefix(("a", "b"), 16)
    assert [request.block_key(n, 16) for n in range(3)] == [("a", 0), ("b", 1), (5, 2, None)]
    # A key of 512 tokens stands for 32 blocks; the last one of a prompt of 40 tokens for fewer.
    request.prefix = SharedPrefix(("a",), 512, 40)
    assert [request.block_key(n, 16) for n in range(3)] == [("a", 0), ("a", 1), (5, 2, None)]
    # Blocks that are larger than those of the keys are known by the last key in them.
    request.prefix = SharedPrefix(("a", "b", "c"), 16)
    assert [request.block_key(n, 32) for n in range(2)] == [("b", 0), (5, 1, None)]


def test_a_request_from_arrival_to_end():
    noting = Noting(opening=[Arrival(2.0, 10, 2)])
    coordinator = coordinator_of(noting)
    (request,) = coordinator.start()
    assert (request.index, request.arrival_s, request.num_decodes) == (0, 2.0, 2)

    actions = coordinator.arrive(request, 2.0)
    assert actions == Actions([request], [2.0], [request], [], [], [])
    assert list(coordinator.active) == [request]
    assert (request.dispatched_s, request.first_dispatch_s) == (2.0, 2.0)
    assert counters(request) == (
        0,
        10,
        0,
    )

    assert goes_on(coordinator, request, 3.0)
    assert counters(request) == (
        1,
        1,
        10,
    )
    assert (request.dispatched_s, request.first_token_s) == (3.0, 3.0)

    assert goes_on(coordinator, request, 5.0)
    assert counters(request) == (
        2,
        1,
        11,
    )

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
        (
            "finished",
            0,
        ),  # its KV cache is free before the share is asked for
        ("ended", 0, 6.0),
        ("after end", 6.0, 0.25),
    ]


@pytest.mark.parametrize(("beyond", "passes"), [(0, 1), (1, 2), (3, 4)])
def test_how_many_passes_an_answer_of_one_token_takes(beyond, passes):
    noting = Noting(opening=[Arrival(0.0, 10, 1)])
    coordinator = coordinator_of(noting, beyond)
    (request,) = coordinator.start()
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
    (request,) = coordinator.start()
    assert coordinator.arrive(request, 0.0) == no_actions()
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
    first, second, later = coordinator.start()
    assert [request.index for request in (first, second, later)] == [0, 1, 2]
    coordinator.arrive(first, 0.0)

    def arrivals(now):
        scheduled = coordinator.returned([first], [now]).arrivals
        return [(r.index, r.arrival_s, r.prompt_tokens, at) for r, at in scheduled]

    assert arrivals(1.0) == [(3, 1.1, 20, 1.0)]
    assert arrivals(2.0) == [(4, 2.1, 30, 2.0)]


def test_the_next_request_of_an_open_loop_is_created_when_the_one_before_arrives():
    noting = Noting(opening=[Arrival(0.0, 10, 1)], later=[Arrival(5.0, 10, 1), Arrival(6.0, 20, 1)])
    coordinator = coordinator_of(noting)
    opening, second = coordinator.start()
    assert coordinator.arrive(opening, 0.0).arrivals == []
    (scheduled,) = coordinator.arrive(second, 5.0).arrivals
    third = scheduled.request
    # As if all had been created before the run began: earlier than anything of the same instant.
    assert scheduled == ScheduledArrival(third, 0.0)
    assert (third.index, third.arrival_s, third.prompt_tokens) == (2, 6.0, 20)
    assert coordinator.arrive(third, 6.0).arrivals == []


def test_the_longest_context_that_may_come():
    noting = Noting(opening=[Arrival(0, 10, 5), Arrival(0, 12, 2), Arrival(0, 8, 1)])
    coordinator = coordinator_of(noting)
    longest = []
    for request in coordinator.start():
        coordinator.arrive(request, 0.0)
        longest.append(coordinator.contexts.longest)
    assert longest == [15, 15, 15]


def test_decodes_that_return_together_are_taken_back_as_one_by_one():
    def served(together):
        noting = Noting(opening=[Arrival(0.0, 10, 5), Arrival(0.0, 20, 5), Arrival(0.0, 30, 1)])
        coordinator = coordinator_of(noting)
        requests = coordinator.start()
        for request in requests:
            coordinator.arrive(request, 0.0)
        sent = []
        for start in (1.0, 2.0, 3.0, 4.0):
            times = [start, start + 0.1, start + 0.2][: len(requests)]
            if together:
                again, ready, *_ = coordinator.returned(requests, times)
            else:
                again, ready = [], []
                for request, now in zip(requests, times, strict=True):
                    one, at, *_ = coordinator.returned([request], [now])
                    again += one
                    ready += at
            sent += [(r.index, r.num_output_tokens, r.num_computed_tokens) for r in again]
            sent += ready
            requests = again
        return sent, sorted(noting.log, key=str)

    assert served(together=True) == served(together=False)


def test_decodes_followed_by_decodes_leave_again_as_they_returned():
    coordinator = coordinator_of(Noting(opening=[Arrival(0.0, 10, 5), Arrival(0.0, 20, 5)]))
    requests, times = coordinator.start(), [1.0, 1.5]
    for request in requests:
        coordinator.arrive(request, 0.0)
    coordinator.returned(requests, [0.5, 0.75])
    actions = coordinator.returned(requests, times)
    assert actions == Actions(requests, times, [], [], [], [])
    assert actions.send is requests


def test_a_stop_token_makes_a_pass_the_last():
    noting = Noting(opening=[Arrival(0.0, 10, 9)])
    coordinator = coordinator_of(noting)
    (request,) = coordinator.start()
    coordinator.arrive(request, 0.0)
    assert goes_on(coordinator, request, 1.0)
    assert coordinator.handle(AnswerStopped(request), 1.9) == no_actions()
    assert not goes_on(coordinator, request, 2.0)
    assert noting.log[-4:] == [
        ("pass ended", 0, 1, 2.0),
        ("finished", 0),
        ("ended", 0, 2.0),
        ("after end", 2.0, 0.25),
    ]


def test_a_request_that_a_node_cannot_run_has_failed():
    noting = Noting(opening=[Arrival(0.0, 10, 9)], after_end=Arrival(1.6, 20, 1))
    coordinator = coordinator_of(noting)
    (request,) = coordinator.start()
    coordinator.arrive(request, 0.0)
    goes_on(coordinator, request, 1.0)
    actions = coordinator.handle(RequestFailed(request, "too long"), 1.5)
    assert (actions.dropped, actions.ended, actions.send) == ([request], [], [])
    assert [(r.index, r.arrival_s, at) for r, at in actions.arrivals] == [(1, 1.6, 1.5)]
    assert coordinator.active == {}
    assert noting.log[-3:] == [
        ("finished", 0),
        ("failed", 0, "too long", 1.5),
        ("after end", 1.5, 0.25),
    ]


@pytest.mark.parametrize(
    "event",
    [AnswerStopped, RequestPreempted, RequestCancelled, lambda r: RequestFailed(r, "why")],
    ids=["stopped", "preempted", "cancelled", "failed"],
)
def test_events_about_a_request_that_has_ended_change_nothing(event):
    noting = Noting(opening=[Arrival(0.0, 10, 1)])
    coordinator = coordinator_of(noting, passes_beyond_answer=0)
    (request,) = coordinator.start()
    coordinator.arrive(request, 0.0)
    goes_on(coordinator, request, 1.0)
    before = list(noting.log)
    assert coordinator.handle(event(request), 2.0) == no_actions()
    assert noting.log == before


# -- invariants: what validate() says of a state that was corrupted by hand


@pytest.fixture
def running():
    """A coordinator under max-flow with two requests: one active in its decodes, one waiting."""
    inputs = make_inputs(make_scenario({"a": (0, 1)}, requests=[(0, 1, 1)]))
    noting = Noting(opening=[Arrival(0.0, 10, 9), Arrival(0.0, 20, 9)])
    coordinator = coordinator_of(noting, policy=MaxFlowPolicy(inputs))
    first, second = coordinator.start()
    for request in (first, second):
        coordinator.arrive(request, 0.0)
    coordinator.returned([first], [1.0])
    coordinator.preempt(second, 1.5)
    assert list(coordinator.active) == [first]
    assert [request.index for request in coordinator.waiting] == [1]
    coordinator.validate()
    return coordinator


def test_an_active_request_that_waits_too_is_in_two_places(running):
    (active,) = running.active
    running.waiting.append(active)
    with pytest.raises(AssertionError, match="one-place: a request is active and waiting"):
        running.validate()


def test_a_request_that_is_gone_is_in_no_place(running):
    running.waiting.clear()
    with pytest.raises(AssertionError, match="one-place: 2 created, 2 arrived, 1 inside, 0 ended"):
        running.validate()


def test_a_token_that_is_made_is_not_conserved(running):
    (active,) = running.active
    active.num_output_tokens += 1
    with pytest.raises(AssertionError, match="tokens-conserved: 1 returned, 0 of ended"):
        running.validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [(1, "tokens-conserved: request 0 runs ahead"), (-1, "request 0 lacks tokens")],
)
def test_a_context_is_prompt_and_answer_so_far(running, change, message):
    (active,) = running.active
    active.num_computed_tokens += change
    with pytest.raises(AssertionError, match=message):
        running.validate()


def test_the_kv_of_a_request_that_was_lost_is_not_conserved(running):
    (active,) = running.active
    running._policy.finished(active)
    with pytest.raises(AssertionError, match="kv-conserved: booked and active differ"):
        running.validate()


def test_kv_that_no_request_was_booked_for_is_not_conserved(running):
    running._policy._kv.expected_tokens[0] += 1
    with pytest.raises(AssertionError, match="kv-conserved: counts are not the sum of bookings"):
        running.validate()


def test_requests_that_wait_for_none_make_no_progress(running):
    (active,) = running.active
    running._policy.finished(active)
    del running.active[active]
    running.waiting.append(active)
    with pytest.raises(AssertionError, match="progress: requests wait and none is active"):
        running.validate()

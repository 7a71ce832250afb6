"""Chunks, waiting, lost nodes, preemption, cancelling: the coordinator's part, event by event."""

from __future__ import annotations

import pytest
from checked_coordinator import CheckedCoordinator

from helixsim.control.actions import no_actions
from helixsim.control.load import Arrival
from helixsim.control.routing.policy import Rejection
from helixsim.placement.flow import Flow
from helixsim.requests import Route, Stage

FLOW = Flow(1.0, (), ())
ADMITTED, WAITING, REJECTED = "admitted", "waiting", "rejected"


class World:
    """Policy, load generator and recorder: two whole nodes in turns, while there is room."""

    def __init__(self, room=100, most=100, *, fed=False):
        self.log = []
        self.room, self.most, self.fed = room, most, fed
        self.taken = {}
        self.down = frozenset()
        self.stranded = []

    # policy
    def admit(self, request):
        if request.num_new_tokens > self.most:
            return Rejection.LENGTH
        if sum(self.taken.values()) + request.num_tokens > self.room:
            return Rejection.KV
        self.taken[request] = request.num_tokens
        up = [node for node in (0, 1) if node not in self.down]
        request.route = Route([Stage(up[request.index % len(up)], 0, 1)])
        return None

    def reroute(self, flow, down, cut=frozenset()):
        self.log.append(("reroute", *sorted(down)))
        self.down = down

    def is_stranded(self, request):
        return request in self.stranded

    def decodes_dispatched(self, requests):
        pass

    def finished(self, request):
        del self.taken[request]

    def bottleneck_share(self):
        return None

    def validate(self, active):
        assert self.taken.keys() == set(active), "kv-conserved"

    # load generator
    def after_prompt(self, now, share, index):
        return None

    def after_end(self, now, share, index):
        return Arrival(now + 1, 10, 2) if self.fed else None

    # recorder
    def arrived(self, request):
        self.log.append(("arrived", request.index))

    def rejected(self, request, reason):
        self.log.append(("rejected", request.index, reason.value))

    def prompt_ended(self, request, now):
        self.log.append(("token", request.index, 0, request.dispatched_s, now))

    def decodes_ended(self, requests, times):
        for request, now in zip(requests, times, strict=True):
            self.log.append(
                ("token", request.index, request.num_output_tokens, request.dispatched_s, now)
            )

    def ended(self, request, now):
        self.log.append(("ended", request.index, now))

    def failed(self, request, reason, now):
        self.log.append(("failed", request.index, reason, now))

    def cancelled(self, request, now):
        self.log.append(("cancelled", request.index, now))


def make(world, **settings):
    def reflow(down, cut):
        return None if len(down) == 2 else FLOW

    settings = {"node_names": ("a", "b"), "reflow": reflow} | settings
    return CheckedCoordinator(world, world, world, 0, **settings)


def arrive(coordinator, prompt_tokens=10, output_tokens=3, at=0.0):
    """Let a request arrive; it, and where it is then."""
    request = coordinator.create(Arrival(at, prompt_tokens, output_tokens))
    actions = coordinator.arrive(request, at)
    assert (actions.send, actions.admitted) in (([request], [request]), ([], []))
    if request in coordinator.waiting:
        return request, WAITING
    return request, ADMITTED if actions.send else REJECTED


def back(coordinator, request, now):
    """Let the pass of a request return; the requests to be sent."""
    actions = coordinator.returned([request], [now])
    assert actions.ready_s == [now] * len(actions.send)
    return actions.send


def outcome(actions):
    """Attempts that are over, requests that are sent, and requests that have ended."""
    return actions.dropped, actions.send, actions.ended


def state(request):
    return (
        request.attempt,
        request.num_output_tokens,
        request.is_prefill,
        request.num_new_tokens,
        request.num_computed_tokens,
    )


# -- chunks


def test_a_prefill_goes_in_chunks():
    world = World(most=4)
    coordinator = make(world, prefill_chunk_tokens=4)
    request, _ = arrive(coordinator, 10, 2)
    seen = [state(request)[2:]]
    for now in (1.0, 2.0, 3.0, 4.0):
        back(coordinator, request, now)
        seen.append(state(request)[2:])
    assert seen[:4] == [(True, 4, 0), (True, 4, 4), (True, 2, 8), (False, 1, 10)]
    assert world.log == [
        ("arrived", 0),
        ("token", 0, 0, 0.0, 3.0),  # from when the first chunk left
        ("token", 0, 1, 3.0, 4.0),
        ("ended", 0, 4.0),
    ]


@pytest.mark.parametrize("prompt_tokens", [1, 4])
def test_a_short_prefill_is_one_chunk(prompt_tokens):
    coordinator = make(World(), prefill_chunk_tokens=4)
    request, _ = arrive(coordinator, prompt_tokens)
    assert request.is_last_chunk
    assert request.num_new_tokens == prompt_tokens


# -- waiting


def test_requests_wait_in_order_for_room():
    world = World(room=20)
    coordinator = make(world, max_waiting=2)
    first, there = arrive(coordinator, 10, 1)
    second, _ = arrive(coordinator, 10, 3)
    assert there is ADMITTED
    third, there = arrive(coordinator, 15, 1, at=0.5)
    assert there is WAITING
    fourth, there = arrive(coordinator, 1, 1, at=0.6)  # it would fit, but is not first
    assert there is WAITING
    _, there = arrive(coordinator, 1, 1, at=0.7)
    assert there is REJECTED
    assert back(coordinator, first, 1.0) == []  # 10 are free, the third needs 15
    assert list(coordinator.waiting) == [third, fourth]
    assert back(coordinator, second, 2.0) == [second]
    assert coordinator.returned([second], [3.0]).admitted == []
    actions = coordinator.returned([second], [4.0])
    assert (actions.send, actions.admitted) == ([third, fourth], [third, fourth])
    assert (actions.ready_s, actions.ended) == ([4.0, 4.0], [second])
    assert list(coordinator.active) == [third, fourth]
    assert (third.first_dispatch_s, third.dispatched_s, third.num_output_tokens) == (4.0, 4.0, 0)
    assert [entry for entry in world.log if entry[0] == "rejected"] == [("rejected", 4, "kv")]


def test_no_request_waits_for_room_that_cannot_come():
    world = World(room=20)
    coordinator = make(world, max_waiting=2)
    assert arrive(coordinator, 30)[1] is REJECTED  # no request is active whose end would help
    first, _ = arrive(coordinator, 10, 1)
    assert arrive(coordinator, 30)[1] is WAITING
    small, there = arrive(coordinator, 5)
    assert there is WAITING
    assert back(coordinator, first, 1.0) == [small]
    assert world.log[-2:] == [("ended", 1, 1.0), ("rejected", 2, "kv")]


# -- lost nodes


def test_a_request_begins_again_where_a_node_was_lost():
    world = World()
    coordinator = make(world)
    request, _ = arrive(coordinator, 10, 4)
    other, _ = arrive(coordinator, 10, 4)
    back(coordinator, request, 1.0)
    back(coordinator, request, 2.0)
    actions = coordinator.node_lost(0, 2.5)
    (attempt,) = actions.send
    assert (actions.dropped, actions.ended) == ([request], [])
    assert (actions.admitted, actions.ready_s) == ([attempt], [2.5])
    assert list(coordinator.active) == [other, attempt]
    assert coordinator.down == {0}
    assert attempt.index == request.index
    assert state(attempt) == (1, 2, True, 12, 0)
    assert (attempt.first_dispatch_s, attempt.first_token_s) == (0.0, 1.0)
    assert attempt.route.stages[0].node == 1
    assert back(coordinator, request, 2.6) == []  # what comes back of the old attempt
    assert back(coordinator, attempt, 5.0) == [attempt]
    assert state(attempt) == (1, 3, False, 1, 12)
    assert back(coordinator, attempt, 6.0) == []
    assert coordinator.num_restarts == 1
    assert world.log == [
        ("arrived", 0),
        ("arrived", 1),
        ("token", 0, 0, 0.0, 1.0),
        ("token", 0, 1, 1.0, 2.0),
        ("reroute", 0),
        ("token", 0, 2, 2.0, 5.0),  # the pass that was cut short, from its first leaving
        ("token", 0, 3, 5.0, 6.0),
        ("ended", 0, 6.0),
    ]


def test_what_is_told_twice_changes_nothing():
    coordinator = make(World())
    arrive(coordinator)
    assert len(coordinator.node_lost(0, 1.0).send) == 1
    assert coordinator.node_lost(0, 2.0) == no_actions()
    assert coordinator.node_recovered(0, 3.0) == no_actions()
    assert coordinator.node_recovered(0, 4.0) == no_actions()
    assert coordinator.down == frozenset()


def test_requests_fail_where_no_route_is_left():
    world = World(fed=True)
    coordinator = make(world)
    requests = [arrive(coordinator)[0] for _ in range(2)]
    coordinator.node_lost(0, 1.0)
    actions = coordinator.node_lost(1, 2.0)
    assert [request.index for request in actions.dropped] == [1, 0]
    assert requests[1] in actions.dropped
    assert actions.send == []
    assert not coordinator.active
    assert not coordinator.waiting
    assert not coordinator.has_route
    assert arrive(coordinator, at=2.5)[1] is REJECTED
    assert [(new.arrival_s, at) for new, at in actions.arrivals] == [(3.0, 2.0), (3.0, 2.0)]
    actions = coordinator.node_recovered(0, 5.0)
    assert actions.send == []
    assert coordinator.has_route
    assert [(new.arrival_s, at) for new, at in actions.arrivals] == [(6.0, 5.0)]
    assert arrive(coordinator, at=6.0)[1] is ADMITTED
    assert world.log[2:] == [
        ("reroute", 0),
        ("failed", 1, "b was lost", 2.0),
        ("failed", 0, "b was lost", 2.0),
        ("arrived", 4),
        ("rejected", 4, "nodes"),
        ("reroute", 1),
        ("arrived", 6),
    ]


def test_stranded_requests_begin_again():
    world = World()
    coordinator = make(world)
    _, other = (arrive(coordinator)[0] for _ in range(2))
    world.stranded.append(other)
    assert [request.index for request in coordinator.node_lost(0, 1.0).dropped] == [0, 1]


def test_new_attempts_wait_before_all_other_requests():
    world = World(room=20)
    coordinator = make(world, max_waiting=1)
    lost, _ = arrive(coordinator, 10, 2)
    other, _ = arrive(coordinator, 10, 1)
    waiting, _ = arrive(coordinator, 2, 1)
    back(coordinator, lost, 1.0)
    actions = coordinator.node_lost(0, 2.0)  # its 11 tokens do not fit beside the other
    assert outcome(actions) == ([lost], [], [])
    assert [(one.index, one.attempt) for one in coordinator.waiting] == [(0, 1), (2, 0)]
    assert coordinator.waiting[0].num_restarts == 0
    assert arrive(coordinator, 1)[1] is REJECTED
    actions = coordinator.returned([other], [3.0])
    assert [(one.index, one.num_restarts) for one in actions.send] == [(0, 1), (2, 0)]
    assert actions.send[1] is waiting
    assert actions.admitted == actions.send


def test_a_long_answer_is_prefilled_in_chunks_as_long_as_its_prompt():
    world = World(most=11)
    coordinator = make(world)
    request, _ = arrive(coordinator, 10, 9)
    for now in (1.0, 2.0, 3.0):
        back(coordinator, request, now)
    (attempt,) = coordinator.node_lost(0, 4.0).send
    assert state(attempt) == (1, 3, True, 10, 0)
    back(coordinator, attempt, 5.0)
    assert state(attempt) == (1, 3, True, 3, 10)
    back(coordinator, attempt, 6.0)
    assert state(attempt) == (1, 4, False, 1, 13)


# -- preemption and cancelling


def test_a_preempted_request_waits_for_an_end():
    coordinator = make(World())
    first, _ = arrive(coordinator, 10, 3)
    other, _ = arrive(coordinator, 10, 1)
    back(coordinator, first, 1.0)
    assert outcome(coordinator.preempt(first, 1.5)) == ([first], [], [])
    assert coordinator.preempt(first, 1.6) == no_actions()
    assert back(coordinator, first, 1.7) == []
    (attempt,) = back(coordinator, other, 2.0)
    assert state(attempt) == (1, 1, True, 11, 0)
    (last,) = coordinator.preempt(attempt, 3.0).send  # no active request is left to wait for
    assert state(last) == (2, 1, True, 11, 0)


def test_a_cancelled_request_makes_room():
    world = World(room=10)
    coordinator = make(world, max_waiting=2)
    first, _ = arrive(coordinator, 10, 2)
    second, _ = arrive(coordinator, 10, 1)
    third, _ = arrive(coordinator, 10, 1)
    assert outcome(coordinator.cancel(second, 0.5)) == ([], [], [])  # it had not been sent
    back(coordinator, first, 1.0)
    actions = coordinator.cancel(first, 1.5)
    assert outcome(actions) == ([first], [third], [])
    assert actions.admitted == [third]
    assert coordinator.cancel(first, 1.6) == no_actions()
    assert back(coordinator, first, 2.0) == []
    actions = coordinator.returned([third], [3.0])
    assert (actions.send, actions.admitted) == ([], [])
    assert world.log[3:] == [
        ("cancelled", 1, 0.5),
        ("token", 0, 0, 0.0, 1.0),
        ("cancelled", 0, 1.5),
        ("token", 2, 0, 1.5, 3.0),
        ("ended", 2, 3.0),
    ]


def test_a_pass_of_an_old_attempt_changes_nothing_for_requests_that_return_with_it():
    world = World()
    coordinator = make(world)
    lost, kept = (arrive(coordinator, 10, 9)[0] for _ in range(2))
    coordinator.returned([lost, kept], [1.0, 1.0])
    coordinator.node_lost(0, 1.5)
    actions = coordinator.returned([lost, kept], [2.0, 2.1])
    assert (actions.send, actions.ready_s) == ([kept], [2.1])
    assert [entry for entry in world.log if entry[0] == "token"][2:] == [("token", 1, 1, 1.0, 2.1)]

"""The dispatcher without sockets: every message that it sends, every token that listeners get."""

from __future__ import annotations

import struct
from array import array
from dataclasses import replace
from math import inf
from random import Random
from types import SimpleNamespace

import pytest
from builders import capacity, make_scenario, make_topology, offline

from helixreal.coordinator.attempts import Generation
from helixreal.coordinator.deadlines import Deadlines, TimeLimits
from helixreal.coordinator.dispatcher import Dispatcher
from helixreal.coordinator.events import EventLog
from helixreal.coordinator.live import NoLoad
from helixreal.coordinator.live_recorder import LiveRecorder
from helixreal.coordinator.worker_handle import WorkerHandle
from helixreal.engines.engine import Sampling
from helixreal.net import messages
from helixreal.net.outgoing_link import OutgoingLink
from helixreal.serving.frontend import Failed, Finished, Refused, Token
from helixsim.control.actions import Actions
from helixsim.control.control_plane import build_control_plane
from helixsim.control.load import Arrival
from helixsim.scenario.load_generator import build_load_generator
from helixsim.scenario.scheduler_settings import KvSettings

pytestmark = pytest.mark.usefixtures("checked_runs")

CHAIN = {"a": (0, 1), "b": (1, 2)}
TWO = {"a": (0, 1), "b": (0, 1)}


class NotingTransport:
    """Keeps every message that is sent, with the token ids of work."""

    def __init__(self):
        self.log = []

    def send(self, name, message, frames=()):
        if isinstance(message, messages.Drop):
            self.log.append((name, "drop", message.keys))
            return True
        assert isinstance(message, messages.Work)
        (frame,) = frames
        ids = list(struct.unpack(f"<{len(frame) // 4}i", frame))
        assert len(ids) == sum(each.num_tokens for each in message.passes)
        for each in message.passes:
            kind = "prefill" if each.is_prefill else "decode"
            own, ids = ids[: each.num_tokens], ids[each.num_tokens :]
            self.log.append((name, kind, each.key, each.position, own))
        self.last = message
        return True


class DispatcherUnderTest:
    """A dispatcher with a real control plane; `log` has what it has sent since it was last read."""

    def __init__(
        self,
        layers,
        *,
        load_generator=None,
        chunk=None,
        waiting=0,
        slack_s=0.0,
        node=None,
        streams=False,
        kv=KvSettings(),  # noqa: B008 a frozen value
        is_emulated=False,
        limits=TimeLimits(),  # noqa: B008 a frozen value
        **more,
    ):
        scenario = make_scenario(layers, **({"requests": [(0, 1, 1)]} | more))
        scheduler = replace(
            scenario.scheduler,
            prefill_chunk_tokens=chunk,
            max_waiting=waiting,
            node=node,
            stream_chunks=streams,
            kv=kv,
        )
        scenario = replace(scenario, scheduler=scheduler)
        topology, rng = make_topology(scenario), Random(0)
        names = tuple(node.name for node in topology.nodes)
        recorder = LiveRecorder(0.0, 1000.0, names, keep_iterations=False)
        recorder.retry_after_s = lambda: 2.5
        self.control_plane = build_control_plane(
            scenario,
            topology,
            load_generator=load_generator or build_load_generator(scenario, rng, 0.0),
            recorder=recorder,
            rng=rng,
            passes_beyond_answer=0,
        )
        self.coordinator = self.control_plane.coordinator
        self.transport = NotingTransport()
        self.links = {
            link.target: OutgoingLink(8.0, 0.5, 2.0, is_emulated=is_emulated)
            for link in topology.outgoing[topology.coordinator]
        }
        self.events = EventLog()
        self.workers = [WorkerHandle(node) for node in topology.nodes]
        self.dispatcher = Dispatcher(
            self.control_plane,
            recorder,
            self.transport,
            SimpleNamespace(workers=self.workers, name_of=lambda node: names[node], absent=[]),
            self.links,
            self.events,
            lambda number, num_tokens: array("i", [100 * number + i for i in range(num_tokens)]),
            Deadlines(limits, self.workers, 1.0),
            slack_s,
        )

    @property
    def log(self):
        """What was sent since the last look."""
        log, self.transport.log = self.transport.log, []
        return log

    def done(self, now, *passes, due_s=(), number=0):
        """The last nodes report passes as (key, token)."""
        keys, tokens = [key for key, _ in passes], [token for _, token in passes]
        self.dispatcher.passes_done(
            messages.Done(len(self.workers) - 1, keys, tokens, list(due_s), number), now
        )
        self.dispatcher.process(now)
        return self.log

    def submit(self, prompt, output_tokens, now=0.0, **settings):
        """A request with tokens of its own; the list in which its listener puts stream events."""
        told = []
        request = self.coordinator.create(Arrival(now, len(prompt), output_tokens))
        generation = Generation(array("i", prompt), len(prompt), listener=told.append, **settings)
        self.dispatcher.submit(request, generation, now)
        return request.index, told


def live(layers=CHAIN, **settings):
    return DispatcherUnderTest(layers, load_generator=NoLoad(), **settings)


# -- arrivals and passes


def test_requests_leave_at_their_arrival_times():
    under_test = DispatcherUnderTest(CHAIN, requests=[(1.0, 3, 2), (2.0, 2, 1)])
    dispatcher = under_test.dispatcher
    assert dispatcher.expects_arrivals
    assert dispatcher.next_due_s() == 1.0
    dispatcher.process(0.9)
    assert under_test.log == []
    dispatcher.process(1.0)
    assert under_test.log == [("a", "prefill", 1, 0, [0, 1, 2])]
    (sent,) = under_test.transport.last.passes
    assert sent.route == [messages.Stage(0, 0, 1), messages.Stage(1, 1, 2)]
    assert sent.wants_token
    assert sent.sampling_params is None
    work = under_test.transport.last
    assert (work.sender, work.entry_layer, work.sent_s, work.due_s) == (2, 0, 1.0, [])
    dispatcher.process(2.25)
    assert under_test.log == [("a", "prefill", 2, 0, [100, 101])]
    assert under_test.transport.last.sent_s == 2.25  # no slack: it was late
    assert dispatcher.lag_s == 0.25
    assert not dispatcher.expects_arrivals
    assert dispatcher.next_due_s() == inf


def test_lateness_within_the_slack_is_not_counted_in_the_times_of_the_run():
    under_test = DispatcherUnderTest(CHAIN, requests=[(1.0, 3, 2)], slack_s=0.5)
    under_test.dispatcher.process(1.25)
    assert under_test.transport.last.sent_s == 1.0
    assert under_test.dispatcher.lag_s == 0.25


def test_each_token_becomes_the_next_decode():
    under_test = live()
    _, told = under_test.submit([7, 8, 9], 3)
    assert under_test.log == [("a", "prefill", 1, 0, [7, 8, 9])]
    assert under_test.done(1.0, (1, 50)) == [("a", "decode", 1, 3, [50])]
    (sent,) = under_test.transport.last.passes
    assert (sent.route, sent.wants_token) == (None, True)
    assert under_test.done(2.0, (1, 51)) == [("a", "decode", 1, 4, [51])]
    assert told == [Token(50), Token(51)]
    # The end: nodes drop what they have of the request.
    assert under_test.done(3.0, (1, 52)) == [("a", "drop", [1]), ("b", "drop", [1])]
    assert told == [Token(50), Token(51), Token(52), Finished("length")]
    assert under_test.dispatcher.num_output_tokens == 3
    assert under_test.done(4.0, (1, 53)) == []  # of an attempt that is over
    link = under_test.links[0]
    assert (link.num_requests, link.num_bytes) == (3, 2.0 * (3 + 1 + 1))


def test_passes_are_taken_back_in_the_order_of_their_due_times():
    under_test = live()
    _, first = under_test.submit([1], 2)
    _, second = under_test.submit([2], 2)
    assert len(under_test.log) == 2
    assert under_test.done(1.0, (1, 10), (2, 20), due_s=[1.5, 1.25]) == []
    assert under_test.dispatcher.next_due_s() == 1.25
    under_test.dispatcher.process(1.25)
    assert under_test.log == [("a", "decode", 2, 1, [20])]
    assert (first, second) == ([], [Token(20)])
    under_test.dispatcher.process(1.5)
    assert under_test.log == [("a", "decode", 1, 1, [10])]
    times, *_ = under_test.events.table.values
    assert list(times) == [0.0, 0.0, 1.25, 1.25, 1.5, 1.5]


def test_passes_that_enter_one_node_share_a_message():
    under_test = live()
    for prompt in ([1], [2]):
        under_test.submit(prompt, 2)
    assert under_test.done(1.0, (2, 20), (1, 10)) == [
        ("a", "prefill", 1, 0, [1]),
        ("a", "prefill", 2, 0, [2]),
        ("a", "decode", 2, 1, [20]),
        ("a", "decode", 1, 1, [10]),
    ]
    assert [sent.key for sent in under_test.transport.last.passes] == [2, 1]


def test_a_prompt_is_prefilled_in_chunks():
    under_test = live(chunk=2)
    _, told = under_test.submit([1, 2, 3, 4, 5], 1, sampling=Sampling(temperature=0.5, seed=3))
    assert under_test.log == [("a", "prefill", 1, 0, [1, 2])]
    for number, now, expected in [
        (1, 1.0, ("a", "prefill", 1, 2, [3, 4])),
        (2, 2.0, ("a", "prefill", 1, 4, [5])),
    ]:
        (sent,) = under_test.transport.last.passes
        assert not sent.wants_token
        assert under_test.done(now, (1, -1)) == [expected], number
    (sent,) = under_test.transport.last.passes
    assert sent.wants_token
    assert sent.sampling_params == Sampling(temperature=0.5, seed=3, prompt_tokens=5)
    assert told == []  # chunks yield no tokens
    under_test.done(3.0, (1, 60))
    assert told == [Token(60), Finished("length")]


def test_a_prompt_leaves_as_a_stream_of_chunks():
    under_test = live(chunk=2, streams=True, is_emulated=True)
    _, told = under_test.submit([1, 2, 3, 4, 5, 6], 2)
    assert under_test.log == [
        ("a", "prefill", 1, 0, [1, 2]),
        ("a", "prefill", 1, 2, [3, 4]),
        ("a", "prefill", 1, 4, [5, 6]),
    ]
    work = under_test.transport.last
    assert [sent.is_streamed for sent in work.passes] == [True, True, False]
    assert [sent.wants_token for sent in work.passes] == [False, False, True]
    assert work.due_s == [1.0, 1.5, 2.0]
    # The last chunk comes back, and no other.
    assert under_test.done(3.0, (1, 60)) == [("a", "decode", 1, 6, [60])]
    (sent,) = under_test.transport.last.passes
    assert not sent.is_streamed
    assert told == [Token(60)]
    _, _, ways, phases, positions, _ = under_test.events.table.values
    assert list(zip(ways, phases, positions, strict=True)) == [
        ("out", "prompt", 0),
        ("out", "prompt", 2),
        ("out", "prompt", 4),
        ("in", "prompt", 4),
        ("out", "decode", 6),
    ]


# -- ends


def test_a_stop_token_ends_the_answer():
    under_test = live()
    _, told = under_test.submit([1, 2], 10, stop_tokens=frozenset({99}))
    under_test.done(1.0, (1, 50))
    assert under_test.done(2.0, (1, 99)) == [("a", "drop", [1]), ("b", "drop", [1])]
    assert told == [Token(50), Finished("stop")]
    assert under_test.dispatcher.num_output_tokens == 1


def test_a_stop_token_may_be_the_first():
    under_test = live()
    _, told = under_test.submit([1, 2], 10, stop_tokens=frozenset({99}))
    under_test.done(1.0, (1, 99))
    assert told == [Finished("stop")]
    assert not under_test.coordinator.active


def test_a_cancelled_request_is_dropped_at_its_nodes():
    under_test = live()
    index, told = under_test.submit([1, 2], 10)
    under_test.done(1.0, (1, 50))
    under_test.dispatcher.cancel(index, 1.5)
    assert under_test.log == [("a", "drop", [1]), ("b", "drop", [1])]
    assert under_test.done(2.0, (1, 51)) == []
    under_test.dispatcher.cancel(index, 2.5)
    under_test.dispatcher.cancel(77, 2.5)
    assert told == [Token(50)]
    assert under_test.log == []


def test_a_cancelled_request_makes_room_for_one_that_waits():
    under_test = live({"a": (0, 1)}, waiting=1, room=capacity(kv_token_layers=10))
    first, _ = under_test.submit([1, 2, 3], 1)
    _, second = under_test.submit([4, 5, 6], 1)
    _, third = under_test.submit([7, 8, 9], 1)
    assert under_test.log == [("a", "prefill", 1, 0, [1, 2, 3])]
    assert third == [Refused("the KV caches are full", 2.5)]
    under_test.dispatcher.cancel(first, 1.0)
    # The blocks of the first are free before the second takes them.
    assert under_test.log == [("a", "drop", [1]), ("a", "prefill", 2, 0, [4, 5, 6])]
    under_test.done(2.0, (2, 50))
    assert second == [Token(50, queued_s=1.0), Finished("length")]


def test_a_request_that_fits_nowhere_is_refused_for_good():
    under_test = live({"a": (0, 1)}, room=capacity(max_prompt_tokens=4))
    _, told = under_test.submit([1] * 5, 1)
    (refused,) = told
    assert isinstance(refused, Refused)
    assert "longer than" in refused.message
    assert refused.retry_after_s is None
    assert under_test.log == []


def test_a_request_larger_than_the_kv_caches_is_refused_for_good():
    under_test = live({"a": (0, 1)}, waiting=5, room=capacity(kv_token_layers=10))
    _, told = under_test.submit([1] * 20, 5)
    assert [(type(event), event.retry_after_s) for event in told] == [(Refused, None)]
    _, first = under_test.submit([1, 2, 3], 1)
    _, waits = under_test.submit([1] * 20, 5)
    assert (first, waits) == ([], [])
    under_test.done(1.0, (1, 50))
    assert [event.retry_after_s for event in waits] == [None]


def test_a_worker_fails_a_request():
    under_test = live()
    _, told = under_test.submit([1, 2], 10)
    under_test.dispatcher.requests_failed([1, 5], "a: a reason", 1.0)
    assert told == [Failed("a: a reason")]
    under_test.dispatcher.process(1.0)
    assert under_test.log[1:] == [("a", "drop", [1]), ("b", "drop", [1])]


def test_all_listeners_are_told_when_the_cluster_stops():
    under_test = live()
    _, told = under_test.submit([1, 2], 10)
    index, cancelled = under_test.submit([1, 2], 10)
    under_test.dispatcher.cancel(index, 0.5)
    under_test.dispatcher.fail_all("the cluster has stopped")
    under_test.dispatcher.fail_all("the cluster has stopped")
    assert told == [Failed("the cluster has stopped")]
    assert cancelled == []


# -- restarts


def test_a_preempted_request_is_restarted_with_its_tokens():
    under_test = live()
    _, told = under_test.submit([1, 2], 3)
    under_test.done(1.0, (1, 50))
    under_test.dispatcher.requests_preempted([1, 9], 1.5)
    # Nodes drop the first attempt before the second, under a new key, takes blocks.
    assert under_test.log == [
        ("a", "drop", [1]),
        ("b", "drop", [1]),
        ("a", "prefill", 2, 0, [1, 2, 50]),
    ]
    assert under_test.done(2.0, (1, 51)) == []  # of the attempt that is over
    assert under_test.done(3.0, (2, 51)) == [("a", "decode", 2, 3, [51])]
    under_test.done(4.0, (2, 52))
    assert told == [Token(50), Token(51), Token(52), Finished("length")]
    assert under_test.coordinator.num_restarts == 1


def test_the_coordinator_preempts_a_request_whose_pass_is_in_flight():
    under_test = live(
        {"a": (0, 1)},
        waiting=1,
        kv=KvSettings(admission="exact", high_water_mark=1.0),
        room=capacity(kv_token_layers=101),
    )
    (_, first), (_, second) = under_test.submit([1], 80), under_test.submit([2], 80)
    while not under_test.coordinator.waiting:
        before = under_test.done(1.0, (2, 200 + len(second)))
        after = under_test.done(1.0, (1, 100 + len(first)))
    # Both contexts have no room any more when a token of the first comes back.
    assert [entry[1:3] for entry in before] == [("decode", 2)] or not second
    assert [entry[1:] for entry in after] == [("drop", [2]), ("decode", 1, 50, [149])]
    assert under_test.done(2.0, (2, 250)) == []  # of the attempt that is over
    while under_test.coordinator.waiting:
        log = under_test.done(3.0, (1, 100 + len(first)))
    tokens = [200 + number for number in range(50)]
    assert log == [("a", "drop", [1]), ("a", "prefill", 3, 0, [2, *tokens])]
    while under_test.coordinator.active:
        under_test.done(4.0, (3, 200 + len(second)))
    assert first == [*(Token(100 + number) for number in range(80)), Finished("length")]
    assert second == [*(Token(200 + number) for number in range(80)), Finished("length")]


def test_a_request_that_is_admitted_and_preempted_at_once_is_not_begun(monkeypatch):
    under_test = live()
    request = under_test.coordinator.create(Arrival(0.0, 2, 5))
    actions = Actions([], [], [request], [], [request], [])._replace(
        admitted=[request], dropped=[request]
    )
    monkeypatch.setattr(under_test.coordinator, "handle", lambda event, now: actions)
    under_test.dispatcher.submit(request, Generation(array("i", [1, 2]), 2), 0.0)
    assert under_test.events.routes == []
    assert under_test.log == []


def test_a_preempted_request_waits_while_others_are_active():
    under_test = live()
    under_test.submit([1, 2], 3)
    _, second = under_test.submit([3, 4], 2)
    assert len(under_test.log) == 2
    under_test.dispatcher.requests_preempted([2], 1.0)
    assert under_test.log == [("a", "drop", [2]), ("b", "drop", [2])]
    under_test.done(2.0, (1, 50))
    under_test.done(3.0, (1, 51))
    assert under_test.log == []
    # The blocks of the first are free before the second takes them.
    assert under_test.done(4.0, (1, 52)) == [
        ("a", "drop", [1]),
        ("b", "drop", [1]),
        ("a", "prefill", 3, 0, [3, 4]),
    ]
    under_test.done(5.0, (3, 60))
    under_test.done(6.0, (3, 61))
    assert second == [Token(60), Token(61), Finished("length")]


def test_requests_of_a_lost_node_are_restarted_elsewhere():
    under_test = live(TWO)
    told = [under_test.submit([1, 2], 3)[1], under_test.submit([3, 4], 3)[1]]
    log = under_test.log
    assert [name for name, *_ in log] == ["a", "b"]
    under_test.done(1.0, (1, 50), (2, 60))
    under_test.dispatcher.node_lost(0, 1.5)
    assert under_test.log == [("a", "drop", [1]), ("b", "prefill", 3, 0, [1, 2, 50])]
    under_test.dispatcher.node_recovered(0, 2.0)
    assert under_test.done(2.5, (1, 51), (3, 51), (2, 61)) == [
        ("b", "decode", 3, 3, [51]),
        ("b", "decode", 2, 3, [61]),
    ]
    under_test.done(3.0, (3, 52), (2, 62))
    assert told == [
        [*map(Token, (50, 51, 52)), Finished("length")],
        [*map(Token, (60, 61, 62)), Finished("length")],
    ]
    assert under_test.log == []
    for _ in range(3):
        under_test.submit([5], 1)
    assert {name for name, *_ in under_test.log} == {"a", "b"}  # the node is used again


def test_without_a_route_requests_fail_and_are_refused_until_a_node_is_back():
    under_test = live()
    _, told = under_test.submit([1, 2], 3)
    under_test.dispatcher.node_lost(1, 1.0)
    assert told == [Failed("b was lost")]
    assert under_test.log[1:] == [("a", "drop", [1]), ("b", "drop", [1])]
    _, refused = under_test.submit([3, 4], 1, 1.5)
    assert [type(event) for event in refused] == [Refused]
    assert "nodes that are down" in refused[0].message
    assert (refused[0].retry_after_s, refused[0].is_unavailable) == (2.5, True)
    under_test.dispatcher.node_recovered(1, 2.0)
    _, told = under_test.submit([5, 6], 1, 2.5)
    assert under_test.log == [("a", "prefill", 2, 0, [5, 6])]
    under_test.done(3.0, (2, 50))
    assert told == [Token(50), Finished("length")]


# -- closed loops


def test_a_closed_loop_goes_on():
    under_test = DispatcherUnderTest(
        {"a": (0, 1)},
        workload=offline([(3, 2)], initial_requests=1, spacing_s=0.5),
        room=capacity(kv_token_layers=20),  # for two of 3 + 4 expected tokens
    )
    under_test.dispatcher.process(0.0)
    assert under_test.log == [("a", "prefill", 1, 0, [0, 1, 2])]
    # Each prefill that ends while there is room, and each request that ends, brings another.
    assert under_test.done(1.0, (1, 50)) == [("a", "decode", 1, 3, [50])]
    assert under_test.dispatcher.next_due_s() == 1.5
    under_test.dispatcher.process(1.5)
    assert under_test.log == [("a", "prefill", 2, 0, [100, 101, 102])]
    assert under_test.done(2.0, (1, 51)) == [("a", "drop", [1])]
    under_test.dispatcher.process(2.5)
    assert under_test.log == [("a", "prefill", 3, 0, [200, 201, 202])]
    # A request that fails, too, is followed by another.
    under_test.dispatcher.requests_failed([2], "a reason", 3.0)
    under_test.dispatcher.process(3.5)
    assert under_test.log == [("a", "drop", [2]), ("a", "prefill", 4, 0, [300, 301, 302])]
    assert under_test.dispatcher.next_due_s() == inf


# -- what is recorded


def test_passes_and_routes_are_recorded():
    under_test = live()
    under_test.submit([1, 2, 3], 2)
    under_test.done(1.0, (1, 50))
    under_test.done(2.0, (1, 51))
    rows = list(zip(*under_test.events.table.values, strict=True))
    assert rows == [
        (0.0, 0, "out", "prompt", 0, 3),
        (1.0, 0, "in", "prompt", 0, 3),
        (1.0, 0, "out", "decode", 3, 1),
        (2.0, 0, "in", "decode", 3, 1),
    ]
    assert under_test.events.routes == [
        {
            "query": 0,
            "input_tokens": 3,
            "output_tokens": 2,
            "nodes": [1, 2, 0],
            "start_layers": [0, 1, -1],
            "end_layers": [1, 2, -1],
        }
    ]


# -- deadlines


def check(under_test, now):
    under_test.dispatcher.check_deadlines(now)
    under_test.dispatcher.process(now)
    return under_test.log


def test_a_request_whose_pass_is_lost_begins_anew_and_fails_at_last(caplog):
    # A prefill of one token takes two nodes one second each: 5 s and ten times 2 s.
    limits = TimeLimits(pass_floor_s=5.0, most_stalls=1)
    under_test = live(CHAIN, limits=limits, waiting=9)
    _, told = under_test.submit([7], 3)
    assert under_test.log == [("a", "prefill", 1, 0, [7])]
    assert check(under_test, 24.0) == []
    assert check(under_test, 25.5) == [
        ("a", "drop", [1]),
        ("b", "drop", [1]),
        ("a", "prefill", 2, 0, [7]),
    ]
    assert caplog.messages == ["a request got no answer from a -> b for 26 s"]
    assert check(under_test, 75.0) == []  # twice as long as before
    check(under_test, 76.0)
    assert told == [Failed("no answer from a -> b for 50 s")]
    under_test.coordinator.validate()


def test_passes_have_more_time_where_nodes_are_busy_or_passes_took_long_lately():
    under_test = live(CHAIN, limits=TimeLimits(pass_floor_s=5.0), waiting=9)
    under_test.submit([7], 9)
    under_test.workers[1].num_waiting = 1
    assert ("a", "prefill", 2, 0, [7]) not in [*under_test.log, *check(under_test, 240.0)]
    under_test.workers[1].num_waiting = 0
    under_test.done(241.0, (1, 50))
    under_test.done(251.0, (1, 51))  # a decode of 10 s
    assert check(under_test, 300.0) == []
    under_test.dispatcher.excuse(100.0, 400.0)  # the coordinator was paused
    assert check(under_test, 380.0) == []
    assert ("a", "prefill", 2, 0, [7, 50, 51]) in check(under_test, 460.0)


def test_requests_end_at_their_time_limit_also_while_they_wait():
    under_test = live(CHAIN, limits=TimeLimits(request_s=10.0), waiting=9)
    _, told = under_test.submit([7], 9)
    check(under_test, 10.0)
    assert not told
    check(under_test, 11.5)
    assert told == [Failed("the answer took longer than 10 s (--request-timeout)")]


def test_requests_on_a_link_that_is_cut_take_another(caplog):
    layers = {"a": (0, 1), "b": (1, 2), "c": (0, 1)}
    under_test = live(layers, waiting=9)
    under_test.submit([7], 3)
    (sent,) = under_test.log
    first = "ac".index(sent[0]) * 2
    under_test.dispatcher.links_cut(frozenset({(first, 1)}), 1.0)
    under_test.dispatcher.process(1.0)
    assert under_test.log[-1] == ("ca"[first // 2], "prefill", 2, 0, [7])
    under_test.dispatcher.links_cut(frozenset(), 2.0)
    assert under_test.coordinator.cut == frozenset()

"""Work that arrives before the worker knows its peers is held, not refused."""

from __future__ import annotations

import pytest
from fake_coordinator import FakeCoordinator, worker_in_thread

from helixreal.coordinator.membership import State
from helixreal.net import messages
from helixreal.net.transport import Transport
from helixreal.worker import early_work
from helixreal.worker.early_work import EarlyWork
from helixsim.cluster import COORDINATOR

ROUTE = [messages.Stage(0, 0, 1), messages.Stage(1, 1, 2)]


def prefill(key, route, **more):
    return messages.Pass(key, 0, 3, True, True, route, **more)


def work(sender, layer, each, size=12):
    return messages.Work(sender, layer, 0.0, [each], [], 1), [bytes(size)]


def work_of(transport):
    """The work that has come; peers send heartbeats as well."""
    found = []
    while transport.inbox.poll(0):
        found += [each for each, _ in transport.received(10) if isinstance(each, messages.Work)]
    return found


@pytest.mark.parametrize("node", [None, "vllm"])
def test_work_of_a_peer_waits_for_the_links_and_the_ways_back(node):
    with Transport("tcp://127.0.0.1:0") as home, Transport("tcp://127.0.0.1:0") as peer:
        fake = FakeCoordinator(home, node)
        with worker_in_thread("b", home.address) as worker:
            fake.hear_until(lambda: fake.state("b") is State.READY, "b is ready")
            peer.session = fake.membership.session
            peer.connect("b", fake.membership.workers[1].address)
            peer.send("b", *work(0, 1, prefill(7, ROUTE[1:], first=0), size=24))
            fake.hear(0.2)
            assert not [each for each in fake.others if isinstance(each, messages.Done)]
            fake.membership.workers[0].address = peer.address
            fake.membership.workers[0].state = State.READY
            fake.membership.send_all_peers(fake.policy)
            fake.hear_until(lambda: fake.others, "the token")
            (done,) = fake.others
            assert isinstance(done, messages.Done)
            assert done.keys == [7]
            assert worker.end_reason is None


def test_work_waits_for_the_address_of_a_peer_that_comes_back():
    with Transport("tcp://127.0.0.1:0") as home, Transport("tcp://127.0.0.1:0") as peer:
        fake = FakeCoordinator(home)
        with worker_in_thread("a", home.address):
            fake.hear_until(lambda: fake.state("a") is State.READY, "a is ready")
            fake.membership.send_all_peers(fake.policy)  # b is absent
            home.send("a", *work(2, 0, prefill(7, ROUTE)))
            home.send("a", *work(2, 0, prefill(8, ROUTE)))
            home.send("a", messages.Drop([8]))
            fake.hear(0.2)
            home.send("a", messages.Peers([messages.Peer(1, "b", peer.address)], []))
            passed = []
            fake.hear_until(lambda: passed.extend(work_of(peer)) or passed, "the pass")
            fake.hear(0.2)
            passed += work_of(peer)
            assert [each.key for message in passed for each in message.passes] == [7]
            assert not fake.others


def test_a_route_that_cannot_be_is_refused_at_once():
    with Transport("tcp://127.0.0.1:0") as home:
        fake = FakeCoordinator(home)
        with worker_in_thread("a", home.address) as worker:
            fake.hear_until(lambda: fake.state("a") is State.READY, "a is ready")
            fake.membership.send_all_peers(fake.policy)
            wrong = [ROUTE[0], messages.Stage(5, 1, 2)]
            home.send("a", *work(2, 0, prefill(7, wrong)))
            fake.hear_until(
                lambda: fake.membership.workers[0].num_refused == 1, "the refusal is reported"
            )
            assert worker.end_reason is None


def test_what_is_held_has_a_limit(monkeypatch):
    monkeypatch.setattr(early_work, "MOST_MESSAGES", 2)
    monkeypatch.setattr(early_work, "MOST_BYTES", 30)
    early = EarlyWork()
    first, second = (work(2, 0, prefill(key, ROUTE)) for key in (1, 2))
    early.hold(*first)
    with pytest.raises(ValueError, match="too much work waits"):
        early.hold(*work(2, 0, prefill(3, ROUTE), size=31))
    early.hold(*second)
    with pytest.raises(ValueError, match="too much work waits"):
        early.hold(*second)
    early.forget([1])
    assert [each.work for each in early.take(lambda _: True)] == [second[0]]
    assert len(early) == 0


def test_passes_of_earlier_workers_of_the_node_are_not_taken():
    """A pass that was under way to the worker before it would hold KV blocks for ever."""
    with Transport("tcp://127.0.0.1:0") as home:
        fake = FakeCoordinator(home)
        fake.membership.next_key = lambda: 100
        with worker_in_thread("b", home.address):
            fake.hear_until(lambda: fake.state("b") is State.READY, "b is ready")
            fake.membership.send_all_peers(fake.policy)
            for key in (99, 100):
                home.send("b", *work(0, 1, prefill(key, ROUTE[1:]), size=24))
            fake.hear_until(lambda: fake.others, "a token")
            fake.hear(0.2)
            assert [each.keys for each in fake.others] == [[100]]


def test_messages_of_another_run_of_the_coordinator_are_refused():
    with Transport("tcp://127.0.0.1:0") as home, Transport("tcp://127.0.0.1:0") as other:
        fake = FakeCoordinator(home)
        with worker_in_thread("b", home.address) as worker:
            fake.hear_until(lambda: fake.state("b") is State.READY, "b is ready")
            other.session = fake.membership.session + 1
            other.connect("b", fake.membership.workers[1].address)
            other.send("b", messages.Shutdown("of another run"))
            fake.hear_until(
                lambda: fake.membership.workers[1].num_refused == 1, "the refusal is reported"
            )
            assert worker.end_reason is None
            other.connect(COORDINATOR, home.address)
            other.send(COORDINATOR, messages.Done(1, [1], [1], []))
            fake.hear_until(lambda: home.num_refused == 1, "the coordinator refuses it")

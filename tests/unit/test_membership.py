"""Workers that join, report, fall silent and come back, without sockets and by a clock of ours."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from builders import make_inputs, make_scenario, make_topology
from test_operators import TABLES

from helixreal.coordinator import membership as module
from helixreal.coordinator.membership import Membership, MembershipSettings, State
from helixreal.net import encoding, messages
from helixreal.net.clock import Clock
from helixreal.worker.emulation import engine_costs_of, llm_of, placed_node
from helixsim.control.routing.maxflow import MaxFlowPolicy
from helixsim.errors import HelixError, InputError

CHAIN = {"a": (0, 1), "b": (1, 2)}


class NotingTransport:
    """Keeps what is sent and connected."""

    def __init__(self):
        self.log = []
        self.bad_address = None

    def connect(self, name, address):
        if address == self.bad_address:
            raise InputError(f"cannot connect to {name}")
        self.log.append(("connect", name, address))

    def send(self, name, message, frames=()):
        kind = type(message).__name__
        if isinstance(message, messages.Peers):
            self.log.append((kind, name, [peer.name for peer in message.peers]))
        elif isinstance(message, messages.Shutdown):
            self.log.append((kind, name, message.reason))
        else:
            self.log.append((kind, name))
        self.last = message
        return True


class MembershipUnderTest:
    """Settings in seconds: a heartbeat each second, lost after 3, stuck after 10."""

    def __init__(self, monkeypatch, node=None):
        self.clock_s = 100.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.clock_s))
        scenario = make_scenario(CHAIN, requests=[(0, 1, 1)])
        self.scenario = replace(scenario, scheduler=replace(scenario.scheduler, node=node))
        self.topology = make_topology(self.scenario)
        self.transport = NotingTransport()
        self.membership = Membership(
            self.scenario,
            self.topology,
            self.transport,
            Clock(2.0),
            MembershipSettings(heartbeat_s=1.0, missing_s=3.0, stuck_s=10.0),
            4096,
            reports_transits=True,
        )

    @property
    def log(self):
        """What was sent since the last look."""
        log, self.transport.log = self.transport.log, []
        return log

    def hello(self, name, incarnation="first", address="tcp://127.0.0.1:1"):
        self.membership.on_hello(messages.Hello(name, address, "host", incarnation, "emulated"))
        return self.log

    def ready(self, node, incarnation="first"):
        self.membership.on_ready(messages.Ready(node, incarnation, 64, 16))
        return self.log

    def begin(self):
        """All workers are ready, and the cluster begins."""
        for node, name in enumerate(CHAIN):
            self.hello(name)
            self.ready(node)
        self.membership.send_all_peers(MaxFlowPolicy(make_inputs(self.scenario)))
        return self.log

    def heartbeat(
        self,
        node,
        incarnation="first",
        *,
        tokens=0,
        stuck_s=0.0,
        lag_s=0.0,
        busy_s=0.0,
        unheard_s=0.0,
    ):
        return self.membership.on_heartbeat(
            messages.Heartbeat(
                node,
                incarnation,
                busy_s,
                tokens,
                2,
                3,
                4,
                5,
                6,
                70,
                stuck_s,
                lag_s,
                1,
                [8.0],
                [9],
                [],
                unheard_s,
            )
        )

    def at(self, clock_s):
        """Check liveness at this time by the clock."""
        self.clock_s = clock_s
        self.membership.check_liveness(clock_s)
        return self.log

    @property
    def states(self):
        return [worker.state for worker in self.membership.workers]


@pytest.fixture
def under_test(monkeypatch):
    return MembershipUnderTest(monkeypatch)


# -- joining


def test_an_emulated_worker_has_the_llm_the_machine_and_the_engine_of_the_scenario(under_test):
    """Performance models of users see the same inputs in a worker as in the simulator."""
    under_test.hello("b")
    sent = b"".join(encoding.encode(under_test.transport.last))
    assignment, _ = encoding.decode([sent])
    assert llm_of(assignment) == under_test.topology.llm
    assert engine_costs_of(assignment) == under_test.scenario.engine
    node, placed = placed_node("b", assignment), under_test.topology.nodes[1]
    for name in ("index", "name", "machine_type", "region", "nic", "disk_bytes_per_s", "capacity"):
        assert getattr(node, name) == getattr(placed, name), name
    assert (node.profile.prefill, node.profile.decode) == (
        placed.profile.prefill,
        placed.profile.decode,
    )


def test_a_worker_registers_is_assigned_its_layers_and_becomes_ready(under_test):
    membership = under_test.membership
    assert membership.absent == ["a", "b"]
    assert under_test.hello("b") == [
        ("connect", "b", "tcp://127.0.0.1:1"),
        ("Assignment", "b"),
    ]
    assignment = under_test.transport.last
    assert (assignment.node, assignment.coordinator) == (1, 2)
    assert (assignment.start_layer, assignment.end_layer, assignment.llm.num_layers) == (1, 2, 2)
    assert assignment.entry_layers == [1]
    assert (assignment.heartbeat_s, assignment.missing_s) == (1.0, 3.0)
    assert (assignment.time_scale, assignment.clock_s) == (2.0, 100.0)
    assert assignment.emulate_links
    assert assignment.report_transits
    assert under_test.states == [State.ABSENT, State.LOADING]
    assert membership.absent == ["a", "b"]
    assert under_test.ready(1) == []
    assert membership.absent == ["a"]
    worker = membership.workers[1]
    assert (worker.kv_blocks, worker.block_tokens) == (64, 16)
    assert membership.recovered_nodes == []  # the cluster has not begun


def test_a_second_hello_changes_nothing(under_test):
    under_test.hello("a")
    assert under_test.hello("a") == []
    under_test.ready(0)
    assert under_test.hello("a", "another") == []  # one worker is there already
    assert under_test.membership.workers[0].incarnation == "first"


def test_hellos_of_unknown_nodes_and_bad_addresses_are_refused(under_test):
    with pytest.raises(ValueError, match="node 'c' holds no layers"):
        under_test.hello("c")
    under_test.transport.bad_address = "tcp://127.0.0.1:1"
    with pytest.raises(ValueError, match="cannot connect to a"):
        under_test.hello("a")
    assert under_test.log == []


def test_a_node_with_a_bad_address_can_register_again(under_test):
    under_test.transport.bad_address = "tcp://127.0.0.1:1"
    with pytest.raises(ValueError, match="cannot connect"):
        under_test.hello("a")
    assert [kind for kind, *_ in under_test.hello("a", "second", "tcp://127.0.0.1:2")] == [
        "connect",
        "Assignment",
    ]


def test_ready_of_another_incarnation_is_ignored(under_test):
    under_test.ready(0)
    assert under_test.states == [State.ABSENT, State.ABSENT]
    under_test.hello("a")
    under_test.ready(0, "another")
    assert under_test.states[0] is State.LOADING
    with pytest.raises(ValueError, match="there is no node 2"):
        under_test.ready(2)


def test_all_workers_learn_of_their_peers_when_the_cluster_begins(under_test):
    assert under_test.begin() == [("Peers", "a", ["b"]), ("Peers", "b", [])]
    (link,) = under_test.transport.last.links
    assert (link.target, link.latency_s, link.bytes_per_token) == (2, 0.001, 2.0)


def test_an_engine_that_cannot_be_loaded_ends_a_cluster_that_has_not_begun(under_test):
    under_test.hello("a")
    with pytest.raises(HelixError, match="a: no memory"):
        under_test.membership.on_failure(messages.Failure(0, [], "no memory"))
    with pytest.raises(ValueError, match="there is no node 7"):
        under_test.membership.on_failure(messages.Failure(7, [], "no memory"))
    under_test.membership.on_failure(messages.Failure(1, [], "not loading"))
    assert under_test.states == [State.LOST, State.ABSENT]


# -- heartbeats


def test_heartbeats_are_the_gauges_of_a_node(under_test):
    under_test.begin()
    assert under_test.heartbeat(0, tokens=30, busy_s=4.0, lag_s=0.5) is (
        worker := under_test.membership.workers[0]
    )
    assert (worker.num_tokens, worker.num_batches, worker.busy_s(9.0)) == (30, 2, 4.0)
    assert (worker.num_running, worker.num_waiting, worker.queue_length) == (3, 4, 4)
    assert (worker.waiting_tokens, worker.free_kv_tokens) == (5, 6)
    assert (worker.kv_used_token_layers, worker.step_s) == (70, 2.0)
    assert (worker.sent_bytes, worker.sent_requests, worker.num_refused) == ([8.0], [9], 1)
    under_test.heartbeat(0, lag_s=0.25)
    assert worker.lag_s == 0.5


def test_heartbeats_of_other_incarnations_are_ignored(under_test):
    under_test.begin()
    assert under_test.heartbeat(0, "another", tokens=30) is None
    assert under_test.membership.workers[0].num_tokens == 0
    with pytest.raises(ValueError, match="there is no node 9"):
        under_test.heartbeat(9)


# -- silence


def test_the_coordinator_reports_that_it_is_alive(under_test):
    assert under_test.at(100.0) == []
    under_test.hello("a")
    assert under_test.at(100.5) == []
    assert under_test.at(101.0) == [("Alive", "a")]
    assert under_test.at(101.9) == []
    assert under_test.at(102.0) == [("Alive", "a")]


def test_a_silent_node_is_lost_and_its_next_worker_takes_its_place(under_test, caplog):
    membership = under_test.membership
    under_test.begin()
    under_test.heartbeat(0, tokens=30, busy_s=4.0)
    under_test.clock_s = 102.0
    under_test.heartbeat(1)
    under_test.at(103.0)
    assert membership.lost_nodes == []  # exactly 3 s are not too long
    assert under_test.at(103.5) == []
    assert membership.lost_nodes == [0]
    assert under_test.states == [State.LOST, State.READY]
    assert membership.absent == ["a"]
    assert caplog.messages == ["a has been silent for 3.5 s"]
    worker = membership.workers[0]
    assert (worker.num_running, worker.num_waiting) == (0, 0)
    assert under_test.at(103.6) == []
    assert membership.lost_nodes == [0]  # reported once
    # Another process of the node registers; the other node learns its address.
    assert under_test.hello("a", "second", "tcp://127.0.0.1:2") == [
        ("connect", "a", "tcp://127.0.0.1:2"),
        ("Assignment", "a"),
    ]
    assert under_test.heartbeat(0, "first", tokens=99) is None
    assert membership.recovered_nodes == []
    assert under_test.ready(0, "second") == [("Peers", "a", ["b"])]
    assert membership.recovered_nodes == [0]
    # Gauges go on over restarts.
    under_test.heartbeat(0, "second", tokens=5, busy_s=1.0)
    assert (worker.num_tokens, worker.num_batches, worker.busy_s(0.0)) == (35, 4, 5.0)


def test_a_last_node_knows_the_way_back_to_first_nodes_where_decodes_loop(monkeypatch):
    under_test = MembershipUnderTest(monkeypatch, node="vllm")
    # Over the coordinator: the nodes have no link from the last to the first.
    assert under_test.begin()[-2:] == [("Peers", "a", ["b"]), ("Peers", "b", ["a"])]
    assert under_test.transport.last.ways_back == [messages.OutLink(0, 1e9, 0.002, 2.0)]
    under_test.clock_s = 103.5
    under_test.heartbeat(1)
    under_test.at(103.5)
    assert under_test.membership.lost_nodes == [0]
    under_test.hello("a", "second", "tcp://127.0.0.1:2")
    assert under_test.ready(0, "second") == [("Peers", "a", ["b"]), ("Peers", "b", ["a"])]
    assert under_test.transport.last.peers == [messages.Peer(0, "a", "tcp://127.0.0.1:2")]


def test_operator_tables_reach_workers_as_they_are(monkeypatch):
    under_test = MembershipUnderTest(monkeypatch)
    node = under_test.membership.workers[1].placed
    profile = replace(node.profile, operators=TABLES)
    under_test.membership.workers[1].placed = replace(node, profile=profile)
    under_test.hello("b")
    sent = b"".join(encoding.encode(under_test.transport.last))
    assignment, _ = encoding.decode([sent])
    assert placed_node("b", assignment).profile.operators == TABLES


def test_nodes_before_one_that_is_back_learn_its_address(under_test):
    under_test.begin()
    under_test.clock_s = 103.5
    under_test.heartbeat(0)
    under_test.at(103.5)
    assert under_test.membership.lost_nodes == [1]
    under_test.hello("b", "second", "tcp://127.0.0.1:2")
    assert under_test.ready(1, "second") == [("Peers", "b", []), ("Peers", "a", ["b"])]
    assert under_test.transport.last.peers == [messages.Peer(1, "b", "tcp://127.0.0.1:2")]


def test_a_worker_that_falls_silent_while_it_loads_was_not_lost(under_test):
    under_test.hello("a")
    under_test.at(103.5)
    assert under_test.membership.lost_nodes == []
    assert under_test.states[0] is State.LOST
    under_test.ready(0)  # too late
    assert under_test.states[0] is State.LOST


def test_a_stuck_engine_is_shut_down_and_lost(under_test, caplog):
    under_test.begin()
    under_test.heartbeat(0, stuck_s=10.0)
    under_test.heartbeat(1, stuck_s=10.5)
    log = under_test.at(100.5)
    assert [entry[:2] for entry in log if entry[0] != "Alive"] == [("Shutdown", "b")]
    assert under_test.membership.lost_nodes == [1]
    assert caplog.messages == ["b has been running one batch for 10.5 s"]


def test_an_engine_that_cannot_be_loaded_again_leaves_the_node_lost(under_test, caplog):
    under_test.begin()
    under_test.at(104.0)
    assert under_test.membership.lost_nodes == [0, 1]
    under_test.hello("a", "second")
    under_test.membership.on_failure(messages.Failure(0, [], "no memory"))
    assert under_test.states == [State.LOST, State.LOST]
    assert under_test.membership.lost_nodes == [0, 1]
    assert caplog.messages[-1] == "a: no memory"


def test_all_workers_are_shut_down(under_test):
    under_test.hello("b")
    under_test.membership.shut_down_all("the run has ended")
    assert under_test.log == [("Shutdown", "b", "the run has ended")]


# -- pauses and coming back


def test_a_pause_of_the_coordinator_is_not_silence_of_its_workers(under_test, caplog):
    under_test.begin()
    under_test.at(100.0)
    assert under_test.at(160.0) == [("Alive", "a"), ("Alive", "b")]
    assert caplog.messages == ["the coordinator itself was paused for 60.0 s"]
    assert under_test.states == [State.READY, State.READY]
    for clock_s in (161.0, 162.0, 163.0):
        under_test.at(clock_s)
    assert under_test.membership.lost_nodes == []
    under_test.at(163.5)  # now they have really been silent
    assert under_test.membership.lost_nodes == [0, 1]


def test_a_lost_worker_that_is_heard_again_is_asked_to_join_again(under_test):
    under_test.begin()
    under_test.at(103.5)
    assert under_test.states[0] is State.LOST
    assert under_test.heartbeat(0) is None
    assert under_test.log == [("Rejoin", "a")]
    assert under_test.transport.last.incarnation == "first"
    assert under_test.heartbeat(0, "another") is None
    assert under_test.log == []
    under_test.membership.next_key = lambda: 77
    under_test.hello("a", "second")
    assignment = under_test.transport.last
    assert (assignment.incarnation, assignment.first_key) == ("second", 77)
    assert assignment.session == under_test.membership.session


def test_a_worker_that_reports_for_too_long_that_it_does_not_hear_the_coordinator_is_lost(
    under_test, caplog
):
    under_test.begin()
    for clock_s in (100.0, 101.0, 102.0, 103.0, 104.0):
        under_test.clock_s = clock_s
        under_test.heartbeat(0, unheard_s=4.0 if clock_s < 102.5 or clock_s > 103.5 else 0.0)
        under_test.heartbeat(1, unheard_s=4.0)
        under_test.at(clock_s)
    assert under_test.states == [State.READY, State.LOST]
    assert caplog.messages == ["b does not hear the coordinator, which hears it"]


def test_the_links_of_nodes_that_are_up_are_watched(under_test):
    under_test.begin()
    for clock_s in (100.0, 101.0, 102.0, 103.0, 104.0):
        under_test.clock_s = clock_s
        for node in (0, 1):
            under_test.heartbeat(node)
        under_test.at(clock_s)
    assert under_test.membership.cut_links == {(0, 1)}
    for clock_s in (105.0, 106.0, 107.0, 107.5):
        under_test.clock_s = clock_s
        under_test.heartbeat(1)
        under_test.at(clock_s)
    assert under_test.states == [State.LOST, State.READY]
    assert under_test.membership.cut_links == frozenset()


def test_a_worker_that_is_heard_first_after_a_pause_is_heard_now_and_not_later(under_test):
    """Its links would be cut, because others heard it less lately than the coordinator."""
    under_test.begin()
    under_test.at(100.0)
    under_test.clock_s = 110.0
    under_test.heartbeat(0)
    under_test.at(110.0)
    assert under_test.membership.workers[0].last_heard_s == 110.0
    under_test.heartbeat(1)
    assert under_test.membership.cut_links == frozenset()

"""A simulated engine node, and faults: what leaves it and what is reported, with times."""

from __future__ import annotations

from itertools import count
from math import inf
from types import SimpleNamespace

import pytest
from builders import capacity, make_scenario, make_topology, prompt

from helixsim.control.actions import NodeLost, NodeRecovered
from helixsim.control.kv_cache import KvCache
from helixsim.control.node_schedulers import NODE_SCHEDULERS, NodeSchedulerInputs
from helixsim.models.engine_node import EngineNode
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.faults import FaultInjector
from helixsim.models.links import DeliveryQueue, SerialLink
from helixsim.placement.topology import PlacedLink
from helixsim.scenario.resolved import Fault
from helixsim.steps import Batch

# -- engine nodes


class SlowPolling:
    """A step takes a second for each token; an idle worker polls once in `poll_s`."""

    def __init__(self, poll_s):
        self.poll_s = poll_s

    def time_step(self, step, now):
        ends, end = [], now
        for batch in step.passes:
            end += batch.num_tokens
            ends.append(end)
        return ends, end


class EngineNodeUnderTest:
    """One layer, one node, requests over a link without delay; `log` has what leaves it."""

    def __init__(self, *, poll_s=0.0, room=1000, scheduler="paper", kv=False):
        scenario = make_scenario(
            {"n": (0, 1)}, requests=[(0, 1, 1)], room=capacity(kv_token_layers=room)
        )
        placed = make_topology(scenario).nodes[0]
        factory = NODE_SCHEDULERS.get(scheduler)
        self.log = []
        self.environment = ExactEnvironment()
        self.inbox = DeliveryQueue()
        self.node = EngineNode(
            self.environment,
            placed,
            factory(
                NodeSchedulerInputs(
                    name="n",
                    start_layer=0,
                    end_layer=1,
                    entry_layers=(0,),
                    limits=placed.capacity,
                    kv=KvCache.by_layer(room, 1) if factory.counts_kv else None,
                    engine=scenario.engine,
                )
            ),
            SlowPolling(poll_s),
            self.inbox,
            self,
        )
        self.node.connect(self, num_sources=1)
        self.link = SerialLink(
            PlacedLink(0, 1, 0, inf, 0.0, 0, 2.0), inf, self.inbox, count().__next__
        )

    def depart(self, batch, now):
        self.node.scheduler.validate()
        self.log.append((now, [request.index for request in batch.requests]))

    def drop_unless(self, is_wanted):
        """Requests that have left are gone."""

    def report_step(self, step):
        self.log += [("preempted", request.index) for request in step.preempted]
        self.log += [("failed", request.index) for request, _ in step.failed]

    def send(self, at, *requests):
        batch = Batch.of(list(requests))
        event = ReusableEvent(self.environment, lambda: self.link.send(batch, at))
        event.schedule(at, 0.0)

    def call(self, at, act):
        ReusableEvent(self.environment, act).schedule(at, 0.0)

    def run(self):
        self.environment.run(until=1000.0)
        return self.log


def test_a_node_without_polling_starts_at_once():
    under_test = EngineNodeUnderTest()
    under_test.send(1.0, prompt(3, 0))
    under_test.send(2.0, prompt(2, 1))
    assert under_test.run() == [(4.0, [0]), (6.0, [1])]
    node = under_test.node
    assert (node.num_batches, node.num_tokens, node.busy_s(1000.0)) == (2, 5, 5.0)


def test_an_idle_node_notices_arrivals_at_the_end_of_a_round_of_polling():
    under_test = EngineNodeUnderTest(poll_s=0.75)
    under_test.send(1.0, prompt(3, 0))
    under_test.send(5.0, prompt(1, 1))
    # Noticed at 1.5 s. It idles from 4.5 s on, so that the next round ends at 5.25 s.
    assert under_test.run() == [(4.5, [0]), (6.25, [1])]


def test_arrivals_during_a_step_are_noticed_at_its_end():
    under_test = EngineNodeUnderTest(poll_s=0.75)
    under_test.send(1.0, prompt(3, 0))
    under_test.send(2.0, prompt(1, 1), prompt(1, 2))
    assert under_test.run() == [(4.5, [0]), (6.5, [1, 2])]


def test_a_node_that_fails_drops_its_step_and_takes_nothing_in():
    under_test = EngineNodeUnderTest()
    under_test.send(1.0, prompt(3, 0))
    under_test.call(2.0, lambda: under_test.node.fail(2.0))
    under_test.send(3.0, prompt(1, 1))
    under_test.call(5.0, lambda: under_test.node.recover(5.0))
    under_test.send(6.0, prompt(1, 2))
    assert under_test.run() == [(7.0, [2])]
    assert under_test.node.busy_s(1000.0) == pytest.approx(2.0)


def test_dropped_requests_do_not_leave():
    under_test = EngineNodeUnderTest()
    first, second = prompt(3, 0), prompt(1, 1)
    under_test.send(1.0, first)
    under_test.send(2.0, second)
    under_test.call(2.5, lambda: under_test.node.drop_unless(lambda each: each is second))
    # The step takes its time; its request is not sent on.
    assert under_test.run() == [(5.0, [1])]


# -- faults


class FaultsUnderTest:
    """Fake models and a fake coordinator that note everything, with times."""

    def __init__(self, *faults, detection_s=1.0, start_s=10.0):
        self.log = []
        scenario = make_scenario({"a": (0, 1), "b": (0, 1)}, requests=[(0, 1, 1)])
        topology = make_topology(scenario)
        self.environment = environment = ExactEnvironment()

        def note(*entry):
            self.log.append((environment.now, *entry))

        def node(name):
            return SimpleNamespace(
                fail=lambda now: note("fail", name), recover=lambda now: note("recover", name)
            )

        def handle(event, now):
            assert now == environment.now
            note(event)
            return "actions"

        models = SimpleNamespace(
            nodes=[node("a"), node("b")],
            links=[
                SimpleNamespace(
                    placed="link", use_bandwidth=lambda bandwidth: note("bandwidth", bandwidth)
                )
            ],
            coordinator_node=SimpleNamespace(
                catch_up=lambda now: note("catch up"),
                carry_out=lambda actions, now: note("carry out", actions),
            ),
        )
        injector = FaultInjector(
            environment,
            topology,
            models,
            SimpleNamespace(handle=handle),
            SimpleNamespace(link_bandwidth=lambda placed: 7.0),
            detection_s,
        )
        injector.plan(faults, start_s)
        environment.run(until=100.0)


def report(at, event):
    """What a report to the coordinator does, in order."""
    return [
        (at, "catch up"),
        (at, event),
        (at, "bandwidth", 7.0),
        (at, "carry out", "actions"),
    ]


def test_a_fault_is_reported_once_it_is_detected():
    assert FaultsUnderTest(Fault("b", 5.0)).log == [
        (15.0, "fail", "b"),
        *report(16.0, NodeLost(1)),
    ]


def test_a_node_recovers_when_it_has_loaded_its_layers():
    log = FaultsUnderTest(Fault("a", 5.0, 4.0)).log
    # One layer of one byte at 1e9 bytes/s.
    recovered_s = 19.0 + 1e-9
    assert log == [
        (15.0, "fail", "a"),
        *report(16.0, NodeLost(0)),
        (recovered_s, "catch up"),
        (recovered_s, "recover", "a"),
        *report(recovered_s, NodeRecovered(0)),
    ]


def test_a_node_that_recovers_before_detection_is_reported_lost_then_recovered():
    log = FaultsUnderTest(Fault("a", 5.0, 4.0), detection_s=10.0).log
    recovered_s = 19.0 + 1e-9
    assert [entry[0] for entry in log] == [15.0] + [recovered_s] * 10
    events = [entry[1] for entry in log if isinstance(entry[1], NodeLost | NodeRecovered)]
    assert events == [NodeLost(0), NodeRecovered(0)]
    # The loss is told before the node takes anything in.
    assert log.index((recovered_s, NodeLost(0))) < log.index((recovered_s, "recover", "a"))


def test_faults_of_several_nodes_happen_at_their_times():
    log = FaultsUnderTest(Fault("b", 6.0), Fault("a", 5.0)).log
    assert [entry for entry in log if entry[1] == "fail"] == [
        (15.0, "fail", "a"),
        (16.0, "fail", "b"),
    ]

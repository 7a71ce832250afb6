"""Exact times, and the order of what happens at one instant."""

from __future__ import annotations

from math import inf

import pytest
import simpy

from helixsim.models.event_loop import ExactEnvironment, ReusableEvent


@pytest.fixture
def environment():
    return ExactEnvironment()


@pytest.fixture
def log():
    return []


@pytest.fixture
def event(environment, log):
    """Make an alarm that notes its name and the time."""

    def make(name):
        return ReusableEvent(environment, lambda: log.append((name, environment.now)))

    return make


def test_an_alarm_goes_off_at_the_very_time(environment, event, log):
    at = 0.1 + 0.2  # not 0.3, and 0.1 more than 0.2 only after rounding
    event("a").set(at, 0.0)
    event("b").set(0.3, 0.0)
    environment.run_through()
    assert log == [("b", 0.3), ("a", at)]


def test_at_one_instant_the_older_in_the_system_goes_first(environment, event, log):
    event("young").set(1.0, 0.9)
    event("old").set(1.0, 0.1)
    environment.run_through()
    assert log == [("old", 1.0), ("young", 1.0)]


def test_among_equals_the_one_set_first_goes_first(environment, event, log):
    for name in "abc":
        event(name).set(1.0, 0.5)
    environment.run_through()
    assert [name for name, _ in log] == ["a", "b", "c"]


def test_a_number_given_before_decides_ties(environment, event, log):
    number = environment.next_number()
    event("set first").set(1.0, 0.5)
    event("numbered first").set_for(1.0, 0.5, number)
    environment.run_through()
    assert [name for name, _ in log] == ["numbered first", "set first"]


def test_one_alarm_may_wait_for_several_times(environment, event, log):
    a = event("a")
    for at in (2.0, 1.0, 2.0):
        a.set(at, 0.0)
    environment.run_through()
    assert log == [("a", 1.0), ("a", 2.0), ("a", 2.0)]


def test_a_handler_may_set_alarms_for_now_and_later(environment, log):
    def handle():
        log.append(environment.now)
        if environment.now < 3:
            event.set(environment.now if log.count(1.0) == 1 else environment.now + 1, 0.0)

    event = ReusableEvent(environment, handle)
    event.set(1.0, 0.0)
    environment.run_through()
    assert log == [1.0, 1.0, 2.0, 3.0]


def test_running_includes_the_end_and_stands_there(environment, event, log):
    for at in (1.0, 2.0, 2.0000000000000004):
        event("a").set(at, 0.0)
    environment.run_through(2.0)
    assert (log, environment.now) == ([("a", 1.0), ("a", 2.0)], 2.0)
    environment.run_through(5.0)
    assert (log[2:], environment.now) == ([("a", 2.0000000000000004)], 5.0)


def test_running_without_end_stops_with_the_last_event(environment, event):
    event("a").set(7.5, 0.0)
    environment.run_through(inf)
    assert environment.now == 7.5
    environment.run_through(inf)
    assert environment.now == 7.5


def test_simpy_processes_run_among_alarms(environment, event, log):
    def process():
        yield environment.timeout(1)
        log.append(("process", environment.now))
        yield environment.timeout(0.5) | environment.timeout(9)
        log.append(("process", environment.now))
        return "done"

    running = environment.process(process())
    event("a").set(0.5, 0.0)
    event("b").set(1.25, 0.0)
    environment.run_through(3.0)
    assert log == [("a", 0.5), ("process", 1), ("b", 1.25), ("process", 1.5)]
    assert running.value == "done"


def test_simpy_resources_work(environment, log):
    room = simpy.Resource(environment, capacity=1)

    def visitor(name):
        with room.request() as turn:
            yield turn
            yield environment.timeout(2)
            log.append((name, environment.now))

    for name in "ab":
        environment.process(visitor(name))
    environment.run_through()
    assert log == [("a", 2), ("b", 4)]


def test_an_error_in_a_process_comes_out(environment):
    def process():
        yield environment.timeout(1)
        raise ValueError("broken")

    environment.process(process())
    with pytest.raises(ValueError, match="broken"):
        environment.run_through()

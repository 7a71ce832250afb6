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
    """Make an event that notes its name and the time."""

    def make(name):
        return ReusableEvent(environment, lambda: log.append((name, environment.now)))

    return make


def test_an_event_happens_at_the_very_time(environment, event, log):
    at = 0.1 + 0.2  # not 0.3, and 0.1 more than 0.2 only after rounding
    event("a").schedule(at, 0.0)
    event("b").schedule(0.3, 0.0)
    environment.run_through()
    assert log == [("b", 0.3), ("a", at)]


def test_at_one_instant_the_event_created_first_goes_first(environment, event, log):
    event("young").schedule(1.0, 0.9)
    event("old").schedule(1.0, 0.1)
    environment.run_through()
    assert log == [("old", 1.0), ("young", 1.0)]


def test_among_equals_the_event_scheduled_first_goes_first(environment, event, log):
    for name in "abc":
        event(name).schedule(1.0, 0.5)
    environment.run_through()
    assert [name for name, _ in log] == ["a", "b", "c"]


def test_a_number_given_before_decides_ties(environment, event, log):
    number = environment.next_number()
    event("scheduled first").schedule(1.0, 0.5)
    event("numbered first").schedule_numbered(1.0, 0.5, number)
    environment.run_through()
    assert [name for name, _ in log] == ["numbered first", "scheduled first"]


def test_one_event_may_be_scheduled_for_several_times(environment, event, log):
    a = event("a")
    for at in (2.0, 1.0, 2.0):
        a.schedule(at, 0.0)
    environment.run_through()
    assert log == [("a", 1.0), ("a", 2.0), ("a", 2.0)]


def test_a_handler_may_schedule_events_for_now_and_later(environment, log):
    def handle():
        log.append(environment.now)
        if environment.now < 3:
            event.schedule(environment.now if log.count(1.0) == 1 else environment.now + 1, 0.0)

    event = ReusableEvent(environment, handle)
    event.schedule(1.0, 0.0)
    environment.run_through()
    assert log == [1.0, 1.0, 2.0, 3.0]


def test_running_includes_the_end_and_stands_there(environment, event, log):
    for at in (1.0, 2.0, 2.0000000000000004):
        event("a").schedule(at, 0.0)
    environment.run_through(2.0)
    assert (log, environment.now) == ([("a", 1.0), ("a", 2.0)], 2.0)
    environment.run_through(5.0)
    assert (log[2:], environment.now) == ([("a", 2.0000000000000004)], 5.0)


def test_running_without_end_stops_with_the_last_event(environment, event):
    event("a").schedule(7.5, 0.0)
    environment.run_through(inf)
    assert environment.now == 7.5
    environment.run_through(inf)
    assert environment.now == 7.5


def test_simpy_processes_run_among_reusable_events(environment, event, log):
    def process():
        yield environment.timeout(1)
        log.append(("process", environment.now))
        yield environment.timeout(0.5) | environment.timeout(9)
        log.append(("process", environment.now))
        return "done"

    running = environment.process(process())
    event("a").schedule(0.5, 0.0)
    event("b").schedule(1.25, 0.0)
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

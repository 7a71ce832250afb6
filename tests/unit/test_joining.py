"""Workers that do not hear their coordinator: when they say hello, and when they give up."""

from __future__ import annotations

import itertools

import pytest

from helixreal.worker.joining import Joining


def joining(give_up_after_s=100.0):
    numbers = itertools.count()
    found = Joining(lambda: f"number {next(numbers)}", give_up_after_s, 0.0)
    found.missing_s = 3.0
    return found


def hellos(found, start_s, end_s, step_s=0.125):
    """Times of hellos, looked for eight times a second."""
    times = []
    steps = round((end_s - start_s) / step_s)
    for at in (start_s + step_s * step for step in range(steps)):
        found.pause_s(at)
        found.check(at)
        if found.hello_is_due(at):
            times.append(at)
    return times


def test_hellos_begin_at_once_and_become_rarer():
    times = hellos(joining(), 0.0, 60.0)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(10.0)


def test_a_silent_coordinator_is_searched_by_one_new_incarnation():
    found = joining()
    assert found.offered == "number 0"
    found.adopted(0.0)
    assert hellos(found, 0.0, 3.0) == []
    assert hellos(found, 3.0, 5.0)[0] == 3.125
    assert found.is_searching
    assert found.offered == "number 1"
    hellos(found, 5.0, 20.0)
    assert found.offered == "number 1"
    found.heard(20.0)  # it was only paused
    assert hellos(found, 20.0, 22.0) == []
    hellos(found, 22.0, 30.0)  # it is silent again
    assert found.offered == "number 1"  # the coordinator may still answer the hellos of before


def test_an_own_pause_is_not_silence_of_the_coordinator():
    found = joining()
    found.heard(0.0)
    assert found.pause_s(0.125) == 0.0
    assert found.pause_s(60.125) == 60.0
    assert not found.check(60.125)
    assert not found.is_searching
    assert hellos(found, 60.25, 62.5) == []
    assert hellos(found, 62.5, 64.0)


def test_it_gives_up_after_a_long_time():
    found = joining(give_up_after_s=30.0)
    hellos(found, 0.0, 30.0)
    assert not found.has_given_up(30.0)
    assert found.has_given_up(30.1)
    found.heard(31.0)
    assert not found.has_given_up(31.0)


def test_a_coordinator_that_is_heard_after_a_pause_is_heard_now_and_not_later():
    found = joining()
    found.heard(0.0)
    found.pause_s(0.0)
    found.heard(60.0)
    assert found.pause_s(60.0) == 60.0
    assert found.check(63.5)

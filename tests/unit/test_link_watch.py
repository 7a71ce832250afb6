"""Which links are cut, by what workers report of their peers."""

from __future__ import annotations

from helixreal.coordinator.link_watch import LinkWatch

A, B, C = range(3)


def watch(now_s=0.0):
    found = LinkWatch([(A, B), (B, C)], 3.0)
    found.node_up(A, [], now_s)
    found.node_up(B, [A], now_s)
    return found


def test_a_link_is_cut_when_its_source_is_silent_for_its_target():
    found = watch()
    found.report(B, {A: 3.0}, {A: 0.0}, 3.0)
    assert found.cut == frozenset()
    found.report(B, {A: 3.5}, {A: 0.0}, 3.5)
    assert found.cut == {(A, B)}


def test_a_source_that_was_never_heard_is_silent_since_both_were_up():
    found = watch(10.0)
    found.report(B, {}, {A: 0.0}, 13.0)
    assert found.cut == frozenset()
    found.excuse(5.0, 20.0)  # the coordinator was paused
    found.report(B, {}, {A: 0.0}, 17.0)
    assert found.cut == frozenset()
    found.report(B, {}, {A: 0.0}, 18.5)
    assert found.cut == {(A, B)}


def test_a_source_that_the_coordinator_does_not_hear_either_says_nothing_about_the_link():
    found = watch()
    found.report(B, {A: 4.0}, {A: 1.5}, 4.0)
    assert found.cut == frozenset()
    found.report(B, {A: 4.0}, {A: 0.5}, 4.0)
    assert found.cut == {(A, B)}


def test_a_link_heals_when_its_source_has_been_heard_for_long_enough():
    found = watch()
    found.report(B, {A: 4.0}, {}, 4.0)
    found.report(B, {A: 0.1}, {}, 5.0)
    found.report(B, {A: 2.0}, {}, 6.0)  # not steadily
    found.report(B, {A: 0.1}, {}, 7.0)
    found.report(B, {A: 0.1}, {}, 9.9)
    assert found.cut == {(A, B)}
    found.report(B, {A: 0.1}, {}, 10.0)
    assert found.cut == frozenset()


def test_links_of_nodes_that_are_down_are_not_watched():
    found = watch()
    found.report(C, {}, {}, 100.0)  # C was never up
    found.report(B, {A: 4.0}, {}, 4.0)
    found.node_down(B)
    assert found.cut == frozenset()
    found.report(B, {A: 9.0}, {}, 9.0)
    assert found.cut == frozenset()
    found.node_up(B, [A, C], 20.0)
    found.report(C, {}, {}, 24.0)
    assert found.cut == {(B, C)}


def test_silence_of_an_earlier_worker_of_the_source_does_not_count():
    found = watch()
    found.node_down(A)
    found.node_up(A, [B], 10.0)
    found.report(B, {A: 9.0}, {A: 0.0}, 10.5)
    assert found.cut == frozenset()
    found.report(B, {A: 12.0}, {A: 0.0}, 13.5)
    assert found.cut == {(A, B)}


def test_a_pause_is_not_counted_beyond_now():
    found = watch()
    found.node_up(A, [B], 9.0)
    found.excuse(8.0, 10.0)
    found.report(B, {}, {A: 0.0}, 13.5)
    assert found.cut == {(A, B)}

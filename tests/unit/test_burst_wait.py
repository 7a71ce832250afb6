"""When a step of few decodes begins: looked at once, or at every arrival."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helixsim.control.node_schedulers.burst_wait import BurstWait, last_of_burst
from helixsim.control.node_schedulers.composition import AUTO, StepComposer, StepLimits

AUTOMATIC = StepLimits(max_prefill_tokens=100, max_decodes=AUTO, max_wait_s=AUTO)
STEP_S = 0.32  # a wait lasts 80 ms at most, and ends when nothing has come for 10 ms


class Waiting:
    """A scheduler on which few decodes wait."""

    def __init__(self):
        self.composer = StepComposer(AUTOMATIC, 4.0)
        self.composer.ran(STEP_S)

    def waits_for_more(self):
        return True


def wait_for(arrivals):
    """A wait that knows all arrivals."""
    return BurstWait(
        Waiting(), lambda since, gap, until: last_of_burst(arrivals, since, gap, until)
    )


def begins_looking_at_each(arrivals):
    """When a node begins that looks at each arrival, until no more come before its step."""
    left = list(arrivals)
    wait = BurstWait(Waiting(), lambda since, gap, until: last_of_burst(left, since, gap, until))
    now = left[0]
    while True:
        while left and left[0] <= now:
            wait.arrived(1, 0.0, left.pop(0))
        begins_s = wait.begins_s(now)
        if begins_s == now:
            return now
        now = min(begins_s, left[0] if left else inf)


@pytest.mark.parametrize(
    ("arrivals", "begins_s"),
    [
        ([1.0], 1.01),
        ([1.0, 1.005, 1.012], 1.022),
        ([1.0, 1.011], 1.01),  # the second comes a moment too late
        ([1.0 + 0.009 * place for place in range(20)], 1.08),  # a quarter of a step, no longer
    ],
)
def test_a_step_begins_when_nothing_has_come_for_a_moment(arrivals, begins_s):
    assert wait_for(arrivals).begins_after_s(arrivals[0]) == pytest.approx(begins_s)


# An arrival at the very end of a wait may count as in time or not.
@given(st.lists(st.floats(0, 0.03).filter(lambda gap: abs(gap - 0.01) > 1e-9), max_size=20))
def test_looking_once_is_as_good_as_looking_at_each_arrival(gaps):
    arrivals = [1.0]
    for gap in gaps:
        arrivals.append(arrivals[-1] + gap)
    assert wait_for(arrivals).begins_after_s(1.0) == begins_looking_at_each(arrivals)


def test_a_wait_goes_by_what_was_usual_when_it_began():
    wait = wait_for([])
    wait.arrived(1, 0.0, 1.0)
    begins_s = wait.begins_s(1.0)
    wait.composer.arrived(2, 0.05)  # gaps are usually longer, it learns meanwhile
    assert wait.composer.quiet_s > 0.01
    assert wait.begins_s(1.005) == begins_s
    wait.has_begun()
    assert wait.begins_s(2.0) == 2.0  # the last arrival is long ago


def test_an_arrival_at_the_very_end_of_a_wait_is_in_time():
    known = [1.0]
    wait = wait_for(known)
    end_s = wait.begins_after_s(1.0)
    known.clear()
    wait.arrived(1, 0.0, end_s)
    assert wait.begins_s(end_s) == pytest.approx(end_s + 0.01)

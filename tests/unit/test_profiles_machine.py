from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helixsim.errors import PlacementError, ScenarioError
from helixsim.profiles.library import load_machine_type
from helixsim.profiles.machine import LatencyProfile


def test_times_between_points_are_interpolated():
    profile = LatencyProfile((0, 10, 20), (0.0, 1.0, 4.0))
    assert [profile(n) for n in (0, 5, 10, 15, 20)] == [0.0, 0.5, 1.0, 2.5, 4.0]


def test_beyond_the_last_point_the_last_line_goes_on():
    assert LatencyProfile((0, 10, 20), (0.0, 1.0, 4.0))(30) == 7.0


def test_beyond_the_last_point_times_do_not_fall():
    assert LatencyProfile((0, 10, 20), (0.0, 3.0, 1.0))(1000) == 1.0


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(1e-9, 1e3)), min_size=1, max_size=10),
    st.floats(0, 1e6),
)
def test_no_time_is_negative(steps, num_tokens):
    tokens, seconds = [0], [0.0]
    for step, time in steps:
        tokens.append(tokens[-1] + step)
        seconds.append(time)
    assert LatencyProfile(tuple(tokens), tuple(seconds))(num_tokens) >= 0


@pytest.mark.parametrize(
    ("tokens", "seconds", "where"),
    [
        ((), (), "tokens"),
        ((0,), (0.0,), "tokens"),
        ((0, 1), (0.0,), None),
        ((1, 2), (0.0, 1.0), "tokens[0]"),
        ((0, 2, 2), (0.0, 1.0, 1.0), "tokens[2]"),
        ((0, 2, 1), (0.0, 1.0, 1.0), "tokens[2]"),
        ((0, 1), (0.0, -1.0), "seconds[1]"),
        ((0, 1), (0.0, inf), "seconds[1]"),
        ((0, 1), (nan, 1.0), "seconds[0]"),
        ((0, 1), (0.0, 0.0), "seconds[1]"),
    ],
)
def test_what_makes_no_profile_is_refused(tokens, seconds, where):
    with pytest.raises(ScenarioError) as caught:
        LatencyProfile(tokens, seconds)
    assert caught.value.where == where


def test_a_machine_says_which_layer_counts_it_can_hold():
    profile = load_machine_type("T4").profiles["llama2-70b"]
    assert profile.capacity(7).kv_token_layers == 44800
    with pytest.raises(PlacementError, match="for 5 layers of llama2-70b; it has one for 1, 2, 3"):
        profile.capacity(5)

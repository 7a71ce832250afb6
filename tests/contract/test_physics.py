"""What every physics profile promises of its timer; a new one is tested by being there."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
from builders import decode, make_scenario, make_timer, prompt

from helixsim.physics import PHYSICS_PROFILES
from helixsim.profiles.machine import LatencyProfile
from helixsim.scenario import resolved
from helixsim.steps import Batch

PREFILL = LatencyProfile((0, 10, 100), (0.0, 0.02, 0.1))
DECODE = LatencyProfile((0, 1, 10), (0.0, 0.015, 0.03))
BATCHES = {
    "a prompt": [prompt(30)],
    "prompts": [prompt(30), prompt(20)],
    "a decode": [decode(30)],
    "decodes": [decode(30), decode(20), decode(25)],
    "both": [prompt(30), decode(20), decode(25)],
}


@pytest.fixture(params=sorted(PHYSICS_PROFILES))
def name(request):
    return request.param


@pytest.fixture
def timer(name):
    scenario = make_scenario(
        {"a": (0, 4)}, requests=[(0, 1, 1)], prefill=PREFILL, decode=DECODE, activation_bytes=1e6
    )
    return make_timer(scenario, physics=name)


def test_scenarios_can_name_every_profile():
    assert set(PHYSICS_PROFILES) == set(get_args(resolved.PhysicsProfile))


@pytest.fixture(params=sorted(BATCHES))
def batch(request):
    return Batch.of(list(BATCHES[request.param]))


def test_work_takes_time(timer, batch):
    end, last_start = timer.finish(5.0, batch, 1, 0)
    assert last_start == 5.0
    assert end > 5.0


def test_the_last_layer_starts_after_all_others(timer, batch):
    starts = [timer.finish(0.0, batch, layers, 0)[1] for layers in (1, 2, 3, 4)]
    ends = [timer.finish(0.0, batch, layers, 0)[0] for layers in (1, 2, 3, 4)]
    assert all(before < after for before, after in pairwise(ends))
    assert starts[0] == 0.0
    assert starts[1:] == pytest.approx(ends[:-1])


def test_tokens_that_have_come_are_no_gain(timer, batch):
    free = timer.finish(0.0, batch, 2, 0)[0]
    some = timer.finish(0.0, batch, 2, 100)[0]
    more = timer.finish(0.0, batch, 2, 1000)[0]
    assert free <= some <= more


def test_time_of_day_does_not_matter(timer, batch):
    early = timer.finish(0.0, batch, 3, 50)
    late = timer.finish(1000.0, batch, 3, 50)
    assert [at - 1000.0 for at in late] == pytest.approx(early, abs=1e-9)


def test_the_same_work_takes_the_same_time(timer, batch):
    assert timer.finish(3.0, batch, 3, 50) == timer.finish(3.0, batch, 3, 50)


def test_more_prompt_tokens_take_longer(timer):
    short, long = (timer.finish(0.0, Batch.of([prompt(n)]), 1, 0)[0] for n in (20, 90))
    assert short < long


def test_more_decodes_take_longer(timer):
    few, many = (
        timer.finish(0.0, Batch.of([decode(20, i) for i in range(n)]), 1, 0)[0] for n in (4, 9)
    )
    assert few < many


# -- the published profile, exactly


def paper():
    scenario = make_scenario(
        {"a": (0, 4)}, requests=[(0, 1, 1)], prefill=PREFILL, decode=DECODE, activation_bytes=1e6
    )
    return make_timer(scenario, physics="paper")


@pytest.mark.parametrize(
    ("members", "layer_s"),
    [
        ("a prompt", PREFILL(30)),
        ("prompts", PREFILL(50)),
        ("a decode", 2 * 0.015),
        ("decodes", DECODE(3)),
        ("both", PREFILL(30) + DECODE(2)),
    ],
)
def test_paper_layer_times(members, layer_s):
    batch = Batch.of(list(BATCHES[members]))
    assert paper().finish(7.0, batch, 1, 0) == (7.0 + layer_s, 7.0)
    second = 7.0 + layer_s
    third = second + layer_s
    assert paper().finish(7.0, batch, 3, 0) == (third + layer_s, third)  # summed one by one


def test_paper_pays_for_what_has_come_at_the_first_layer():
    layer_s = PREFILL(30)
    first = layer_s + 70 * 1e6 / 4e9 + 70 * 1e6 / 5e9
    batch = Batch.of([prompt(30)])
    assert paper().finish(7.0, batch, 2, 70) == ((7.0 + first) + layer_s, 7.0 + first)

"""What every performance model promises of its timer; a registered one is tested here."""

from __future__ import annotations

from itertools import pairwise

import pytest
from builders import capacity, decode, make_scenario, make_timer, one_pass, prompt

from helixsim.control.node_schedulers import NODE_SCHEDULERS
from helixsim.physics.engine import IDEAL_ENGINE
from helixsim.physics.performance_model import (
    PERFORMANCE_MODELS,
    ModelInputs,
    SendingCosts,
)
from helixsim.profiles.machine import LatencyProfile
from helixsim.steps import Batch, Step

PREFILL = LatencyProfile((0, 10, 100), (0.0, 0.02, 0.1))
DECODE = LatencyProfile((0, 1, 10), (0.0, 0.015, 0.03))
BATCHES = {
    "a prompt": [prompt(30)],
    "prompts": [prompt(30), prompt(20)],
    "a decode": [decode(30)],
    "decodes": [decode(30), decode(20), decode(25)],
    "both": [prompt(30), decode(20), decode(25)],
}


@pytest.fixture(params=PERFORMANCE_MODELS.names())
def name(request):
    return request.param


def scenario_of(num_layers=4):
    return make_scenario(
        {"a": (0, num_layers)},
        requests=[(0, 1, 1)],
        prefill=PREFILL,
        decode=DECODE,
        activation_bytes=1e6,
    )


@pytest.fixture
def finish(name):
    """When a batch is through a node of so many layers, and when its last layer started."""

    def finish(now, batch, num_layers, received):
        timer = make_timer(scenario_of(num_layers), physics=name)
        (end,), last_start = timer.time_step(one_pass(batch, num_layers, received), now)
        return end, last_start

    return finish


def test_a_model_says_how_nodes_and_links_are_to_be(name):
    model = PERFORMANCE_MODELS.get(name)(ModelInputs(llm=scenario_of().llm, engine=IDEAL_ENGINE))
    NODE_SCHEDULERS.check(model.node_scheduler)
    assert model.passes_beyond_answer >= 0
    assert isinstance(model.requests_wait, bool)
    assert model.sending is None or isinstance(model.sending, SendingCosts)
    assert make_timer(scenario_of(), physics=name).poll_s >= 0.0


def test_a_step_of_several_passes_has_an_end_for_each(name):
    timer = make_timer(scenario_of(), physics=name)
    prompts, decodes = (Batch.of(list(BATCHES[group])) for group in ("prompts", "decodes"))
    ends, last_start = timer.time_step(Step([prompts, decodes], (0, 4)), 5.0)
    assert len(ends) == 2
    assert 5.0 < ends[0] <= last_start < ends[1]
    one, _ = timer.time_step(one_pass(prompts, 4), 5.0)
    assert ends[0] == pytest.approx(one[0])


def test_requests_that_join_in_the_middle_cost_no_more_than_from_the_start(name):
    timer = make_timer(scenario_of(), physics=name)
    early, late = prompt(30, 0), prompt(20, 1)
    whole, _ = timer.time_step(Step([Batch.of([early, late])], (0, 2, 4)), 0.0)
    step = Step([Batch.of([early, late])], (0, 2, 4), entry_layers={early: 0, late: 2})
    joined, last_start = timer.time_step(step, 0.0)
    alone, _ = timer.time_step(one_pass(Batch.of([early]), 4), 0.0)
    assert alone[0] < joined[0] < whole[0]
    assert 0.0 < last_start < joined[0]


@pytest.fixture(params=sorted(BATCHES))
def batch(request):
    return Batch.of(list(BATCHES[request.param]))


def test_work_takes_time(finish, batch):
    end, last_start = finish(5.0, batch, 1, 0)
    assert last_start == 5.0
    assert end > 5.0


def test_the_last_layer_starts_after_all_others(finish, batch):
    starts = [finish(0.0, batch, layers, 0)[1] for layers in (1, 2, 3, 4)]
    ends = [finish(0.0, batch, layers, 0)[0] for layers in (1, 2, 3, 4)]
    assert all(before < after for before, after in pairwise(ends))
    assert starts[0] == 0.0
    assert starts[1:] == pytest.approx(ends[:-1])


def test_tokens_that_have_come_are_no_gain(finish, batch):
    free = finish(0.0, batch, 2, 0)[0]
    some = finish(0.0, batch, 2, 100)[0]
    more = finish(0.0, batch, 2, 1000)[0]
    assert free <= some <= more


def test_time_of_day_does_not_matter(finish, batch):
    early = finish(0.0, batch, 3, 50)
    late = finish(1000.0, batch, 3, 50)
    assert [at - 1000.0 for at in late] == pytest.approx(early, abs=1e-9)


def test_the_same_work_takes_the_same_time(finish, batch):
    assert finish(3.0, batch, 3, 50) == finish(3.0, batch, 3, 50)


def test_more_prompt_tokens_take_longer(finish):
    short, long = (finish(0.0, Batch.of([prompt(n)]), 1, 0)[0] for n in (20, 90))
    assert short < long


def test_more_decodes_take_longer(finish):
    few, many = (finish(0.0, Batch.of([decode(20, i) for i in range(n)]), 1, 0)[0] for n in (4, 9))
    assert few < many


# -- the published model, exactly


def paper(now, batch, num_layers, received):
    timer = make_timer(scenario_of(num_layers), physics="paper")
    return timer.time_step(one_pass(batch, num_layers, received), now)


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
    assert paper(7.0, batch, 1, 0) == ((7.0 + layer_s,), 7.0)
    second = 7.0 + layer_s
    third = second + layer_s
    assert paper(7.0, batch, 3, 0) == ((third + layer_s,), third)  # summed one by one


def test_paper_pays_for_what_has_come_at_the_first_layer():
    layer_s = PREFILL(30)
    first = layer_s + 70 * 1e6 / 4e9 + 70 * 1e6 / 5e9
    batch = Batch.of([prompt(30)])
    assert paper(7.0, batch, 2, 70) == (((7.0 + first) + layer_s,), 7.0 + first)


def test_a_batch_larger_than_the_limits_of_the_machine_takes_its_time(name):
    room = capacity(max_prompt_tokens=10, max_decode_tokens=2)
    scenario = make_scenario(
        {"a": (0, 4)}, requests=[(0, 1, 1)], prefill=PREFILL, decode=DECODE, room=room
    )
    timer = make_timer(scenario, physics=name)
    small, large = Batch.of([prompt(10)]), Batch.of([prompt(60), *(decode(5, n) for n in range(5))])
    (small_end,), _ = timer.time_step(one_pass(small, 2), 0.0)
    (large_end,), _ = timer.time_step(one_pass(large, 2), 0.0)
    assert small_end < large_end

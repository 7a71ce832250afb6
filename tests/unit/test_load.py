"""When requests are sent: exact times, and the order of draws."""

from __future__ import annotations

from itertools import count
from random import Random

import pytest
from builders import make_scenario, offline

from helixsim.control.load import Arrival, ClosedLoop, OpenLoop, slot_arrivals
from helixsim.errors import ScenarioError
from helixsim.requests import SharedPrefix, TraceRequest
from helixsim.scenario.load_generator import build_load_generator
from helixsim.scenario.offered_load import mean_request_tokens
from helixsim.scenario.workload_values import GammaArrivals, PoissonArrivals, SlotArrivals, Workload
from helixsim.traces.values import Lengths, Trace


def closed_loop(num_requests=3, mark=0.8, end_s=100.0):
    lengths = ((number, number + 1) for number in count(1))
    return ClosedLoop(
        lambda at_s: Arrival(at_s, *next(lengths)),
        start_s=20.0,
        end_s=end_s,
        num_requests=num_requests,
        spacing_s=0.1,
        high_water_mark=mark,
    )


# -- offline


def test_the_first_requests_come_one_spacing_apart():
    assert list(closed_loop().opening()) == [
        Arrival(20.0, 1, 2),
        Arrival(20.0 + 0.1, 2, 3),
        Arrival(20.0 + 0.1 * 2, 3, 4),
    ]


def test_a_short_run_has_time_for_some_of_them_only():
    load_generator = closed_loop(num_requests=5, end_s=20.1)
    assert [arrival.at_s for arrival in load_generator.opening()] == [20.0, 20.1]
    # All were drawn: what comes later does not depend on where the run ends.
    assert load_generator.after_end(20.0, 0.0, 0) == Arrival(20.1, 6, 7)


def test_one_more_after_a_prompt_and_after_an_end():
    load_generator = closed_loop()
    assert load_generator.after_prompt(30.0, 0.5, 0) == Arrival(30.0 + 0.1, 1, 2)
    assert load_generator.after_end(31.0, 0.8, 0) == Arrival(31.0 + 0.1, 2, 3)
    assert list(load_generator.later()) == []


def test_no_request_comes_above_the_mark_and_nothing_is_drawn():
    load_generator = closed_loop()
    assert load_generator.after_prompt(30.0, 0.8000001, 0) is None
    assert load_generator.after_end(30.0, 0.9, 0) is None
    assert load_generator.after_end(30.0, 0.0, 0) == Arrival(30.1, 1, 2)


def test_where_caches_are_not_counted_only_an_end_brings_one():
    load_generator = closed_loop()
    assert load_generator.after_prompt(30.0, None, 0) is None
    assert load_generator.after_end(30.0, None, 0) == Arrival(30.1, 1, 2)


def test_no_request_comes_after_the_end():
    load_generator = closed_loop(end_s=30.1)
    assert load_generator.after_end(30.0, 0.0, 0) == Arrival(30.1, 1, 2)
    assert load_generator.after_end(30.01, 0.0, 0) is None


# -- online


def test_online_requests_come_at_their_own_times():
    shared = SharedPrefix((1,), 16)
    arrivals = [Arrival(2.5, 10, 3), Arrival(2.5, 20, 4, shared), Arrival(7.0, 30, 5, None, 2)]
    load_generator = OpenLoop(iter(arrivals))
    assert list(load_generator.opening()) == []
    assert list(load_generator.later()) == arrivals
    assert load_generator.after_prompt(3.0, 0.0, 0) is None
    assert load_generator.after_end(3.0, None, 0) is None


def test_arrivals_in_slots_draw_as_published():
    """Count of the slot, then the times in it, sorted, then lengths, all from one stream."""
    counts, slot_s, rate = [0, 2, 7, 4], 3.0, 1.1
    rng, twin = Random(5), Random(5)
    drawn = list(
        slot_arrivals(
            counts,
            slot_s,
            rate,
            lambda: (rng.randint(1, 9), rng.randint(1, 9)),
            rng,
            start_s=20.0,
            duration_s=10.0,
        )
    )
    expected, carried = [], 0.0
    for slot in range(4):  # the last from 9 to 12 s: only what comes by 10 s
        wanted = counts[twin.randint(0, 3)] * (rate / (13 / 4 / 3.0)) + carried
        carried = wanted - round(wanted)
        for offset in sorted(twin.uniform(0, slot_s) for _ in range(round(wanted))):
            lengths = twin.randint(1, 9), twin.randint(1, 9)
            if slot * slot_s + offset <= 10.0:
                expected.append(Arrival(20.0 + slot * slot_s + offset, *lengths))
    assert drawn == expected
    assert len(drawn) > 5


def test_slots_keep_the_mean_rate():
    arrivals = list(
        slot_arrivals(
            [1, 5, 0, 2], 3.0, 2.5, lambda: (1, 1), Random(1), start_s=0.0, duration_s=30_000.0
        )
    )
    # 75,000 of them: the standard deviation of the sum over slots is about 0.9 percent.
    assert len(arrivals) / 30_000 == pytest.approx(2.5, rel=0.03)
    assert [a.at_s for a in arrivals] == sorted(a.at_s for a in arrivals)


# -- from a workload to a load generator


def load_generator_of(workload, duration_s=50.0, start_s=20.0, seed=3):
    scenario = make_scenario({"a": (0, 1)}, workload=workload, duration_s=duration_s)
    return build_load_generator(scenario, Random(seed), start_s)


def online(arrivals, lengths=((10, 30),), **changes):
    return Workload(
        mode="online",
        arrivals=arrivals,
        lengths=Lengths(lengths),
        **({"mean_tokens_per_s": 80.0} | changes),
    )


def test_a_trace_is_replayed_up_to_the_end():
    trace = Trace((TraceRequest(0.0, 5, 2), TraceRequest(4.0, 6, 3), TraceRequest(10.0, 7, 4)))
    workload = Workload(mode="online", trace=trace, rate_scale=2.0)
    assert list(load_generator_of(workload, duration_s=5.0).later()) == [
        Arrival(20.0, 5, 2),
        Arrival(22.0, 6, 3),
        Arrival(25.0, 7, 4),
    ]
    assert len(list(load_generator_of(workload, duration_s=4.9).later())) == 2


def test_a_trace_tells_what_prompts_share_and_priorities():
    shared = SharedPrefix((1,), 16)
    workload = Workload(mode="online", trace=Trace((TraceRequest(0.0, 20, 2, shared, 7),)))
    (arrival,) = load_generator_of(workload, duration_s=5.0).later()
    assert arrival == Arrival(20.0, 20, 2, shared, 7)


def test_an_offline_workload_feeds_from_the_start_to_the_end():
    load_generator = load_generator_of(
        offline([(5, 2)], initial_requests=2, spacing_s=0.5), duration_s=50.0
    )
    assert list(load_generator.opening()) == [Arrival(20.0, 5, 2), Arrival(20.5, 5, 2)]
    assert load_generator.after_end(69.5, 0.0, 0) == Arrival(70.0, 5, 2)
    assert load_generator.after_end(69.6, 0.0, 0) is None
    assert load_generator.after_end(30.0, 0.81, 0) is None  # the scenario's mark


@pytest.mark.parametrize("arrivals", [PoissonArrivals(), GammaArrivals(2.0), SlotArrivals((3, 1))])
def test_arrivals_follow_the_mean_rate(arrivals):
    # 80 tokens/s in requests of 40 tokens: 2 a second.
    times = [a.at_s for a in load_generator_of(online(arrivals), duration_s=20_000.0).later()]
    assert len(times) / 20_000 == pytest.approx(2.0, rel=0.05)
    assert times == sorted(times)
    assert times[0] >= 20.0
    assert times[-1] <= 20_020.0


def test_the_same_seed_gives_the_same_arrivals():
    workload = online(PoissonArrivals(), lengths=((10, 30), (20, 60)))
    first, again, other = (
        list(load_generator_of(workload, seed=seed).later()) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_mean_request():
    assert mean_request_tokens(online(PoissonArrivals(), lengths=((10, 30), (20, 60))), 1.0) == 60.0
    assert mean_request_tokens(Workload(mode="online"), 1.0) == 990.0


@pytest.mark.parametrize(
    ("workload", "where"),
    [
        (Workload(mode="offline"), "workload.lengths"),
        (online(None), "workload"),
        (online(PoissonArrivals(), mean_tokens_per_s=None), "workload"),
    ],
)
def test_what_a_workload_lacks_is_named(workload, where):
    with pytest.raises(ScenarioError) as caught:
        load_generator_of(workload)
    assert caught.value.where == where

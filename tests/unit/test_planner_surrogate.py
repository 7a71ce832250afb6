"""The surrogate: cases that can be calculated by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import exp, inf, isfinite

import pytest
from builders import HOST, capacity, make_scenario, make_topology, offline

from helixsim.control.control_plane import followed_flow
from helixsim.physics.engine import EngineCosts, GpuCosts
from helixsim.planner.problem import planning_problem
from helixsim.planner.simulated.estimates import NOTHING
from helixsim.planner.simulated.surrogate import Surrogate
from helixsim.profiles.machine import LatencyProfile
from helixsim.requests import TraceRequest
from helixsim.scenario.load import load_scenario
from helixsim.scenario.scheduler_settings import KvSettings
from helixsim.scenario.workload_values import Workload
from helixsim.traces.values import Trace

PROMPT, OUTPUT = 10, 4
COPIED_S = PROMPT * 8.0 * (1 / 4e9 + 1 / 5e9)
"""Seconds of copying the activations of a prompt, 8 bytes per token, under paper physics."""
ONE = {"a": (0, 2)}
CHAIN = {"a": (0, 1), "b": (1, 2)}
TWINS = {"a": (0, 1), "b": (1, 2), "c": (1, 2), "d": (0, 1)}


def scenario_of(layers, *, kv=10_000, **options):
    """10 ms per prompt token and layer, 20 ms per decode and layer."""
    settings = {
        "workload": offline([(PROMPT, OUTPUT)]),
        "room": capacity(kv_token_layers=kv),
        "prefill": LatencyProfile((0, 1000), (0.0, 10.0)),
        "decode": LatencyProfile((0, 1000), (0.02, 0.02)),
        "link": (1e6, 0.003),
        "nics": dict.fromkeys([*layers, HOST], 1e7),
    }
    return make_scenario(layers, **(settings | options))


def estimated(layers, **options):
    """The estimate from ranges."""
    scenario = scenario_of(layers, **options)
    problem = planning_problem(scenario)
    return Surrogate(scenario, problem).of_ranges(problem.ranges(scenario.placement))


def estimated_by_flow(scenario):
    topology = make_topology(scenario)
    problem = planning_problem(scenario)
    flow = followed_flow(scenario, topology)
    return Surrogate(scenario, problem).of_flow(topology, flow, scenario.scheduler.min_flow_share)


def seconds_per_request(estimate):
    return estimate.prompt_latency_s + OUTPUT * estimate.decode_latency_s


def by_hand(rate, *, layers=2, latency_s=0.003, bandwidth=1e6):
    """Prompt and decode latency through one node with fast links, at a rate of requests."""
    prompt_s = layers * 0.1 + COPIED_S
    busy = rate * prompt_s
    free = 1 - busy

    def batch_s(count):
        """The paper's physics counts a single decode twice, and copies what is received."""
        return layers * 0.02 * (2 if count == 1 else 1) + count * COPIED_S / PROMPT

    batch, decode_s = 10, batch_s(10)
    for _ in range(3):
        batch = max(1.0, rate * OUTPUT * decode_s / free)
        decode_s = batch_s(int(batch))
    waiting = decode_s / 2 * min(1.0, rate * OUTPUT / batch * decode_s)
    prompt = prompt_s + decode_s / 2 + rate * prompt_s**2 / 2 / free + waiting
    decode = decode_s + waiting + (1 - exp(-busy)) * prompt_s / 2 / free
    there_and_back = 2 * latency_s
    return (
        prompt + there_and_back + 2 * PROMPT * 2.0 / bandwidth,
        decode + there_and_back + 2 * 2.0 / bandwidth,
    )


# -- by hand


@pytest.mark.parametrize("kv", [28 * 5, 28 * 12, 28 * 40])
def test_a_node_by_hand(kv):
    estimate = estimated(ONE, kv=kv)
    rate = estimate.decode_tokens_per_s / OUTPUT
    prompt_s, decode_s = by_hand(rate)
    assert estimate.prompt_latency_s == pytest.approx(prompt_s, rel=1e-9)
    assert estimate.decode_latency_s == pytest.approx(decode_s, rel=1e-9)
    # A request of 10 + 4 tokens on two layers takes 28 token-layers; the load generator fills 80 %.
    most = 0.8 * kv / 28
    assert estimate.requests_in_flight == pytest.approx(
        rate * (prompt_s + OUTPUT * decode_s), rel=1e-9
    )
    assert most * 0.998 <= estimate.requests_in_flight <= most


def test_a_node_with_kv_to_spare_is_busy_with_prompts():
    estimate = estimated(ONE, kv=10**7)
    rate = estimate.decode_tokens_per_s / OUTPUT
    assert rate == pytest.approx(0.97 / (0.2 + COPIED_S))
    assert (estimate.prompt_latency_s, estimate.decode_latency_s) == pytest.approx(by_hand(rate))
    assert estimate.requests_in_flight < 0.8 * 10**7 / 28


def test_a_batch_that_is_full_bounds_the_rate():
    small = capacity(kv_token_layers=10**7, max_decode_tokens=2)
    estimate = estimated(ONE, room=small)
    rate = estimate.decode_tokens_per_s / OUTPUT
    # Batches of at most two decodes of 40 ms, in the time that prompts leave.
    assert 0 < rate * OUTPUT * 0.04 / (1 - rate * (0.2 + COPIED_S)) <= 2
    roomy = estimated(ONE, kv=10**7)
    assert estimate.decode_tokens_per_s < roomy.decode_tokens_per_s


def test_the_scheduler_settings_count():
    scenario = scenario_of(ONE, kv=28 * 36, high_water_mark=0.5)
    problem = planning_problem(scenario)
    ranges = problem.ranges(scenario.placement)
    estimate = Surrogate(scenario, problem).of_ranges(ranges)
    assert estimate.requests_in_flight == pytest.approx(0.5 * 36, rel=2e-3)
    longer = replace(
        scenario,
        scheduler=replace(
            scenario.scheduler, kv=KvSettings(high_water_mark=0.5, expected_output_ratio=3.5)
        ),
    )
    estimate = Surrogate(longer, problem).of_ranges(ranges)
    assert estimate.requests_in_flight == pytest.approx(0.5 * 36 * 14 / 24, rel=2e-3)


def test_given_lengths_replace_the_workloads_means():
    scenario = scenario_of(ONE)
    problem = planning_problem(scenario)
    ranges = problem.ranges(scenario.placement)
    usual = Surrogate(scenario, problem).of_ranges(ranges)
    longer = Surrogate(scenario, problem, mean_prompt_tokens=20, mean_output_tokens=2).of_ranges(
        ranges
    )
    assert longer.prompt_latency_s > usual.prompt_latency_s
    same = Surrogate(
        scenario, problem, mean_prompt_tokens=PROMPT, mean_output_tokens=OUTPUT
    ).of_ranges(ranges)
    assert same == usual


# -- the performance model is asked


def prompt_times(scenario):
    """Seconds of a prompt on a first, a middle and a last node, and on one with all layers."""
    surrogate = Surrogate(scenario, planning_problem(scenario))
    return [surrogate.times.of(0, *span)[0] for span in ((0, 1), (1, 2), (2, 3), (0, 3))]


LINE = {"a": (0, 1), "b": (1, 2), "c": (2, 3)}


def test_prompts_under_paper_physics_by_hand():
    """0.1 s on each layer; 10 tokens x 8 bytes at 4 and 5 GB/s."""
    assert prompt_times(scenario_of(LINE)) == pytest.approx(
        [0.1 + 36e-9, 0.1 + 36e-9, 0.1 + 36e-9, 0.3 + 36e-9], rel=1e-12
    )


def test_prompts_under_calibrated_physics_by_hand():
    """10 tokens x 8 bytes at 800 B/s: 0.1 s into the GPU, and 0.1 s out of it."""
    engine = EngineCosts(copy_bytes_per_s=800.0)
    scenario = replace(scenario_of(LINE, kv=10**7), physics="calibrated", engine=engine)
    assert prompt_times(scenario) == pytest.approx([0.2, 0.3, 0.2, 0.3])
    # Host costs of the engine count, too: a quarter of a second for each layer.
    slow = EngineCosts(copy_bytes_per_s=800.0, other_gpus=GpuCosts(layer_pass_s=0.25))
    scenario = replace(scenario, engine=slow)
    assert prompt_times(scenario) == pytest.approx([0.45, 0.55, 0.45, 1.05])


def test_decodes_are_timed_with_their_context():
    scenario = scenario_of(LINE)
    times = Surrogate(scenario, planning_problem(scenario)).times.of(0, 0, 1)[1]
    # The paper's physics counts a single decode twice; copies take 3.6 ns a token.
    assert times(1) == pytest.approx(0.04 + 3.6e-9, rel=1e-12)
    assert times(7) == pytest.approx(0.02 + 7 * 3.6e-9, rel=1e-12)


# -- the offered load


def online(**settings):
    return Workload(mode="online", mean_prompt_tokens=PROMPT, mean_output_tokens=OUTPUT, **settings)


def test_throughput_does_not_exceed_the_offered_load():
    estimate = estimated(ONE, workload=online(mean_tokens_per_s=7.0))
    assert estimate.decode_tokens_per_s == pytest.approx(0.5 * OUTPUT)  # 7 / 14 requests a second
    assert (estimate.prompt_latency_s, estimate.decode_latency_s) == pytest.approx(by_hand(0.5))


def test_a_trace_gives_the_offered_load():
    trace = Trace(tuple(TraceRequest(4.0 * n, PROMPT, OUTPUT) for n in range(101)))
    usual = estimated(ONE, workload=online(trace=trace))
    assert usual.decode_tokens_per_s == pytest.approx(trace.rate_per_s * OUTPUT)
    doubled = estimated(ONE, workload=online(trace=trace, rate_scale=2.0))
    assert doubled.decode_tokens_per_s == pytest.approx(2 * usual.decode_tokens_per_s)


def test_an_offered_load_beyond_the_capacity():
    flooded = estimated(ONE, workload=online(mean_tokens_per_s=1e6), kv=28 * 12)
    # Online, the load generator's high-water mark does not apply: 85 % instead of 80 %.
    assert flooded.requests_in_flight == pytest.approx(0.85 * 12, rel=2e-3)


# -- monotonicity


def test_more_kv_is_never_worse():
    found = [estimated(TWINS, kv=kv) for kv in (20, 50, 100, 200, 400, 1000, 4000, 10**6)]
    for less, more in itertools.pairwise(found):
        assert more.requests_in_flight >= less.requests_in_flight * (1 - 1e-3)
        assert more.decode_tokens_per_s >= less.decode_tokens_per_s * (1 - 1e-3)
    assert found[-1].decode_tokens_per_s > 2 * found[0].decode_tokens_per_s


@pytest.mark.parametrize("layers", [CHAIN, TWINS])
def test_a_higher_latency_takes_longer(layers):
    found = [estimated(layers, kv=200, link=(1e6, latency)) for latency in (0, 0.01, 0.1, 1.0)]
    for quick, slow in itertools.pairwise(found):
        assert seconds_per_request(slow) > seconds_per_request(quick)
        assert slow.decode_tokens_per_s < quick.decode_tokens_per_s


@pytest.mark.parametrize("pair", [(HOST, "a"), ("a", "b"), ("b", HOST)])
def test_a_slower_link_takes_longer_and_bounds_the_rate(pair):
    """Also the links with the coordinator, where only token ids pass."""
    usual = dict.fromkeys([(HOST, "a"), ("a", "b"), ("b", HOST)], (1e6, 0.003))
    token_bytes = 2.0 if HOST in pair else 10.0
    found = []
    for bandwidth in (1e6, 1e3, 100.0, 20.0, 4.0):
        estimate = estimated(CHAIN, links=usual | {pair: (bandwidth, 0.003)}, kv=10**4)
        rate = estimate.decode_tokens_per_s / OUTPUT
        assert rate * (PROMPT + OUTPUT) * token_bytes <= bandwidth
        assert 0 < estimate.decode_latency_s < inf
        found.append(estimate)
    for quick, slow in itertools.pairwise(found):
        assert slow.decode_tokens_per_s <= quick.decode_tokens_per_s
    assert found[-1].prompt_latency_s > found[0].prompt_latency_s


# -- estimates from ranges and from a flow


@pytest.mark.parametrize("layers", [ONE, CHAIN])
@pytest.mark.parametrize("kv", [100, 10**6])
def test_both_estimates_agree_where_there_is_one_route(layers, kv):
    scenario = scenario_of(layers, kv=kv)
    by_flow, by_ranges = estimated_by_flow(scenario), estimated(layers, kv=kv)
    for name in ("decode_tokens_per_s", "decode_latency_s", "prompt_latency_s"):
        assert getattr(by_flow, name) == pytest.approx(getattr(by_ranges, name), rel=1e-6), name


@pytest.mark.parametrize("kv", [100, 10**6])
def test_both_estimates_agree_where_the_flow_is_split_evenly(kv):
    scenario = scenario_of(TWINS, kv=kv)
    scheduler = replace(scenario.scheduler, flow_split="balanced")
    by_flow = estimated_by_flow(replace(scenario, scheduler=scheduler))
    by_ranges = estimated(TWINS, kv=kv)
    for name in ("decode_tokens_per_s", "decode_latency_s", "prompt_latency_s"):
        assert getattr(by_flow, name) == pytest.approx(getattr(by_ranges, name), rel=0.02), name


def test_both_estimates_agree_on_a_published_cluster():
    scenario = load_scenario("single24-llama2-70b-helix-offline", ["scheduler.flow_split=balanced"])
    problem = planning_problem(scenario)
    ranges = problem.ranges(scenario.placement)
    by_ranges = Surrogate(scenario, problem).of_ranges(ranges)
    by_flow = estimated_by_flow(scenario)
    assert by_flow.decode_tokens_per_s == pytest.approx(by_ranges.decode_tokens_per_s, rel=0.15)
    assert by_flow.decode_latency_s == pytest.approx(by_ranges.decode_latency_s, rel=0.15)


def test_links_with_small_shares_of_the_flow_are_not_used():
    """The scheduler does not use such links either."""
    layers = {"a": (0, 1), "b": (1, 2), "c": (1, 2)}
    links = {
        (HOST, "a"): (1e6, 0.003),
        ("a", "b"): (1e6, 0.003),
        ("b", HOST): (1e6, 0.003),
        ("a", "c"): (0.01, 500.0),
        ("c", HOST): (1e6, 0.003),
    }
    scenario = scenario_of(layers, links=links)
    estimate = estimated_by_flow(scenario)
    assert estimate.decode_latency_s < 10.0
    alone = scenario_of({"a": (0, 1), "b": (1, 2)}, links=dict(list(links.items())[:3]))
    assert estimate.decode_tokens_per_s == pytest.approx(
        estimated_by_flow(alone).decode_tokens_per_s, rel=1e-3
    )


# -- placements that no request can pass


def test_no_request_passes_a_gap():
    scenario = scenario_of(CHAIN)
    estimator = Surrogate(scenario, planning_problem(scenario))
    for ranges in ({}, {0: (0, 1)}, {1: (1, 2)}, {0: (0, 1), 1: (0, 1)}):
        assert estimator.of_ranges(ranges) == NOTHING
    assert (NOTHING.decode_tokens_per_s, NOTHING.requests_in_flight) == (0.0, 0.0)
    assert (NOTHING.decode_latency_s, NOTHING.prompt_latency_s) == (inf, inf)


def test_no_request_passes_where_links_are_missing():
    layers = {"a": (0, 1), "b": (1, 2), "c": (0, 2)}
    links = dict.fromkeys([(HOST, "c"), ("c", HOST), (HOST, "a"), ("b", HOST)], (1e6, 0.0))
    scenario = scenario_of(layers, links=links)
    estimator = Surrogate(scenario, planning_problem(scenario))
    assert estimator.of_ranges({0: (0, 1), 1: (1, 2)}) == NOTHING
    assert isfinite(estimator.of_ranges({2: (0, 2)}).decode_latency_s)


def test_a_cache_smaller_than_a_request():
    estimate = estimated(ONE, kv=20)  # a request takes 28
    assert 0 < estimate.requests_in_flight <= 0.8 * 20 / 28


def test_it_knows_the_scheduler_of_the_scenario():
    """Streamed chunks and exact admission serve twice the tokens; so it is for the surrogate."""
    estimates = {}
    for preset in ("published", "tuned"):
        scenario = load_scenario(
            "single24-llama2-70b-helix-offline", [f"scheduler.preset={preset}"]
        )
        problem = planning_problem(scenario)
        surrogate = Surrogate(scenario, problem)
        estimates[preset] = surrogate.of_ranges(problem.ranges(scenario.placement))
    # Simulated, by `python tests/bench/scheduling.py offline`: 249 and 484 tokens/s.
    assert estimates["published"].decode_tokens_per_s == pytest.approx(249, rel=0.25)
    assert estimates["tuned"].decode_tokens_per_s == pytest.approx(484, rel=0.25)
    assert estimates["tuned"].decode_latency_s == pytest.approx(0.78, rel=0.25)

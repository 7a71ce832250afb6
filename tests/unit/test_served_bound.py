"""Bounds on served tokens, reckoned by hand; cuts between regions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import HOST, capacity, make_scenario, offline
from planner_problems import toy_problem

from helixsim import load_scenario
from helixsim.physics.engine import EngineCosts, GpuCosts
from helixsim.planner.max_flow.region_cuts import (
    crossing_tokens_per_s,
    fast_groups,
    least_crossings,
)
from helixsim.planner.max_flow.upper_bound import upper_bound
from helixsim.planner.problem import planning_problem
from helixsim.planner.served.node_rates import UnboundedError
from helixsim.planner.served.occupancy import segments, tangents
from helixsim.planner.served.pass_costs import Line, lower_lines
from helixsim.planner.served.request_mix import mix_of_lengths, request_mix
from helixsim.planner.served_bound import served_bound, served_bound_of_placement
from helixsim.profiles.machine import LatencyProfile
from helixsim.scenario.scheduler_settings import SchedulerSettings

WHOLE = {"a": (0, 2)}


def scenario_of(layers=WHOLE, pairs=((10, 4),), **changes):
    return make_scenario(layers, workload=offline(pairs), **changes)


# -- requests as means


def test_the_means_of_some_requests():
    mix = mix_of_lengths([(10, 4), (20, 2)], further_decodes=1, expected_output=3.0)
    assert (mix.prompt_tokens, mix.decodes, mix.longest_prompt) == (15, 3, 20)
    # Before its decodes, the first holds 10, 11, 12, 13 tokens; the second, 20 and 21.
    assert mix.context == pytest.approx((46 + 41) / 6)
    assert mix.booked == pytest.approx((4 * 13 + 2 * 23) / 6)
    assert mix.booked_prefill == pytest.approx((10 * 13 + 20 * 23) / 30)


def test_prompts_that_may_be_cached_cost_nothing():
    found = request_mix(
        load_scenario("quickstart", ["workload.shared_prefix={tokens: 100, prompts: 2}"])
    )
    assert found.prompt_tokens == 0
    assert found.decodes > 0


# -- lines below times


def test_lines_lie_below_a_function_and_touch_it():
    sizes, seconds = [1, 2, 3, 4], np.array([3.0, 3.0, 7.0, 8.0])
    lines = lower_lines(sizes, seconds)
    for size, value in zip(sizes, seconds, strict=True):
        heights = [line.per_pass_s + line.per_item_s * size for line in lines]
        assert max(heights) <= value + 1e-12
    assert Line(0.0, 1.5) in lines  # from the origin through (2, 3)
    assert Line(3.0, 0.0) in lines
    assert all(line.per_pass_s >= 0 for line in lines)


def test_tangents_lie_below_the_decodes_in_execution():
    """Passes of 2 + d seconds, one decode a request, no prefill: 2 w + 2 w^2 / (1 - w)."""
    line = Line(2.0, 1.0)
    found = tangents([line], decodes=1.0, context=0.0, prefill_s=0.0, most=0.9)
    for rate in (0.0, 0.1, 0.5, 0.85):
        exact = rate * (2 + 2 * rate / (1 - rate))
        highest = max(tangent(rate) for tangent in found)
        assert highest <= exact + 1e-9
        assert highest > 0.97 * exact - 0.01
    stretches = segments(found, 0.9)
    assert sum(stretch.width for stretch in stretches) == pytest.approx(0.9)
    assert [s.slope for s in stretches] == sorted(s.slope for s in stretches)


# -- a placement


def test_one_node_by_hand():
    """Prefill 10 s a layer; decodes 1 s each in batches of two or more; two layers."""
    bound = served_bound_of_placement(scenario_of())
    assert bound.requests_per_s == pytest.approx(1 / (2 * (10 + 4 * 1)), rel=1e-5)
    assert bound.decode_tokens_per_s == pytest.approx(4 / 28, rel=1e-5)
    assert bound.output_tokens_per_s == pytest.approx(5 / 28, rel=1e-5)
    assert bound.limited_by == ("machines",)


def test_a_single_decode_counts_double_where_batches_hold_one():
    bound = served_bound_of_placement(scenario_of(room=capacity(max_decode_tokens=1)))
    assert bound.requests_per_s == pytest.approx(1 / (2 * (10 + 4 * 2)), rel=1e-5)


def test_the_kv_cache_limits_how_many_share_a_pass():
    """A pass of decodes takes 8 s and 1 s for each; of requests of 14 tokens, two fit 28."""
    flat = LatencyProfile((0, 1, 1000), (8.0, 9.0, 1008.0))
    kv = int(28 * 2 / 0.85) + 1
    scenario = scenario_of(decode=flat, room=capacity(kv_token_layers=kv))
    bound = served_bound_of_placement(scenario)
    # By passes: each decode has at least half of the 8 s, its own second, and the prefill 10 s.
    by_passes = 1 / (2 * (10 + 4 * (8 / 2 + 1)))
    assert bound.requests_per_s == pytest.approx(by_passes, rel=0.02)
    roomy = served_bound_of_placement(scenario_of(decode=flat))
    assert roomy.requests_per_s > 1.5 * bound.requests_per_s


def test_the_kv_cache_limits_what_is_in_flight():
    """A decode takes 100 s on links: of requests with 14 tokens, 10 are in flight at most."""
    kv = int(140 * 2 / 0.85) + 1
    links = {(HOST, "a"): (1e9, 50.0), ("a", HOST): (1e9, 50.0)}
    bound = served_bound_of_placement(scenario_of(links=links, room=capacity(kv_token_layers=kv)))
    # A request is in flight for four decodes of 100 s and the shortest step, 2 s, and a prefill.
    assert bound.requests_per_s == pytest.approx(10 / (4 * 102 + 20), rel=0.03)
    assert bound.limited_by == ("KV cache",)


def test_a_slow_link_limits_a_chain():
    """A request sends 14 tokens of 10 bytes over the link."""
    layers = {"a": (0, 1), "b": (1, 2)}
    links = {(HOST, "a"): (1e9, 0.0), ("a", "b"): (1.0, 0.0), ("b", HOST): (1e9, 0.0)}
    bound = served_bound_of_placement(scenario_of(layers, links=links))
    assert bound.requests_per_s == pytest.approx(1 / 140, rel=1e-5)
    assert "links" in bound.limited_by


def test_calibrated_passes_with_host_costs():
    engine = EngineCosts(
        scheduler="prototype", other_machine_types=GpuCosts(per_layer_and_pass=0.5)
    )
    scenario = replace(scenario_of(room=capacity(max_decode_tokens=2)), physics="calibrated")
    scenario = replace(scenario, engine=engine)
    # Prefills of 4,096 tokens share 0.5 s; two decodes share it, and take 2 s; three decodes.
    prefill_s = 10 * (1 + 0.5 / 4096)
    bound = served_bound_of_placement(scenario)
    assert bound.requests_per_s == pytest.approx(1 / (2 * (prefill_s + 3 * 1.25)), rel=1e-3)


def test_other_physics_have_no_bound():
    scenario = replace(scenario_of(), scheduler=SchedulerSettings(node="mine"))
    with pytest.raises(UnboundedError, match="'mine'"):
        served_bound_of_placement(scenario)


# -- any placement


def test_two_nodes_serve_twice_as_much():
    layers = {"a": (0, 2), "b": (0, 2)}
    scenario = scenario_of(layers)
    own = served_bound_of_placement(scenario)
    most = served_bound(scenario, planning_problem(scenario, partial_inference=True))
    assert own.requests_per_s == pytest.approx(2 / 28, rel=1e-5)
    assert most.requests_per_s == pytest.approx(own.requests_per_s, rel=1e-3)


@pytest.mark.parametrize("physics", ["paper", "calibrated"])
def test_published_placements_are_within_the_bound_of_their_cluster(physics):
    scenario = load_scenario("single24-llama2-70b-helix-offline", [f"physics={physics}"])
    own = served_bound_of_placement(scenario)
    most = served_bound(scenario, planning_problem(scenario, partial_inference=True))
    assert 250 < own.decode_tokens_per_s < most.decode_tokens_per_s


# -- cuts between regions


def two_groups(across: float):
    """Two nodes of two layers each in two regions, for an LLM of four layers."""
    nodes = ("a", "b", "c", "d")
    links = {(one, other): (across, 0.0) for one in ("a", "b") for other in ("c", "d")}
    links |= {(other, one): value for (one, other), value in links.items()}
    return toy_problem(dict.fromkeys(nodes, 2), 8, links=links)


def test_a_cut_between_regions_bounds_the_flow():
    """Each region holds 4 of 8 layers, so all flow crosses: 4 links of 0.01 tokens/s."""
    problem = two_groups(0.1)  # bytes per second, at 10 bytes a token
    assert fast_groups(problem) == [[0, 1], [2, 3]]
    assert least_crossings(problem, [[0, 1], [2, 3]]) == 1
    most = np.full(4, 10.0)
    assert crossing_tokens_per_s(problem, [[0, 1], [2, 3]], most) == pytest.approx(0.04 * 2)
    wide, narrow = upper_bound(two_groups(1e3)), upper_bound(two_groups(0.01))
    assert narrow.limit == "links between regions"
    assert narrow.tokens_per_s == pytest.approx(0.008)
    assert narrow.tokens_per_s < wide.tokens_per_s

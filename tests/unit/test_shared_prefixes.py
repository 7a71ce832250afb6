"""Whole runs whose prompts share prefixes: what is found, what is evicted, what results tell."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from builders import capacity, make_scenario

from helixsim import simulate
from helixsim.metrics.summary_text import summary_text
from helixsim.physics.engine import EngineCosts
from helixsim.profiles.machine import LatencyProfile
from helixsim.requests import SharedPrefix, TraceRequest
from helixsim.scenario.workload_values import CommonPrefixes, PoissonArrivals, Turns, Workload
from helixsim.traces.arrivals import poisson
from helixsim.traces.distributions import Fixed, Times
from helixsim.traces.values import Lengths, Trace

pytestmark = pytest.mark.usefixtures("checked_runs")

MILLISECOND = LatencyProfile((0, 10_000), (0.0, 10.0))
"""For each token of a prefill."""
DECODES = LatencyProfile((0, 100), (0.005, 0.005))


def served(requests=None, *, layers=None, kv_tokens=10_000, engine=None, **changes):
    """The result of serving requests on nodes with the node scheduler `vllm`."""
    if requests is not None:
        changes["workload"] = Workload(
            mode="online",
            trace=Trace(tuple(requests)),
            mean_prompt_tokens=512,
            mean_output_tokens=8,
        )
    scenario = make_scenario(
        layers or {"a": (0, 1)},
        prefill=MILLISECOND,
        decode=DECODES,
        room=capacity(kv_token_layers=kv_tokens),
        drain=True,
        **({"policy": "random", "duration_s": 1000.0, "sample_interval_s": 100.0} | changes),
    )
    return simulate(
        replace(
            scenario,
            # Of a usual size beside its hidden states: attention to what is cached is cheap.
            llm=replace(scenario.llm, layer_bytes=1e9),
            physics="calibrated",
            engine=engine or EngineCosts(),
            scheduler=replace(scenario.scheduler, node="vllm"),
        )
    )


def asked(at_s, key, prompt_tokens, output_tokens=1, priority=0):
    """A request whose first 512 tokens are known by a key."""
    return TraceRequest(at_s, prompt_tokens, output_tokens, SharedPrefix((key,), 512), priority)


def test_the_second_of_two_requests_finds_32_blocks():
    result = served([asked(0, 1, 600), asked(5, 1, 600)])
    assert list(result.requests["cached_tokens"]) == [0, 512]
    # 600 tokens of one, 88 of the other, and the network.
    assert list(result.requests["ttft_s"]) == pytest.approx([0.602, 0.09], abs=0.003)
    assert result.summary["prefix_cache_hit_rate"] == 512 / 1200
    assert "KV caches: 42.7% of prompt tokens found in prefix caches" in summary_text(
        result.summary
    )


def test_one_token_at_least_is_computed():
    result = served([asked(0, 1, 512), asked(5, 1, 512)])
    assert list(result.requests["cached_tokens"]) == [0, 496]


def test_the_least_recently_used_blocks_are_evicted_from_the_end():
    # 75 blocks. Requests take 33: the second the next 33, the third the last nine and then 24 of
    # the first, from its end. So nine of these are left when its prefix comes again.
    result = served([asked(5 * n, key, 528) for n, key in enumerate("abca")], kv_tokens=1200)
    assert list(result.requests["cached_tokens"]) == [0, 0, 0, 9 * 16]
    assert result.summary["prefix_cache_hit_rate"] == 144 / (4 * 528)


def test_requests_without_a_prefix_share_nothing():
    result = served([TraceRequest(0, 600, 2), TraceRequest(5, 600, 2)])
    assert list(result.requests["cached_tokens"]) == [0, 0]
    assert result.summary["prefix_cache_hit_rate"] == 0
    assert "KV caches" not in summary_text(result.summary)


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": EngineCosts(enable_prefix_caching=False)},
        {"layers": {"a": (0, 1), "b": (1, 2)}},
    ],
    ids=["switched off", "no node holds all layers"],
)
def test_without_a_prefix_cache_there_is_no_hit_rate(changes):
    result = served([asked(0, 1, 600), asked(5, 1, 600)], **changes)
    assert list(result.requests["cached_tokens"]) == [0, 0]
    assert result.summary["prefix_cache_hit_rate"] is None


def test_the_paper_has_no_prefix_cache():
    result = simulate(make_scenario({"a": (0, 1)}, requests=[(0, 10, 1)], drain=True))
    assert result.summary["prefix_cache_hit_rate"] is None
    assert result.summary["preemptions"] == 0


def test_preemptions_are_summed_up():
    # Two answers of 600 tokens in 1000 tokens of KV cache.
    result = served([TraceRequest(0, 64, 600), TraceRequest(0, 64, 600)], kv_tokens=1000)
    counts = list(result.requests["preemptions"])
    assert result.summary["preemptions"] == sum(counts) == 1
    assert "1 preemption" in summary_text(result.summary)


def test_requests_of_high_priority_go_first():
    engine = EngineCosts(scheduling="priority", max_num_seqs=1)
    requests = [asked(0, 0, 600, 2), asked(0.1, 1, 600, 2), asked(0.2, 2, 600, 2, -1)]
    ends = list(served(requests, engine=engine).requests["end_s"])
    assert ends[0] < ends[2] < ends[1]


def test_a_next_turn_finds_the_conversation_so_far():
    workload = Workload(
        mode="online",
        arrivals=PoissonArrivals(),
        lengths=Lengths(((160, 33),)),
        conversations=Turns(Fixed(3), Times(4.0)),
        mean_tokens_per_s=40.0,
    )
    frame = served(workload=workload, duration_s=300.0).requests
    first = frame[frame["prompt_tokens"] == 160]
    second = frame[frame["prompt_tokens"] == 353]
    third = frame[frame["prompt_tokens"] == 546]
    assert len(first) >= len(second) >= len(third) > 0
    assert len(first) + len(second) + len(third) == len(frame)
    # The last token of an answer is computed with the next turn: 192 and 385 tokens are in the KV
    # cache, 12 and 24 full blocks.
    assert set(first["cached_tokens"]) == {0}
    assert set(second["cached_tokens"]) == {192}
    assert set(third["cached_tokens"]) == {384}


@pytest.fixture(scope="module")
def by_policy():
    """Two replicas, each with room for about half of eight texts: the results by policy."""
    times = poisson(3.0, Random(1))
    requests = [TraceRequest(next(times), 576, 8) for _ in range(400)]
    workload = Workload(
        mode="online",
        trace=Trace(tuple(requests)),
        shared_prefix=CommonPrefixes(tokens=512, prompts=8),
        mean_prompt_tokens=576,
        mean_output_tokens=8,
    )
    return {
        policy: served(
            workload=workload, layers={"a": (0, 1), "b": (0, 1)}, kv_tokens=3200, policy=policy
        )
        for policy in ("prefix_aware", "maxflow", "random", "shortest_queue")
    }


@pytest.mark.parametrize("other", ["maxflow", "random", "shortest_queue"])
def test_prefix_aware_routing_finds_more_and_answers_sooner(by_policy, other):
    best, plain = by_policy["prefix_aware"].summary, by_policy[other].summary
    assert best["requests"]["completed"] == plain["requests"]["completed"] == 400
    # 512 of 576 tokens can be found: 89 %.
    assert best["prefix_cache_hit_rate"] > 0.8
    assert plain["prefix_cache_hit_rate"] < 0.65
    assert best["ttft_s"]["mean"] < plain["ttft_s"]["mean"] / 2


def test_prefix_aware_routing_balances_the_load(by_policy):
    counts = by_policy["prefix_aware"].requests["route"].value_counts()
    assert min(counts) > 150

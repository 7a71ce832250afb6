"""Load in which prompts begin alike: texts, and conversations."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import fmean, pstdev

import pytest
from builders import make_scenario, offline

from helixsim.control.conversations import CommonBeginnings, Conversations, NewTurn, Start
from helixsim.control.load import Arrival
from helixsim.errors import ScenarioError
from helixsim.models.simulation import simulate
from helixsim.requests import SharedPrefix, TraceRequest
from helixsim.scenario.load import load_scenario
from helixsim.scenario.load_generator import build_load_generator
from helixsim.scenario.offered_load import mean_request_tokens
from helixsim.scenario.workload_values import CommonPrefixes, PoissonArrivals, Turns, Workload
from helixsim.traces.distributions import Fixed, Times, Uniform
from helixsim.traces.rates import ConstantRate
from helixsim.traces.values import Lengths, Trace


def load_generator_of(workload, duration_s=50.0):
    scenario = make_scenario({"a": (0, 1)}, workload=workload, duration_s=duration_s)
    return build_load_generator(scenario, Random(3), 20.0)


def online(lengths=((10, 30), (50, 3)), **changes):
    return Workload(
        mode="online",
        arrivals=PoissonArrivals(),
        lengths=Lengths(lengths),
        mean_tokens_per_s=80.0,
        **changes,
    )


def test_prompts_begin_with_one_of_several_texts():
    shared = CommonBeginnings(2, 40, Random(1))
    prefixes = [shared.draw(100) for _ in range(20)]
    assert {prefix.block_tokens for prefix in prefixes} == {16}
    # 40 tokens are two blocks of 16, and eight tokens that no block holds alone.
    assert {prefix.keys for prefix in prefixes} == {(("beginning", n),) * 2 for n in (0, 1)}
    assert len(shared.draw(20).keys) == 1
    assert shared.draw(15) is None


def test_texts_change_neither_arrivals_nor_lengths():
    with_texts = online(shared_prefix=CommonPrefixes(tokens=16, prompts=3))
    plain = list(load_generator_of(online(), duration_s=50.0).later())
    found = list(load_generator_of(with_texts, duration_s=50.0).later())
    assert [replace(arrival, prefix=None) for arrival in found] == plain
    assert len({arrival.prefix for arrival in found if arrival.prompt_tokens >= 16}) > 1


def test_texts_do_not_replace_what_a_trace_says():
    own = SharedPrefix((5,), 16)
    trace = Trace((TraceRequest(0.0, 20, 2, own), TraceRequest(1.0, 20, 2)))
    workload = Workload(mode="online", trace=trace, shared_prefix=CommonPrefixes(16, 1))
    first, second = load_generator_of(workload, duration_s=5.0).later()
    assert first.prefix == own
    assert second.prefix == SharedPrefix((("beginning", 0),), 16)


def test_offline_prompts_begin_with_texts_too():
    workload = offline([(20, 2)], initial_requests=1, shared_prefix=CommonPrefixes(16, 1))
    load_generator = load_generator_of(workload, duration_s=50.0)
    shared = SharedPrefix((("beginning", 0),), 16)
    assert list(load_generator.opening()) == [Arrival(20.0, 20, 2, shared)]
    assert load_generator.after_end(30.0, 0.0, 0) == Arrival(30.1, 20, 2, shared)


def test_a_conversation_by_hand():
    shared = SharedPrefix((("beginning", 3),), 16)
    starts = [
        Start(Arrival(1.0, 30, 10, shared), (NewTurn(7.0, 20, 4), NewTurn(7.0, 8, 100))),
        Start(Arrival(2.0, 5, 5), ()),
    ]
    talk = Conversations(starts, end_s=30.0)
    assert list(talk.opening()) == []
    first, other = talk.later()
    own = ("conversation", 0)
    # 40 tokens are two full blocks, the first of which is the text's.
    assert first == Arrival(1.0, 30, 10, SharedPrefix((("beginning", 3), own), 16))
    assert other == Arrival(2.0, 5, 5, SharedPrefix((), 16))
    assert talk.after_prompt(3.0, None, 0) is None
    assert talk.after_end(4.0, None, 1) is None  # a single turn
    # Before it are 40 tokens; 64 in all are four blocks.
    second = talk.after_end(5.0, None, 0)
    prefix = SharedPrefix((("beginning", 3), *(own,) * 3), 16)
    assert second == Arrival(12.0, 60, 4, prefix, follows=0)
    third = talk.after_end(13.0, None, 2)
    assert (third.at_s, third.prompt_tokens, third.output_tokens) == (20.0, 72, 100)
    assert talk.after_end(22.0, None, 3) is None
    assert talk.after_end(22.0, None, None) is None


def test_no_turn_comes_after_the_end():
    talk = Conversations([Start(Arrival(1.0, 5, 5), (NewTurn(7.0, 5, 5),))] * 2, end_s=10.0)
    assert len(list(talk.later())) == 2
    assert talk.after_end(3.0, None, 0).at_s == 10.0
    assert talk.after_end(3.1, None, 1) is None


def test_conversations_of_a_workload():
    plain = online(lengths=((10, 30),))
    talks = replace(plain, conversations=Turns(Fixed(4), Times(5.0)))
    # Turns have 40, 80, 120 and 160 tokens.
    assert (mean_request_tokens(plain, 1.0), mean_request_tokens(talks, 1.0)) == (40.0, 100.0)
    num_plain = len(list(load_generator_of(plain, duration_s=4000.0).later()))
    num_talks = len(list(load_generator_of(talks, duration_s=4000.0).later()))
    assert num_plain / num_talks == pytest.approx(400 / 40, rel=0.1)


ONLINE = ["workload.mode=online", "workload.mean_tokens_per_s=500"]


def test_a_scenario_states_what_prompts_share():
    scenario = load_scenario(
        "quickstart",
        [
            *ONLINE,
            "workload.shared_prefix={tokens: 512, prompts: 8}",
            "workload.conversations={turns: 4}",
        ],
    )
    assert scenario.workload.shared_prefix == CommonPrefixes(tokens=512, prompts=8)
    assert scenario.workload.conversations == Turns(turns=Fixed(4), think_time=Times(20.0))


def test_conversations_are_online_and_without_a_trace():
    talks = "workload.conversations={turns: 4}"
    with pytest.raises(ScenarioError, match="conversations: are for an online workload"):
        load_scenario("quickstart", [talks])
    with pytest.raises(ScenarioError, match="conversations: conflicts with the trace"):
        load_scenario("quickstart", ["workload.mode=online", "workload.trace=a.csv", talks])


def test_turns_and_think_times_are_drawn():
    talks = Turns(Uniform(1, 5), Times(10.0, 0.5), system_prompt_tokens=40)
    load_generator = load_generator_of(online(conversations=talks), duration_s=4000.0)
    starts = list(load_generator.later())
    thinks, sizes = [], []
    created = len(starts)
    for number, start in enumerate(starts):
        index, size = number, 1
        while (turn := load_generator.after_end(1000.0, None, index)) is not None:
            thinks.append(turn.at_s - 1000.0)
            index, size, created = created, size + 1, created + 1
        sizes.append(size)
        assert start.prompt_tokens in (40 + 10, 40 + 50)
        # Two whole blocks of the system prompt are shared; what follows is of the conversation.
        assert start.prefix.keys[:2] == (("system", ""),) * 2
        assert start.prefix.keys[2] == ("conversation", number)
    assert set(sizes) == {1, 2, 3, 4, 5}
    assert fmean(sizes) == pytest.approx(3.0, rel=0.1)
    assert fmean(thinks) == pytest.approx(10.0, rel=0.1)
    assert pstdev(thinks) == pytest.approx(5.0, rel=0.2)


def test_the_rate_of_conversations_is_of_requests():
    # 1 to 3 turns are 2 on average; the mean request is of turn 7/3 / 2 + 1/2 = 5/3, and its 46.5
    # tokens a turn and 40 more are 117.5.
    talks = Turns(Uniform(1, 3), Times(10.0), system_prompt_tokens=40)
    workload = online(conversations=talks)
    assert mean_request_tokens(workload, 1.0) == pytest.approx(46.5 * 5 / 3 + 40)
    rated = replace(workload, mean_tokens_per_s=None, requests_per_s=ConstantRate(4.0))
    assert len(list(load_generator_of(rated, 1000.0).later())) == pytest.approx(2000, rel=0.1)


def test_a_system_prompt_is_found_in_prefix_caches():
    changes = [
        *ONLINE,
        "physics=calibrated",
        "engine=vllm",
        "scheduler.node=vllm",
        "cluster.nodes=[{type: A100, name: one, kv_token_layers: 600000}]",
        "placement={layers: {one: [0, 60]}, allow_overcommitted_layers: true}",
        "workload.requests_per_s=1",
        "workload.prompt_tokens=20",
        "workload.output_tokens=3",
        "run.duration=30 s",
    ]
    talks = "workload.conversations={turns: 1, system_prompt_tokens: 160}"
    with_it = simulate(load_scenario("quickstart", [*changes, talks]))
    rows = with_it.requests
    assert set(rows.prompt_tokens) == {180}
    assert rows.cached_tokens.max() == 160
    assert simulate(load_scenario("quickstart", changes)).requests.cached_tokens.max() == 0

"""Classes of users: their requests, their rows, their objectives, their priorities."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
from builders import make_scenario

from helixsim.control.lateness import Lateness
from helixsim.control.load import Arrival
from helixsim.metrics.result import load_results
from helixsim.metrics.summary_text import summary_text
from helixsim.models.simulation import simulate
from helixsim.report.page import report_page
from helixsim.requests import Request, SharedPrefix, TraceRequest
from helixsim.scenario.load_generator import build_load_generator
from helixsim.scenario.resolved import Slo
from helixsim.scenario.workload_values import (
    CommonPrefixes,
    PoissonArrivals,
    Turns,
    UserClass,
    Workload,
)
from helixsim.traces.distributions import Fixed, Times, Uniform
from helixsim.traces.lengths import IndependentLengths
from helixsim.traces.rates import ConstantRate
from helixsim.traces.values import Trace

ROOT = Path(__file__).parents[2]
LAYERS = {"a": (0, 1), "b": (1, 2)}


def lengths(prompt, output):
    return IndependentLengths(Fixed(prompt), Fixed(output))


CHAT = UserClass(name="chat", share=0.75, lengths=lengths(10, 4), priority=-1)
BATCH = UserClass(name="batch", share=0.25, lengths=lengths(30, 2), priority=3, region="west")


def workload_of(*classes, **changes):
    settings = {"requests_per_s": ConstantRate(4.0)} | changes
    return Workload(
        mode="online",
        arrivals=PoissonArrivals(),
        classes=classes,
        mean_prompt_tokens=10,
        mean_output_tokens=4,
        **settings,
    )


def generator_of(workload, duration_s=2000.0, seed=3):
    scenario = make_scenario(LAYERS, workload=workload, duration_s=duration_s)
    return build_load_generator(scenario, Random(seed), 20.0)


def test_each_class_has_its_share_of_requests():
    arrivals = list(generator_of(workload_of(BATCH, CHAT)).later())
    assert all(before.at_s <= after.at_s for before, after in pairwise(arrivals))
    assert len(arrivals) == pytest.approx(8000, rel=0.04)
    kinds = Counter((a.user_class, a.prompt_tokens, a.output_tokens, a.priority) for a in arrivals)
    assert set(kinds) == {("chat", 10, 4, -1), ("batch", 30, 2, 3)}
    assert kinds["chat", 10, 4, -1] / len(arrivals) == pytest.approx(0.75, abs=0.02)


def test_each_class_comes_at_its_rate():
    own = [
        replace(users, share=None, requests_per_s=ConstantRate(rate))
        for users, rate in ((BATCH, 1.0), (CHAT, 3.0))
    ]
    arrivals = list(generator_of(workload_of(*own, requests_per_s=None)).later())
    kinds = Counter(arrival.user_class for arrival in arrivals)
    assert kinds["batch"] == pytest.approx(2000, rel=0.07)
    assert kinds["chat"] == pytest.approx(6000, rel=0.04)
    assert all(before.at_s <= after.at_s for before, after in pairwise(arrivals))
    # Another rate and other lengths of one class leave the requests of the other as they are.
    other = replace(own[0], requests_per_s=ConstantRate(9.0), lengths=lengths(1, 1))
    changed = generator_of(workload_of(other, own[1], requests_per_s=None)).later()

    def of_chat(all_arrivals):
        return [arrival for arrival in all_arrivals if arrival.user_class == "chat"]

    assert of_chat(changed) == of_chat(arrivals)


def test_tokens_per_second_are_those_of_the_mix():
    # 0.75 x 14 + 0.25 x 32 = 18.5 tokens a request.
    workload = workload_of(BATCH, CHAT, requests_per_s=None, mean_tokens_per_s=18.5 * 4)
    assert len(list(generator_of(workload).later())) == pytest.approx(8000, rel=0.04)


def test_a_closed_loop_draws_classes_too():
    workload = Workload(mode="offline", classes=(BATCH, CHAT), initial_requests=2000)
    drawn = list(generator_of(workload).opening())
    kinds = Counter(arrival.user_class for arrival in drawn)
    assert kinds["chat"] / len(drawn) == pytest.approx(0.75, abs=0.04)
    assert {a.prompt_tokens for a in drawn if a.user_class == "batch"} == {30}


def test_turns_of_conversations_count_as_requests_of_a_class():
    talks = Turns(Uniform(1, 3), Times(1.0), system_prompt_tokens=40)
    chat = replace(CHAT, conversations=talks)
    load_generator = generator_of(workload_of(BATCH, chat))
    first = list(load_generator.later())
    starts = Counter(arrival.user_class for arrival in first)
    # 6,000 requests of conversations of 2 turns, and 2,000 single ones.
    assert starts["chat"] == pytest.approx(3000, rel=0.06)
    assert starts["batch"] == pytest.approx(2000, rel=0.07)
    start = next(a for a in first if a.user_class == "chat")
    assert (start.prompt_tokens, start.priority) == (50, -1)
    assert start.prefix.keys[:2] == (("system", "chat"),) * 2
    later = 0
    for number, opening in enumerate(first):
        last, index = opening, number
        while (turn := load_generator.after_end(last.at_s + 5, None, index)) is not None:
            assert (turn.user_class, turn.at_s) == ("chat", last.at_s + 6)
            assert turn.prompt_tokens == last.prompt_tokens + 4 + 10
            last, index = turn, len(first) + later
            later += 1
    assert (len(first) + later) == pytest.approx(8000, rel=0.05)


def test_texts_are_of_a_class():
    shared = CommonPrefixes(16, 1)
    users = [replace(each, shared_prefix=shared) for each in (BATCH, CHAT)]
    long = replace(users[1], lengths=lengths(20, 4))
    found = {a.user_class: a.prefix for a in generator_of(workload_of(users[0], long)).later()}
    assert found == {
        name: SharedPrefix((("beginning", 0, name),), 16) for name in ("batch", "chat")
    }


# -- results

TRACE = Trace(
    (
        TraceRequest(0.0, 3, 5, user_class="chat"),
        TraceRequest(1.0, 20, 5, user_class="batch"),
        TraceRequest(2.0, 3, 5, user_class="chat"),
    )
)


@pytest.fixture(scope="module")
def result():
    workload = Workload(mode="online", trace=TRACE, mean_prompt_tokens=10, mean_output_tokens=4)
    scenario = make_scenario(LAYERS, workload=workload, duration_s=100.0)
    slos = (Slo(name="all", e2e_s=1e6), Slo(name="batch", ttft_s=1e-3, share=0.5))
    return simulate(replace(scenario, slos=(*slos, Slo(name="chat", e2e_s=1e6, share=0.5))))


def test_rows_name_the_class(result):
    assert list(result.requests["class"]) == ["chat", "batch", "chat"]
    assert list(simulate(make_scenario(LAYERS, requests=[(0.0, 3, 1)])).requests)[-1] != "class"


def test_an_slo_of_a_class_is_of_its_requests(result):
    slo = result.summary["slo"]
    assert {name: found["due"] for name, found in slo.items()} == {"all": 3, "batch": 1, "chat": 2}
    assert [slo[name]["attainment"] for name in ("all", "batch", "chat")] == [1.0, 0.0, 1.0]


def test_figures_of_each_class(result):
    found = result.summary["classes"]
    rows = result.requests
    assert list(found) == ["batch", "chat"]
    assert found["chat"]["requests"]["arrived"] == found["chat"]["requests"]["completed"] == 2
    of_chat = rows[rows["class"] == "chat"]
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert found["chat"][name]["mean"] == pytest.approx(fmean(of_chat[name]))
    assert list(found["chat"]["slo"]) == ["all", "chat"]
    assert found["batch"]["slo"]["batch"]["met"] is False
    lines = summary_text(result.summary).splitlines()
    # Both chats keep their limits; the request of batch keeps only the one of all requests.
    assert found["chat"]["slo"]["chat"]["goodput_requests_per_s"] == pytest.approx(2 / 100)
    assert result.summary["goodput_requests_per_s"] == pytest.approx(2 / 100)
    assert "goodput: 0.020 requests/s within every SLO that is for them" in lines
    (line,) = (line for line in lines if line.startswith("class batch: "))
    assert "1 arrived, 1 completed, 0 rejected" in line
    first = found["batch"]["ttft_s"]["p50"]
    assert f"; first token: median {first:.3f} s, p95 {first:.3f} s; per output token: " in line
    assert line.endswith("SLO all 100.0%; SLO batch 0.0%")
    assert "classes" not in simulate(make_scenario(LAYERS, requests=[(0.0, 3, 1)])).summary


@pytest.mark.parametrize("table_format", ["csv", "parquet"])
def test_results_and_reports_keep_classes(result, tmp_path, table_format):
    result.write(tmp_path / "o", table_format=table_format)
    again = load_results(tmp_path / "o")
    assert list(again.requests["class"]) == ["chat", "batch", "chat"]
    page = report_page({"run": again})
    assert "Class of users" in page
    assert "<td>batch</td>" in page


def test_requests_keep_their_class():
    workload = Workload(mode="online", trace=TRACE)
    first, *_ = generator_of(workload).later()
    assert first == Arrival(20.0, 3, 5, user_class="chat")
    request = Request(0, 0.0, 5, 3, 2, 2)
    request.user_class = "chat"
    assert {r.user_class for r in (*request.stream(), request.restarted(None))} == {"chat"}


def test_lateness_is_by_the_limit_of_the_class():
    lateness = Lateness(5.0, "refuse", {"chat": 1.0, "batch": None})
    request = Request(0, 10.0, 3, 1, 1)
    for name, late_after_s in (("", 5.0), ("chat", 1.0), ("batch", 1e9)):
        request.user_class = name
        assert not lateness.is_late(request, 10.0 + late_after_s)
        assert lateness.is_late(request, 10.1 + late_after_s) or name == "batch"
    assert Lateness(None, "wait", {"chat": 1.0}).lets_wait
    assert not Lateness(None, "wait", {"batch": None}).lets_wait


def test_priorities_of_classes_reach_the_engine(load, tmp_path):
    (tmp_path / "one-at-a-time.yaml").write_text(
        "schema: 1\nkind: engine\nname: mine\nscheduler: vllm\nmax_num_seqs: 1\n"
        "max_num_batched_tokens: 2048\nscheduling: priority\n"
    )
    users = {"share": 0.5, "prompt_tokens": 100, "output_tokens": 20}

    def first_tokens(priority):
        scenario = load(
            {
                "cluster.nodes": [{"type": "A100", "name": "one", "kv_token_layers": 10**7}],
                "placement": {"layers": {"one": [0, 80]}, "allow_overcommitted_layers": True},
                "physics": "calibrated",
                "engine": "one-at-a-time.yaml",
                "workload": {
                    "requests_per_s": 5,
                    "arrivals": "constant",
                    "classes": {"chat": users, "batch": users | {"priority": priority}},
                },
                "run": {"duration": "20 s", "drain": True},
            }
        )
        rows = simulate(scenario).requests
        return [rows.ttft_s[rows["class"] == name].mean() for name in ("chat", "batch")]

    chat, batch = first_tokens(priority=0)
    chat_before, batch_after = first_tokens(priority=1)
    assert chat_before < 0.75 * chat
    assert batch_after > 1.5 * batch


def test_draws_do_not_depend_on_the_hash_seed():
    code = (
        "from helixsim import load_scenario, simulate\n"
        "changes = ['workload.mode=online', 'workload.requests_per_s=1', 'run.duration=30 s',\n"
        "    'run.warmup=1 s', 'workload.prompt_tokens={mean: 50, cv: 1}',\n"
        "    'workload.output_tokens={mean: 5, p95: 10}',\n"
        "    'workload.classes={b: {share: 0.5}, a: {share: 0.5, conversations: {turns: 2}}}']\n"
        "print(simulate(load_scenario('quickstart', changes)).requests.to_csv())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    (output,) = outputs
    assert ",b\n" in output
    assert ",a\n" in output

"""Load in natural units: requests per second, distributions of lengths, and the mean request."""

from __future__ import annotations

import re
from random import Random
from statistics import fmean

import pytest

from helixsim.errors import ScenarioError
from helixsim.models.simulation import simulate
from helixsim.scenario.load_generator import build_load_generator
from helixsim.scenario.offered_load import mean_request, offered_requests_per_s
from helixsim.scenario.workload_values import EvenArrivals, GammaArrivals, PoissonArrivals
from helixsim.traces.distributions import Empirical, Fixed, Uniform
from helixsim.traces.rates import ConstantRate, DailyRate, SteppedRate

PLAIN = {"requests_per_s": 2, "prompt_tokens": 100, "output_tokens": 20}


def with_workload(load, workload, **changes):
    return load({"workload": workload, **changes})


def arrivals_of(scenario, seed=3):
    return list(build_load_generator(scenario, Random(seed), 10.0).later())


def test_a_rate_alone_is_an_online_workload(load):
    workload = with_workload(load, {"requests_per_s": 6}).workload
    assert workload.mode == "online"
    assert workload.requests_per_s == ConstantRate(6)
    assert workload.arrivals == PoissonArrivals()
    assert with_workload(load, {"mean_tokens_per_s": 6}).workload.mode == "online"
    assert offered_requests_per_s(workload, 100.0) == 6


@pytest.mark.parametrize(
    ("arrivals", "value", "tolerance"),
    [
        ("poisson", PoissonArrivals(), 0.03),
        ("constant", EvenArrivals(), 0.0003),
        ({"gamma": {"cv": 2}}, GammaArrivals(2), 0.06),
    ],
)
@pytest.mark.parametrize("rate", [2, {"steps": [["0 s", 1], ["2000 s", 3]]}])
def test_requests_come_at_the_rate(load, rate, arrivals, value, tolerance):
    workload = PLAIN | {"requests_per_s": rate, "arrivals": arrivals}
    scenario = with_workload(load, workload, **{"run.duration": "4000 s"})
    assert scenario.workload.arrivals == value
    found = arrivals_of(scenario)
    assert len(found) == pytest.approx(8000, rel=tolerance)
    early = sum(arrival.at_s < 2010 for arrival in found)
    assert early == pytest.approx(2000 if isinstance(rate, dict) else 4000, rel=2 * tolerance)
    assert arrivals_of(scenario) == found


def test_a_constant_rate_is_that_of_the_same_tokens(load):
    by_requests = with_workload(load, PLAIN | {"arrivals": "azure-code"})
    tokens = {key: PLAIN[key] for key in ("prompt_tokens", "output_tokens")}
    by_tokens = with_workload(load, tokens | {"mean_tokens_per_s": 240, "arrivals": "azure-code"})
    assert arrivals_of(by_requests) == arrivals_of(by_tokens) != []


@pytest.mark.parametrize(
    ("rate", "value", "mean"),
    [
        (
            {"mean": 6, "daily": {"peak_at": "14 h", "low_share": 0.2, "starts_at": "14 h"}},
            DailyRate(6, 50_400.0, 0.2, 50_400.0),
            10.0,
        ),
        ({"steps": [["0 s", 2], ["50 s", 4]]}, SteppedRate(((0, 2), (50, 4))), 3.0),
        (
            {"base": 2, "bursts": {"every": "50 s", "length": "10 s", "factor": 3}},
            SteppedRate(((0, 2), (40, 6)), 50.0),
            2.8,
        ),
    ],
)
def test_rates_that_vary(load, rate, value, mean):
    workload = with_workload(load, PLAIN | {"requests_per_s": rate}).workload
    assert workload.requests_per_s == value
    assert offered_requests_per_s(workload, 100.0) == pytest.approx(mean, rel=1e-4)
    twice = with_workload(load, PLAIN | {"requests_per_s": rate, "rate_scale": 2})
    assert offered_requests_per_s(twice.workload, 100.0) == pytest.approx(2 * mean, rel=1e-4)
    assert len(arrivals_of(twice)) == pytest.approx(200 * mean, rel=0.2)


def test_lengths_are_drawn_as_asked(load, tmp_path):
    (tmp_path / "own.csv").write_text("in,out\n5,1\n7,2\n")
    scenario = with_workload(
        load,
        {
            "requests_per_s": 200,
            "prompt_tokens": {"mean": 1200, "cv": 1.0},
            "output_tokens": {"mean": 350, "p95": 900},
        },
    )
    drawn = arrivals_of(scenario)
    assert len(drawn) > 19_000
    assert fmean(each.prompt_tokens for each in drawn) == pytest.approx(1200, rel=0.02)
    assert fmean(each.output_tokens for each in drawn) == pytest.approx(350, rel=0.02)
    assert (scenario.workload.mean_prompt_tokens, scenario.workload.mean_output_tokens) == (
        1200,
        350,
    )
    other = PLAIN | {
        "prompt_tokens": {"file": "own.csv", "column": "in"},
        "output_tokens": {"min": 3, "max": 9},
    }
    lengths = with_workload(load, other).workload.lengths
    assert (lengths.prompt, lengths.output) == (Empirical((5, 7)), Uniform(3, 9))
    other["prompt_tokens"] = {"values": [5, 6, 70], "max": 50}
    assert with_workload(load, other).workload.lengths.prompt == Empirical((5, 6))


def test_files_of_lengths_are_part_of_the_digest(load, tmp_path):
    workload = PLAIN | {"prompt_tokens": {"file": "own.csv"}}
    digests = set()
    for text in ("n\n5\n", "n\n6\n"):
        (tmp_path / "own.csv").write_text(text)
        digests.add(with_workload(load, workload).digest)
    assert len(digests) == 2


# -- the mean request


@pytest.mark.parametrize(
    ("workload", "means"),
    [
        ({"mode": "offline"}, (750, 240)),
        ({"mean_tokens_per_s": 900, "lengths": "azure-conversation"}, (750, 240)),
        ({"mode": "offline", "max_prompt_tokens": 2048, "max_output_tokens": 1024}, (750, 240)),
        # Limits that leave short requests only move the mean.
        ({"mode": "offline", "max_prompt_tokens": 400}, (281, 118)),
        ({"mode": "offline", "lengths": "alpaca"}, (14, 49)),
        ({"mode": "offline", "lengths": "own.csv"}, (20, 5)),
        ({"mode": "offline", "lengths": "near.csv"}, (750, 240)),
        ({"mode": "offline", "lengths": "far.csv"}, (900, 150)),
        ({"trace": "trace.csv"}, (20, 6)),
        (PLAIN, (100, 20)),
        # 4 turns of 100 + 20: prompts of 100, 220, 340, 460.
        (PLAIN | {"conversations": {"turns": 4}}, (280, 20)),
        (PLAIN | {"conversations": {"turns": 4, "system_prompt_tokens": 50}}, (330, 20)),
        # 1 or 3 turns: prompts of 100; 100, 220, 340.
        (PLAIN | {"conversations": {"turns": {"values": [1, 3]}}}, (190, 20)),
        ({"mode": "offline", "lengths": "alpaca", "mean_prompt_tokens": 15}, (15, 49)),
    ],
)
def test_the_mean_request_follows_from_the_lengths(load, tmp_path, workload, means):
    (tmp_path / "own.csv").write_text("input_tokens,output_tokens\n10,4\n30,6\n")
    (tmp_path / "near.csv").write_text("input_tokens,output_tokens\n800,200\n800,220\n")
    (tmp_path / "far.csv").write_text("input_tokens,output_tokens\n900,150\n")
    (tmp_path / "trace.csv").write_text(
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0,10,5\n1,30,7\n"
    )
    found = with_workload(load, workload).workload
    assert (found.mean_prompt_tokens, found.mean_output_tokens) == means
    assert found.warnings == ()


def test_a_contradiction_is_told_or_refused(load):
    with pytest.raises(
        ScenarioError,
        match=re.escape("workload.mean_prompt_tokens: is 750, but the mean of the requests is 100"),
    ):
        with_workload(load, PLAIN | {"mean_prompt_tokens": 750})
    assert with_workload(load, PLAIN | {"mean_prompt_tokens": 119}).workload.warnings == ()
    old = {"mean_tokens_per_s": 900, "lengths": "alpaca", "mean_output_tokens": 240}
    scenario = with_workload(load, old, **{"run.duration": "1 s"})
    assert scenario.workload.mean_output_tokens == 240
    (warning,) = scenario.workload.warnings
    assert "workload.mean_output_tokens is 240, but the mean of the requests is 48.79" in warning
    assert warning in simulate(scenario).summary["warnings"]


def test_the_mean_of_classes_is_weighted_by_their_requests(load):
    users = {"prompt_tokens": 300, "output_tokens": 30}
    workload = PLAIN | {"classes": {"a": {"share": 0.25}, "b": users | {"share": 0.75}}}
    found = mean_request(with_workload(load, workload).workload, 100.0)
    assert (found.prompt_tokens, found.output_tokens, found.tokens) == (250.0, 27.5, 277.5)
    rated = {
        "a": {"requests_per_s": {"steps": [["0 s", 1], ["50 s", 5]]}},
        "b": users | {"requests_per_s": 1},
    }
    workload = {key: PLAIN[key] for key in ("prompt_tokens", "output_tokens")}
    found = mean_request(with_workload(load, workload | {"classes": rated}).workload, 100.0)
    assert found.prompt_tokens == pytest.approx(150.0)  # three of four requests are of a


# -- mistakes

MISTAKES = [
    ({}, "workload.mode: this key is missing"),
    ({"mode": "online"}, "workload.requests_per_s: this key is missing"),
    (PLAIN | {"mean_tokens_per_s": 5}, "workload.mean_tokens_per_s: conflicts with requests_per_s"),
    ({"requests_per_s": 0}, "workload.requests_per_s"),
    (PLAIN | {"mode": "offline"}, "workload.requests_per_s: a closed loop, mode: offline, has no"),
    (
        {"mode": "offline", "classes": {"a": {"requests_per_s": 1}}},
        "workload.mode: a closed loop, mode: offline, has no rate",
    ),
    ({"requests_per_s": 2, "prompt_tokens": 5}, "workload.output_tokens: this key is missing"),
    (PLAIN | {"lengths": "alpaca"}, "workload.lengths: conflicts with prompt_tokens"),
    (PLAIN | {"max_prompt_tokens": 9}, "workload.max_prompt_tokens: is for `lengths`"),
    (PLAIN | {"trace": "t.csv"}, "workload.prompt_tokens: conflicts with the trace"),
    (PLAIN | {"prompt_tokens": {"mean": 5}}, "these keys do not go together: mean"),
    (PLAIN | {"prompt_tokens": {"mean": 5, "cv": 1, "p95": 9}}, "do not go together: cv, mean, p9"),
    (PLAIN | {"prompt_tokens": {"min": 5}}, "workload.prompt_tokens: give a number"),
    (PLAIN | {"prompt_tokens": {"min": 5, "max": 4}}, "workload.prompt_tokens.min: 5 is above"),
    (PLAIN | {"prompt_tokens": {"mean": 5, "p95": 50}}, "workload.prompt_tokens: p95 must be"),
    (PLAIN | {"prompt_tokens": {"file": "no.csv"}}, "workload.prompt_tokens.file: there is no"),
    (PLAIN | {"requests_per_s": {"steps": [["1 s", 2]]}}, "requests_per_s.steps: the first step"),
    (
        PLAIN | {"requests_per_s": {"steps": [["0 s", 2], ["0 s", 3]]}},
        "workload.requests_per_s.steps: each step begins after",
    ),
    (PLAIN | {"requests_per_s": {"steps": [["0 s", 0]]}}, "at least one rate must be above 0"),
    (
        PLAIN | {"requests_per_s": {"steps": [["0 s", 0], ["1 h", 5]]}},
        "workload.requests_per_s: the rate is 0 during the whole run of 100 s",
    ),
    (
        {"classes": {"a": {"requests_per_s": {"steps": [["0 s", 0], ["1 h", 5]]}}}},
        "workload.classes: the rate is 0 during the whole run of 100 s",
    ),
    (
        PLAIN
        | {"requests_per_s": {"base": 1, "bursts": {"every": "1 s", "length": "1 s", "factor": 2}}},
        "workload.requests_per_s.bursts.length: a burst must be shorter than 1 s",
    ),
    (
        PLAIN | {"requests_per_s": {"steps": [["0 s", 1]]}, "arrivals": "azure-code"},
        "workload.arrivals: vary by themselves",
    ),
    (
        {"mean_tokens_per_s": 5, "rate_scale": 2},
        "workload.rate_scale: is for a trace or requests_per_s",
    ),
    (
        PLAIN | {"conversations": {"turns": {"min": 2000, "max": 3000}}},
        "workload.conversations.turns: limits of 1 to 1000 leave",
    ),
    (
        PLAIN
        | {
            "conversations": {"turns": 2, "system_prompt_tokens": 9},
            "shared_prefix": {"tokens": 9, "prompts": 1},
        },
        "workload.conversations.system_prompt_tokens: conflicts with shared_prefix",
    ),
    (PLAIN | {"classes": {"a": {"share": 0.5}}}, "workload.classes: the shares add up to 0.5"),
    (
        PLAIN | {"classes": {"a": {"share": 1, "requests_per_s": 1}}},
        "workload.requests_per_s: conflicts with the rates of the classes",
    ),
    (
        {"requests_per_s": 1, "classes": {"a": {"share": 1, "prompt_tokens": 5}}},
        "workload.classes.a.output_tokens: this key is missing",
    ),
    (PLAIN | {"classes": {"a": {}}}, "workload.classes.a.share: each class has a share"),
    (
        {"mode": "offline", "classes": {"a": {"share": 1, "conversations": {"turns": 2}}}},
        "workload.classes.a.conversations: are for an online workload",
    ),
]


@pytest.mark.parametrize(("workload", "message"), MISTAKES)
def test_mistakes_are_named(load, workload, message):
    with pytest.raises(ScenarioError, match=re.escape(message)):
        with_workload(load, workload)


def test_a_key_that_is_set_replaces_what_says_the_same(load):
    old = {"mean_tokens_per_s": 900, "lengths": "alpaca", "mean_prompt_tokens": 10}
    changes = ("workload.requests_per_s=3", "workload.prompt_tokens={mean: 50, cv: 1}")
    found = load({"workload": old}, *changes, "workload.output_tokens=7").workload
    assert found.mean_tokens_per_s is None
    assert found.requests_per_s == ConstantRate(3)
    assert found.lengths.output == Fixed(7)
    assert (found.mean_prompt_tokens, found.mean_output_tokens) == (50, 7)
    back = load({"workload": PLAIN}, "workload.mean_tokens_per_s=3").workload
    assert (back.requests_per_s, back.mean_tokens_per_s) == (None, 3)

"""Goals and limits: how they are read, and which figures are better."""

from __future__ import annotations

from math import inf, nan

import pytest

from helixsim.errors import InputError
from helixsim.metrics.summary import figures_of
from helixsim.models.simulation import simulate
from helixsim.planner.objective import (
    GOALS,
    Goal,
    Limit,
    estimated_family,
    mean_figures,
    parse_goal,
)
from helixsim.scenario.load import load_scenario

RATE, LATENCY = "decode_tokens_per_s", "decode_latency_s.mean"


# -- reading


def test_the_default_goal():
    assert parse_goal() == Goal(RATE, ())
    assert parse_goal().is_rate


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("decode_latency_s.mean<=1.5", Limit(LATENCY, True, 1.5)),
        ("  decode_latency_s.mean  <=  1.5  ", Limit(LATENCY, True, 1.5)),
        ("requests_per_s>=2", Limit("requests_per_s", False, 2.0)),
        ("ttft_s.p99<=1e1", Limit("ttft_s.p99", True, 10.0)),
        ("ttft_s.p5<=+.5", Limit("ttft_s.p5", True, 0.5)),
    ],
)
def test_limits(text, limit):
    goal = parse_goal("requests_per_s", [text])
    assert goal.limits == (limit,)
    assert parse_goal("requests_per_s", [str(limit)]) == goal


@pytest.mark.parametrize("figure", GOALS)
def test_every_figure_may_be_a_goal_and_have_a_limit(figure):
    assert parse_goal(figure, [f"{figure}<=3"]).limits[0].figure == figure


@pytest.mark.parametrize(
    "text",
    [
        "",
        "decode_latency_s.mean",
        "decode_latency_s.mean<1.5",
        "decode_latency_s.mean==1.5",
        "decode_latency_s.mean<=",
        "decode_latency_s.mean<=fast",
        "decode_latency_s.mean<=1.5 s",
        "decode_latency_s.mean<=0",
        "decode_latency_s.mean<=-1",
        "decode_latency_s.mean<=1e999",
        "decode_latency_s.mean<=1e",
        "decode_latency_s.mean<=1..5",
        "1.5>=decode_latency_s.mean",
        "decode_latency_s.mean<=1 ttft_s.mean<=1",
    ],
)
def test_what_is_no_limit(text):
    with pytest.raises(InputError) as caught:
        parse_goal(RATE, [text])
    assert str(caught.value) == (
        f"--subject-to: '{text}' is no limit; write a figure, <= or >=, and a number above 0, "
        "such as decode_latency_s.mean<=1.5"
    )


def test_unknown_figures_are_named_with_their_place_and_what_there_is():
    with pytest.raises(InputError) as caught:
        parse_goal("decode_tokens_per_sec")
    assert str(caught.value).startswith(
        "--goal: no figure 'decode_tokens_per_sec' that can be aimed at; "
        "there are decode_tokens_per_s, "
    )
    with pytest.raises(InputError) as caught:
        parse_goal(RATE, ["decode_latency_s.men<=1.5"])
    assert str(caught.value).startswith("--subject-to: no figure 'decode_latency_s.men'")
    assert "decode_latency_s.mean" in str(caught.value)
    # A latency has several statistics; which one is meant must be said.
    with pytest.raises(InputError, match=r"--goal: no figure 'ttft_s'"):
        parse_goal("ttft_s")


# -- judging


def test_rates_are_to_be_high_and_latencies_low():
    assert Goal(RATE).merit({RATE: 5.0}) == 5.0
    assert Goal(LATENCY).merit({LATENCY: 0.5}) == 2.0
    assert not Goal(LATENCY).is_rate


@pytest.mark.parametrize("figures", [{}, {RATE: 0.0}, {RATE: -1.0}, {RATE: nan}, {RATE: inf}])
@pytest.mark.parametrize("limits", [(), (Limit(LATENCY, True, 1.0),)])
def test_nothing_has_no_merit(figures, limits):
    goal = Goal(RATE, limits)
    assert (goal.merit(figures), goal.score(figures)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("limit", "actual", "share"),
    [
        (Limit(LATENCY, True, 2.0), 1.0, 1.0),
        (Limit(LATENCY, True, 2.0), 2.0, 1.0),
        (Limit(LATENCY, True, 2.0), 4.0, 0.5),
        (Limit(LATENCY, True, 2.0), 0.0, 1.0),
        (Limit(LATENCY, True, 2.0), inf, 0.0),
        (Limit(LATENCY, True, 2.0), nan, 0.0),
        (Limit(LATENCY, True, 2.0), None, 0.0),
        (Limit(RATE, False, 10.0), 20.0, 1.0),
        (Limit(RATE, False, 10.0), 10.0, 1.0),
        (Limit(RATE, False, 10.0), 5.0, 0.5),
        (Limit(RATE, False, 10.0), 0.0, 0.0),
    ],
)
def test_how_far_a_limit_is_kept(limit, actual, share):
    figures = {} if actual is None else {limit.figure: actual}
    assert limit.kept_share(figures) == share
    assert Goal(RATE, (limit,)).kept(figures) == (share == 1.0)


def test_the_score_falls_smoothly_beyond_a_limit():
    goal = Goal(RATE, (Limit(LATENCY, True, 1.0),))
    scores = [goal.score({RATE: 10.0, LATENCY: s}) for s in (0.5, 1.0, 1.01, 2.0, 4.0)]
    assert scores == pytest.approx([10.0, 10.0, 10 / 1.01**2, 2.5, 10 / 16])


def test_what_keeps_the_limits_goes_first():
    goal = Goal(RATE, (Limit(LATENCY, True, 1.0),))
    slow = {RATE: 100.0, LATENCY: 1.2}
    slower = {RATE: 100.0, LATENCY: 2.0}
    keeps = {RATE: 10.0, LATENCY: 1.0}
    less = {RATE: 9.0, LATENCY: 0.1}
    unknown = {RATE: 1e9}
    ranked = sorted([slow, less, unknown, keeps, slower], key=goal.rank, reverse=True)
    assert ranked == [keeps, less, slow, slower, unknown]


# -- figures of runs


def test_figures_of_a_summary():
    summary = {
        "scenario": "x",
        "decode_tokens_per_s": 5,
        "ttft_s": {"mean": 1.5, "p50": None, "p90": 3.0},
        "tpot_s": None,
        "requests": {"completed": 3},
        "requests_per_s": None,
    }
    assert figures_of(summary, GOALS) == {"decode_tokens_per_s": 5.0, "ttft_s.mean": 1.5}


def test_every_goal_is_a_figure_of_a_real_run():
    scenario = load_scenario(
        "quickstart",
        [
            "run.duration=30 s",
            "run.warmup=0 s",
            "workload.initial_requests=4",
            "workload.lengths=alpaca",
        ],
    )
    assert set(figures_of(simulate(scenario).summary, GOALS)) == set(GOALS)


def test_means_are_of_figures_that_all_runs_have():
    runs = [{RATE: 1.0, LATENCY: 2.0}, {RATE: 3.0}]
    assert mean_figures(runs) == {RATE: 2.0}
    assert mean_figures([]) == {}


def test_every_figure_has_an_estimate():
    families = {estimated_family(name) for name in GOALS}
    assert families == {RATE, LATENCY, "prompt_latency_s.mean", "e2e_s.mean"}
    assert estimated_family("ttft_s.p99") == "prompt_latency_s.mean"
    assert estimated_family("tpot_s.mean") == estimated_family("itl_s.p95") == LATENCY

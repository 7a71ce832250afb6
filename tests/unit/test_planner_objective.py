"""Objectives and limits: how they are read, and which figures rank higher."""

from __future__ import annotations

from math import inf, nan

import pytest

from helixsim.errors import InputError
from helixsim.metrics.costs import cost
from helixsim.metrics.summary import figures_of
from helixsim.models.simulation import simulate
from helixsim.planner.figures import OBJECTIVE_FIGURES
from helixsim.planner.objective import Limit, Objective, mean_figures, parse_objective
from helixsim.scenario.load import load_scenario

RATE, LATENCY = "decode_tokens_per_s", "decode_latency_s.mean"


# -- reading


def test_the_default_objective():
    assert parse_objective() == Objective(RATE, ())
    assert parse_objective().is_rate


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
    objective = parse_objective("requests_per_s", [text])
    assert objective.limits == (limit,)
    assert parse_objective("requests_per_s", [str(limit)]) == objective


@pytest.mark.parametrize("figure", OBJECTIVE_FIGURES)
def test_every_figure_may_be_optimised_and_have_a_limit(figure):
    assert parse_objective(figure, [f"{figure}<=3"]).limits[0].figure == figure


def test_the_cost_of_a_token_is_lowest_where_most_are_served():
    assert parse_objective("cost") == parse_objective("output_tokens_per_s")
    name = "cost.dollars_per_million_total_tokens"
    assert parse_objective(name).figure == "total_tokens_per_s"
    # The same cluster, with two rates: the order of the costs is that of the objective.
    scenario = load_scenario("quickstart", ["dollars_per_hour={A100: 4, L4: 1, T4: 0.5}"])
    cheap, dear = (cost(scenario, rate, 9 * rate) for rate in (50.0, 40.0))
    name = "dollars_per_million_output_tokens"
    assert cheap[name] < dear[name]
    goal = parse_objective("cost")
    assert goal.merit({"output_tokens_per_s": 50.0}) > goal.merit({"output_tokens_per_s": 40.0})
    with pytest.raises(InputError, match="--subject-to: unknown figure 'cost'"):
        parse_objective("cost", ["cost<=4"])


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
def test_malformed_limits_are_refused(text):
    with pytest.raises(InputError) as caught:
        parse_objective(RATE, [text])
    assert str(caught.value) == (
        f"--subject-to: '{text}' is not a limit; write a figure, <= or >=, and a number above 0, "
        "such as decode_latency_s.mean<=1.5"
    )


def test_a_limit_on_a_count_may_be_zero():
    """Two rejected requests: (1 + 0) / (1 + 2) of the limit is kept."""
    known = ("requests.rejected", "requests.completed")
    (limit,) = parse_objective("requests.completed", ["requests.rejected<=0"], known).limits
    assert limit.kept_share({"requests.rejected": 0.0}) == 1
    assert limit.kept_share({"requests.rejected": 2.0}) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="is not a limit"):
        parse_objective("requests.completed", ["requests.rejected>=0"], known)
    with pytest.raises(InputError, match="is not a limit"):
        parse_objective("requests.completed", ["requests.completed<=0"], known)


def test_a_limit_on_a_share_above_1_is_refused():
    figure = "slo.chat.attainment"
    with pytest.raises(InputError) as caught:
        parse_objective(figure, [f"{figure}>=95"], [figure])
    assert str(caught.value) == (
        "--subject-to: 'slo.chat.attainment>=95': a share is at most 1; write 0.95 for 95 %"
    )
    (limit,) = parse_objective(figure, [f"{figure}>=1"], [figure]).limits
    assert limit.value == 1


def test_errors_on_unknown_figures_name_the_option_and_list_the_figures():
    with pytest.raises(InputError) as caught:
        parse_objective("decode_tokens_per_sec")
    assert str(caught.value).startswith(
        "--goal: unknown figure 'decode_tokens_per_sec'; choose one of decode_tokens_per_s, "
    )
    with pytest.raises(InputError) as caught:
        parse_objective(RATE, ["decode_latency_s.men<=1.5"])
    assert str(caught.value).startswith("--subject-to: unknown figure 'decode_latency_s.men'")
    assert "decode_latency_s.mean" in str(caught.value)
    # A latency has several statistics, so one of them must be given.
    with pytest.raises(InputError, match=r"--goal: unknown figure 'ttft_s'"):
        parse_objective("ttft_s")


# -- ranking


def test_rates_are_maximised_and_latencies_minimised():
    assert Objective(RATE).merit({RATE: 5.0}) == 5.0
    assert Objective(LATENCY).merit({LATENCY: 0.5}) == 2.0
    assert not Objective(LATENCY).is_rate


@pytest.mark.parametrize("figures", [{}, {RATE: 0.0}, {RATE: -1.0}, {RATE: nan}, {RATE: inf}])
@pytest.mark.parametrize("limits", [(), (Limit(LATENCY, True, 1.0),)])
def test_missing_figures_have_no_merit(figures, limits):
    objective = Objective(RATE, limits)
    assert (objective.merit(figures), objective.score(figures)) == (0.0, 0.0)


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
    assert Objective(RATE, (limit,)).kept(figures) == (share == 1.0)


def test_the_score_falls_smoothly_beyond_a_limit():
    objective = Objective(RATE, (Limit(LATENCY, True, 1.0),))
    scores = [objective.score({RATE: 10.0, LATENCY: s}) for s in (0.5, 1.0, 1.01, 2.0, 4.0)]
    assert scores == pytest.approx([10.0, 10.0, 10 / 1.01**2, 2.5, 10 / 16])


def test_figures_within_the_limits_rank_first():
    objective = Objective(RATE, (Limit(LATENCY, True, 1.0),))
    slow = {RATE: 100.0, LATENCY: 1.2}
    slower = {RATE: 100.0, LATENCY: 2.0}
    keeps = {RATE: 10.0, LATENCY: 1.0}
    less = {RATE: 9.0, LATENCY: 0.1}
    unknown = {RATE: 1e9}
    ranked = sorted([slow, less, unknown, keeps, slower], key=objective.rank, reverse=True)
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
    assert figures_of(summary, OBJECTIVE_FIGURES) == {
        "decode_tokens_per_s": 5.0,
        "ttft_s.mean": 1.5,
    }


def test_every_objective_is_a_figure_of_a_simulated_run():
    scenario = load_scenario(
        "quickstart",
        [
            "run.duration=30 s",
            "run.warmup=0 s",
            "workload.initial_requests=4",
            "workload.lengths=alpaca",
        ],
    )
    assert set(figures_of(simulate(scenario).summary, OBJECTIVE_FIGURES)) == set(OBJECTIVE_FIGURES)


def test_means_are_of_figures_that_all_runs_have():
    runs = [{RATE: 1.0, LATENCY: 2.0}, {RATE: 3.0}]
    assert mean_figures(runs) == {RATE: 2.0}


def test_attainments_of_rare_classes():
    """Where no request was due, a limit is kept; where some wait for ever, it is not."""
    name = "classes.rare.slo.rare.attainment"
    limit = Limit(name, False, 0.9)
    assert mean_figures([{RATE: 1.0}, {RATE: 3.0, name: 0.5}]) == {RATE: 2.0, name: 0.5}
    assert limit.kept_share({RATE: 1.0}) == 1.0
    assert limit.kept_share({name: 0.45}) == pytest.approx(0.5)
    unserved = "classes.rare.slo.rare.unserved_share"
    assert limit.kept_share({RATE: 1.0, unserved: 1.0}) == 0.0
    assert Limit("ttft_s.p95", True, 1.0).kept_share({RATE: 1.0}) == 0.0
    assert mean_figures([]) == {}

"""Objectives and prices: from the scenario file to the summary."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from builders import make_scenario

from helixsim.errors import ScenarioError
from helixsim.metrics.goals import attainments
from helixsim.metrics.summary_text import summary_text
from helixsim.models.simulation import simulate
from helixsim.scenario.resolved import Slo

DOCS = Path(__file__).parents[2] / "docs"
LAYERS = {"a": (0, 1), "b": (1, 2)}
SLOS = (
    Slo(name="any", e2e_s=1e6),
    Slo(name="fast", ttft_s=9.0, share=0.5),
    Slo(name="strict", ttft_s=9.0, tpot_s=0.001, share=0.5),
)


@pytest.fixture(scope="module")
def result():
    """Three requests, the last of them too late to end; prompts of 3 and 20 tokens."""
    scenario = make_scenario(
        LAYERS, requests=[(0.0, 3, 5), (1.0, 20, 5), (90.0, 30, 500)], duration_s=100.0
    )
    return simulate(replace(scenario, slos=SLOS, dollars_per_hour={"kind": 1.8}))


def test_a_scenario_states_objectives_and_prices(load):
    scenario = load(
        {
            "slo": {"quick": {"ttft": "500 ms", "share": 0.9}, "batch": {"e2e": "10 min"}},
            "dollars_per_hour": {"A100": 3.5, "L4": 1, "T4": 0.5},
        }
    )
    assert scenario.slos == (
        Slo(name="batch", e2e_s=600.0),
        Slo(name="quick", ttft_s=0.5, share=0.9),
    )
    assert scenario.dollars_per_hour == {"A100": 3.5, "L4": 1.0, "T4": 0.5}
    assert (load().slos, load().dollars_per_hour) == ((), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slo": {"quick": {}}}, "slo.quick: give at least one limit"),
        ({"slo": {"quick": {"ttft": 5}}}, "slo.quick.ttft: 5 has no unit"),
        ({"slo": {"quick": {"ttft": "0 s"}}}, "slo.quick.ttft"),
        ({"slo": {"quick": {"tfft": "1 s"}}}, "did you mean 'ttft'"),
        ({"slo": {"quick": {"ttft": "1 s", "share": 1.5}}}, "slo.quick.share"),
        ({"dollars_per_hour": {"A100": 1}}, "dollars_per_hour.L4: this key is missing"),
        ({"dollars_per_hour": {"A100": 1, "L4": -1}}, "dollars_per_hour.L4"),
        (
            {"dollars_per_hour": {"A100": 1, "L4": 1, "T44": 1}},
            "dollars_per_hour.T44: no machine type 'T44'; did you mean 'T4",
        ),
    ],
)
def test_mistakes_are_named(load, changes, message):
    with pytest.raises(ScenarioError, match=re.escape(message)):
        load(changes)


def test_attainment_and_goodput_of_each_class(result):
    requests = result.requests
    ended = requests[requests.status == "completed"]
    assert len(ended) == 2
    quick = ended[ended.ttft_s <= 9.0]
    assert len(quick) == 1
    found = result.summary["slo"]
    assert list(found) == ["any", "fast", "strict"]
    assert found["fast"] == {
        "finished": 2,
        "attainment": 0.5,
        "met": True,
        "goodput_requests_per_s": 1 / 100,
        # Five decodes, and the token of the prefill.
        "goodput_output_tokens_per_s": 6 / 100,
    }
    assert found["any"]["attainment"] == 1.0
    assert found["any"]["met"] is None
    assert found["any"]["goodput_requests_per_s"] == result.summary["requests_per_s"]
    assert found["strict"]["met"] is False
    assert found["strict"]["goodput_output_tokens_per_s"] == 0.0


def test_a_limit_may_be_reached_and_only_the_window_counts(result):
    rows = result.tables["requests"]
    first, second = sorted(result.requests.end_s.dropna())
    ttft_s = sorted(result.requests.ttft_s.dropna())[0]

    def share(limit_s, start_s, end_s):
        (found,) = attainments([Slo(name="x", ttft_s=limit_s)], rows, start_s, end_s).values()
        return found["finished"], found["attainment"]

    assert share(ttft_s, first, first) == (1, 1.0)
    assert share(math.nextafter(ttft_s, 0), first, first) == (1, 0.0)
    assert share(1e9, first, second) == (2, 1.0)
    assert share(1e9, math.nextafter(second, math.inf), second + 1) == (0, None)


def test_an_answer_of_one_token_keeps_to_any_time_per_token():
    scenario = make_scenario(LAYERS, requests=[(0.0, 3, 1)])
    rows = simulate(scenario).tables["requests"]
    table = rows.as_dict()
    table["tpot_s"][0] = math.nan
    slo = Slo(name="x", tpot_s=1e-9)
    assert attainments([slo], rows, 0.0, 100.0)["x"]["attainment"] == 1.0


def test_cost(result):
    summary = result.summary
    per_second = 3.6 / 3600
    assert summary["cost"] == {
        "dollars_per_hour": 3.6,
        "dollars_per_million_output_tokens": pytest.approx(
            per_second / summary["output_tokens_per_s"] * 1e6, rel=1e-15
        ),
        "dollars_per_million_total_tokens": pytest.approx(
            per_second / summary["total_tokens_per_s"] * 1e6, rel=1e-15
        ),
    }


def test_nothing_served_has_no_price_and_no_attainment():
    scenario = make_scenario(LAYERS, requests=[(90.0, 1, 1)], duration_s=8.0)
    summary = simulate(replace(scenario, slos=SLOS, dollars_per_hour={"kind": 2})).summary
    assert summary["cost"] == {
        "dollars_per_hour": 4.0,
        "dollars_per_million_output_tokens": None,
        "dollars_per_million_total_tokens": None,
    }
    assert summary["slo"]["fast"]["attainment"] is None
    assert summary["slo"]["fast"]["met"] is None
    assert summary_text(summary).splitlines()[-3:] == [
        "SLO strict: no request finished; goodput 0.000 requests/s, 0.0 output tokens/s",
        "cost: 4.00 $/h",
        "warning: no request of the trace arrives in the run of 8 s: the first is at 90 s",
    ]


def test_without_any_nothing_is_told():
    summary = simulate(make_scenario(LAYERS, requests=[(0.0, 3, 1)])).summary
    assert (summary["slo"], summary["cost"]) == ({}, None)
    assert "SLO" not in summary_text(summary)
    assert "cost" not in summary_text(summary)


def test_text(result):
    lines = summary_text(result.summary).splitlines()
    assert (
        "SLO fast: 50.0% of requests within limits, met; goodput 0.010 requests/s, "
        "0.1 output tokens/s" in lines
    )
    assert any(
        line.startswith("SLO strict: 0.0% of requests within limits, missed") for line in lines
    )
    price = result.summary["cost"]["dollars_per_million_output_tokens"]
    assert lines[-1].startswith(f"cost: 3.60 $/h; {price:.2f} $ per million output tokens; ")


@pytest.mark.parametrize("section", ["SLO", "Cost"])
def test_keys_are_documented(result, section):
    text = (DOCS / "results.md").read_text("utf-8").partition(f"\n### {section}\n")[2]
    table = re.search(r"\| key \|.*?\n\n", text, re.DOTALL)
    found = result.summary["cost"] if section == "Cost" else result.summary["slo"]["fast"]
    assert re.findall(r"^\| `(\w+)` \|", table[0], re.MULTILINE) == list(found)

"""Objectives and prices: from the scenario file to the summary."""

from __future__ import annotations

import math
import re
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
from builders import make_scenario

from helixsim.errors import ScenarioError
from helixsim.hardware.catalogue import load_gpu
from helixsim.metrics.attainment import attainments
from helixsim.metrics.recorder import RunRecorder
from helixsim.metrics.summary_text import summary_text
from helixsim.models.simulation import simulate
from helixsim.profiles.library import load_machine_type
from helixsim.report.page import report_page
from helixsim.scenario.prices import unpriced_types
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
        LAYERS, requests=[(0.0, 3, 5), (1.0, 20, 5), (95.0, 30, 500)], duration_s=100.0
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
    assert load().slos == ()


def test_prices_and_power_are_the_catalogues_unless_given(load):
    usual = {name: load_gpu(gpu) for name, gpu in (("A100", "A100-40-SXM"), ("L4", "L4"))}
    scenario = load({"dollars_per_hour": {"A100": 9}, "watts": {"L4": 50}})
    assert scenario.dollars_per_hour == {"A100": 9.0, "L4": usual["L4"].dollars_per_hour}
    assert scenario.watts == {"A100": usual["A100"].power_w, "L4": 50.0}
    assert load_machine_type("L4x2").power_w == 2 * usual["L4"].power_w


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slo": {"quick": {}}}, "slo.quick: give at least one limit"),
        ({"slo": {"quick": {"ttft": 5}}}, "slo.quick.ttft: 5 has no unit"),
        ({"slo": {"quick": {"ttft": "0 s"}}}, "slo.quick.ttft"),
        ({"slo": {"quick": {"tfft": "1 s"}}}, "did you mean 'ttft'"),
        ({"slo": {"quick": {"ttft": "1 s", "share": 1.5}}}, "slo.quick.share"),
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
        "due": 2,
        "finished": 2,
        "refused": 0,
        "overdue": 0,
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

    def kept(limit_s, start_s, end_s):
        (found,) = attainments([Slo(name="x", ttft_s=limit_s)], rows, start_s, end_s).values()
        return found["finished"], found["due"] and found["attainment"] * found["due"]

    assert kept(ttft_s, first, first) == (1, 1.0)
    assert kept(math.nextafter(ttft_s, 0), first, first) == (1, 0.0)
    assert kept(1e9, first, second) == (2, 2.0)
    assert kept(1e9, math.nextafter(second, math.inf), second + 1) == (0, 0)


def test_an_answer_of_one_token_keeps_to_any_time_per_token():
    scenario = make_scenario(LAYERS, requests=[(0.0, 3, 1)])
    rows = simulate(scenario).tables["requests"]
    table = rows.as_dict()
    table["tpot_s"][0] = math.nan
    slo = Slo(name="x", tpot_s=1e-9)
    assert attainments([slo], rows, 0.0, 100.0)["x"]["attainment"] == 1.0


def due(slo, rows, start_s=10.0, end_s=20.0):
    """What is due of requests of one row each: (status, arrival, first token, end, answer)."""
    table = RunRecorder(start_s, end_s, (), keep_iterations=False).requests
    for number, (status, arrival_s, first_s, ended_s, output_tokens) in enumerate(rows):
        decodes = output_tokens - 1
        table.add(
            *(number, status, arrival_s, arrival_s, first_s, ended_s, 5, output_tokens, decodes),
            *(first_s - arrival_s, (ended_s - first_s) / decodes, ended_s - arrival_s),
            *(None, 0, 0, 0),
        )
    found = attainments([slo], table, start_s, end_s)["x"]
    return {key: found[key] for key in ("due", "finished", "refused", "overdue", "attainment")}


NONE = math.nan


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (("completed", 11.0, 12.0, 14.0, 3), "finished"),
        (("completed", 8.0, 9.0, 10.0, 3), "finished"),  # it arrived before the window
        (("completed", 5.0, 7.0, 9.9, 3), None),  # completed before the window
        (("rejected: kv", 11.0, NONE, NONE, 3), "refused"),
        (("rejected: kv", 9.9, NONE, NONE, 3), None),
        (("failed: a was lost", 20.0, NONE, NONE, 3), "refused"),
        (("cancelled", 11.0, NONE, NONE, 3), None),
        (("waiting", 18.0, NONE, NONE, 3), None),  # its first token may come in time: 2 s
        (("waiting", 17.9, NONE, NONE, 3), "overdue"),
        (("in flight", 17.0, 19.5, NONE, 3), "overdue"),  # the first token came after 2.5 s
        (("in flight", 14.0, 15.0, NONE, 3), "overdue"),  # three tokens of 1 s should be here
        (("in flight", 14.0, 15.0, NONE, 6), None),
        (("in flight", 9.9, 11.0, NONE, 30), "overdue"),  # 10 s from end to end
        (("completed", 18.5, 19.5, 23.0, 5), None),  # in a run that drains
        (("completed", 17.0, 23.0, 24.0, 3), "overdue"),  # completed after the window, and late
        (("in flight", 21.0, NONE, NONE, 3), None),
    ],
)
def test_requests_that_are_due(row, kind):
    slo = Slo(name="x", ttft_s=2.0, tpot_s=1.0, e2e_s=10.0)
    found = due(slo, [row])
    assert found["due"] == (kind is not None)
    assert {key for key in ("finished", "refused", "overdue") if found[key]} == {kind} - {None}
    assert found["attainment"] == (None if kind is None else kind == "finished")


def test_rejected_requests_miss_their_slo():
    completed = ("completed", 11.0, 12.0, 14.0, 3)
    rejected = ("rejected: kv", 12.0, NONE, NONE, 3)
    late = ("waiting", 13.0, NONE, NONE, 3)
    found = due(Slo(name="x", ttft_s=2.0), [completed, *[rejected] * 5, late, late])
    assert found == {"due": 8, "finished": 1, "refused": 5, "overdue": 2, "attainment": 1 / 8}


def test_cost(result):
    summary = result.summary
    per_second = 3.6 / 3600
    assert summary["cost"] == {
        "prices": "usual",
        "dollars_per_hour": 3.6,
        "dollars_per_million_output_tokens": pytest.approx(
            per_second / summary["output_tokens_per_s"] * 1e6, rel=1e-15
        ),
        "dollars_per_million_total_tokens": pytest.approx(
            per_second / summary["total_tokens_per_s"] * 1e6, rel=1e-15
        ),
    }


def test_energy(result):
    # Two machines of 500 W for an hour are 1 kWh.
    scenario = make_scenario(
        LAYERS, requests=[(0.0, 3, 5), (1.0, 20, 5), (90.0, 30, 500)], duration_s=100.0
    )
    summary = simulate(replace(scenario, watts={"kind": 500.0})).summary
    assert summary["energy"] == {
        "kilowatts": 1.0,
        "kwh_per_million_output_tokens": pytest.approx(1e6 / 3600 / summary["output_tokens_per_s"]),
        "kwh_per_million_total_tokens": pytest.approx(1e6 / 3600 / summary["total_tokens_per_s"]),
    }
    assert "energy: 1.00 kW at the boards' limits; " in summary_text(summary)
    assert result.summary["energy"] is None


def test_a_report_has_cost_and_energy(result):
    figures = {"kilowatts": 1.25, "kwh_per_million_output_tokens": 2.5}
    powered = copy(result)
    powered.summary = result.summary | {"energy": figures}
    page = report_page({"one": result, "other": powered})
    row = page[page.index("kW, kWh per million output tokens") :]
    assert "".join(row[: row.index("</tr>")].split()) == (
        "kW,kWhpermillionoutputtokens</td><td>-</td><td>1.25,2.50</td>"
    )
    assert "kWh per million" not in report_page({"one": result})


def test_a_type_without_a_price_is_named_where_others_have_one():
    known = {"A100": 1.0}
    assert list(unpriced_types(known, ["A100", "mine"])) == [
        ("mine", "this key is missing: the cluster has such machines (0 if they are free)")
    ]


def test_nothing_served_has_no_price_and_no_attainment():
    scenario = make_scenario(LAYERS, requests=[(90.0, 1, 1)], duration_s=8.0)
    summary = simulate(replace(scenario, slos=SLOS, dollars_per_hour={"kind": 2})).summary
    assert summary["cost"] == {
        "prices": "usual",
        "dollars_per_hour": 4.0,
        "dollars_per_million_output_tokens": None,
        "dollars_per_million_total_tokens": None,
    }
    assert summary["slo"]["fast"]["attainment"] is None
    assert summary["slo"]["fast"]["met"] is None
    assert summary_text(summary).splitlines()[-3:] == [
        "SLO strict: no request was due; goodput 0.000 requests/s, 0.0 output tokens/s",
        "cost: 4.00 $/h at usual prices",
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
        "SLO fast: 50.0% of 2 requests due within limits, met; goodput 0.010 requests/s, "
        "0.1 output tokens/s" in lines
    )
    due = result.summary["slo"]["strict"]["due"]
    start = f"SLO strict: 0.0% of {due} requests due within limits"
    assert any(line.startswith(start) and ", missed; " in line for line in lines)
    price = result.summary["cost"]["dollars_per_million_output_tokens"]
    assert lines[-1].startswith(
        f"cost: 3.60 $/h at usual prices; {price:.2f} $ per million output tokens; "
    )


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("key", lambda summary: summary["slo"]["fast"]),
        ("key of `cost`", lambda summary: summary["cost"]),
        ("key of `energy`", lambda summary: summary["energy"]),
    ],
)
def test_keys_are_documented(result, head, found):
    whole = simulate(replace(result.scenario, watts={"kind": 500.0})).summary
    text = (DOCS / "results.md").read_text("utf-8").partition("\n### SLO\n")[2]
    table = re.search(rf"\| {head} \|.*?\n\n", text, re.DOTALL)
    assert re.findall(r"^\| `(\w+)` \|", table[0], re.MULTILINE) == list(found(whole))

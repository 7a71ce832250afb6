"""How values show themselves: one line as text, a small table and a picture in notebooks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from helixsim import Placement, capacity, load_results, load_scenario, simulate, sweep
from helixsim.errors import InputError, PlacementError
from helixsim.plots import PICTURES

SHORT = {"duration": "30 s", "warmup": "5 s"}


@pytest.fixture(scope="module")
def scenario():
    return load_scenario("quickstart").with_(run=SHORT)


@pytest.fixture(scope="module")
def result(scenario):
    return simulate(scenario)


@pytest.fixture(scope="module")
def values(scenario, result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "saved"
    result.write(folder)
    short = {"mode": "online", "mean_tokens_per_s": 300, "max_output_tokens": 30}
    online = scenario.with_(workload=short)
    return {
        "Scenario": scenario,
        "Placement": scenario.placement,
        "RunResult": result,
        "RunResult saved": load_results(folder),
        "SweepResult": sweep(scenario, {"grid": {"run.duration": ["20 s", "25 s"]}}, jobs=1),
        "CapacityResult": capacity(
            online, "ttft_s.p50<=9", seeds=1, tolerance=1, keep_up=0.1, jobs=1
        ),
    }


NAMES = ["Scenario", "Placement", "RunResult", "RunResult saved", "SweepResult", "CapacityResult"]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_in_one_line(values, name):
    text = repr(values[name])
    assert text.startswith(f"<{name}")
    assert len(text) < 200
    assert "\n" not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_value_as_a_small_table(values, name):
    html = values[name]._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 1
    has_picture = name.split()[0] in ("Scenario", "Placement", "RunResult")
    assert html.count("data:image/svg+xml") == has_picture


def test_what_they_say(values):
    assert repr(values["Scenario"]) == (
        "<Scenario quickstart: llama1-30b on 2 x A100, 2 x L4x2, 2 x T4x2; offline, paper physics>"
    )
    assert "of 6 nodes: " in repr(values["Placement"])
    assert "decode tokens/s, first token after" in repr(values["RunResult"])
    assert repr(values["SweepResult"]).startswith("<SweepResult quickstart: 2 runs, 0 failed")
    assert "requests/s at workload.mean_tokens_per_s=" in repr(values["CapacityResult"])


def test_long_values_stay_short():
    placement = Placement({f"a-very-long-name-of-a-node-{i}": (i, i + 1) for i in range(500)})
    assert len(repr(placement)) < 200
    assert "and 480 more" in placement._repr_html_()


def test_texts_are_escaped(scenario):
    assert "<b>x</b>" not in replace(scenario, name="<b>x</b>")._repr_html_()


def test_scenarios_and_placements_are_drawn(scenario):
    assert isinstance(scenario.plot(), Figure)
    assert isinstance(scenario.placement.plot(), Figure)
    unplaced = replace(scenario, placement=None)
    with pytest.raises(PlacementError, match="has no placement to show"):
        unplaced.plot()
    assert "<img" not in unplaced._repr_html_()


@pytest.mark.parametrize("name", [None, *PICTURES])
def test_results_are_drawn(result, name):
    assert isinstance(result.plot(name), Figure)


def test_an_unknown_picture_is_refused(result):
    with pytest.raises(InputError, match="no picture 'queue'; there are latencies, throughput"):
        result.plot("queue")

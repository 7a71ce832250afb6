"""Plots and reports of results."""

from __future__ import annotations

import gzip
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from helixsim import load_results, load_scenario, plots, simulate
from helixsim.cli import app
from helixsim.errors import InputError
from helixsim.models.tracing import TracedStep, node_tracks
from helixsim.plots.node_timeline import _colour
from helixsim.plots.pictures import figure_bytes, pictures_of


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two runs, one of them in CSV."""
    folder = tmp_path_factory.mktemp("results")
    short = ["--set", "run.duration=60 s", "--set", "run.warmup=20 s"]
    for name, extra in (("one", ["--format", "csv"]), ("two", ["--seed", "5"])):
        done = invoke("run", "quickstart", *short, *extra, "-o", folder / name)
        assert done.exit_code == 0, done.output
    return folder


def test_saved_results_are_those_of_the_run(folders):
    saved = load_results(folders / "two")
    overrides = ["run.duration=60 s", "run.warmup=20 s", "run.seed=5"]
    result = simulate(load_scenario("quickstart", overrides))
    assert saved.summary == result.summary
    for name in ("requests", "nodes", "links", "timeline"):
        assert len(getattr(saved, name)) == len(getattr(result, name))
    assert len(load_results(folders / "one").nodes) == len(saved.nodes)


def test_saved_results_know_their_scenario_and_can_be_written_again(folders, tmp_path):
    saved = load_results(folders / "one")
    assert (saved.name, saved.seed, saved.scenario.name) == ("one", 0, "quickstart")
    assert saved.scenario.digest == saved.manifest["scenario_sha256"]
    saved.write(tmp_path / "copy", table_format="csv")
    for file in ("requests.csv", "nodes.csv", "summary.json", "manifest.json"):
        assert (tmp_path / "copy" / file).read_bytes() == (folders / "one" / file).read_bytes()
    with pytest.raises(InputError, match=r"has no iterations\.parquet"):
        saved.iterations  # noqa: B018


def test_a_scenario_whose_files_are_gone_is_told(folders):
    saved = load_results(folders / "one")
    saved.manifest["scenario"] = saved.manifest["scenario"] | {"llm": "missing.yaml"}
    with pytest.raises(InputError, match="names files that are not found beside them"):
        saved.scenario  # noqa: B018


def test_folders_without_results_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no summary\.json; name a folder"):
        load_results(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_results(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="should be an object"):
        load_results(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no nodes\.parquet and no nodes\.csv"):
        load_results(tmp_path).nodes  # noqa: B018


@pytest.mark.parametrize("name", plots.PICTURES)
def test_every_picture_says_what_it_shows(folders, name):
    figure = plots.PICTURES[name](load_results(folders / "two"))
    assert isinstance(figure, Figure)
    for ax in figure.axes[:1]:
        assert ax.get_title("left") or ax.get_title()
        assert ax.get_xlabel()
    assert figure_bytes(figure, "png")[:4] == b"\x89PNG"


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Folder of a run with a trace, and the result in memory."""
    scenario = load_scenario("quickstart", ["run.duration=40 s", "run.warmup=10 s"])
    result = simulate(scenario, trace_span_s=(20.0, 25.0))
    folder = tmp_path_factory.mktemp("traced") / "traced"
    result.write(folder)
    return folder, result


def bars_of(figure):
    """(left, right) of each bar, row by row."""
    return [
        [path.get_extents().intervalx for path in bars.get_paths()]
        for bars in figure.axes[0].collections
    ]


def test_node_timeline_has_a_row_for_each_node_in_the_order_of_the_layers(traced):
    ax = plots.node_timeline(traced[1]).axes[0]
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels[:3] == ["a100-0 [0:14]", "a100-1 [14:28]", "l4-pair-0 [28:42]"]
    assert labels[-1] == "t4-pair-1 [51:60]"
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first layers stand on top"
    assert ax.get_xlim() == pytest.approx((21.0, 24.0), abs=0.1), "the middle of the trace"
    assert "preset tuned" in ax.get_title("left")
    assert ax.get_xlabel().endswith(", s")


def test_node_timeline_has_a_bar_for_each_step(traced):
    figure = plots.node_timeline(traced[1], start_s=22, span_s=1)
    tracks = node_tracks(traced[1].trace)
    rows = bars_of(figure)
    assert len(rows) == len(tracks) == 6
    for bars, track in zip(rows, sorted(tracks, key=lambda track: track.node), strict=True):
        expected = [(s.start_s, s.end_s) for s in track.steps if s.end_s > 22 and s.start_s < 23]
        assert np.array(bars) == pytest.approx(np.array(expected))
        assert bars


def test_node_timeline_says_how_long_nodes_are_busy(traced):
    notes = [text.get_text() for text in plots.node_timeline(traced[1]).axes[0].texts]
    assert "busy" in notes
    shares = [int(text.rstrip("%")) for text in notes if text != "busy"]
    assert len(shares) == 6
    assert all(0 < share <= 100 for share in shares)


def test_node_timeline_tells_kinds_of_steps_apart():
    steps = [TracedStep(0, 1, *what) for what in ((9, 0), (0, 1), (0, 300), (9, 1), (9, 300))]
    assert len({_colour(step) for step in steps}) == len(steps)
    assert _colour(TracedStep(0, 1, 0, 4)) == _colour(TracedStep(0, 1, 0, 15))


def test_node_timeline_needs_a_trace(folders, traced):
    with pytest.raises(InputError, match="was not traced"):
        load_results(folders / "one").plot("node-timeline")
    with pytest.raises(InputError, match="above 0"):
        plots.node_timeline(traced[1], span_s=0)


def test_a_trace_that_is_none_is_told(traced, tmp_path):
    result = load_results(traced[0])
    result.write(tmp_path / "copy")
    (tmp_path / "copy" / "trace.json.gz").write_bytes(b"no trace")
    with pytest.raises(InputError, match="is no trace"):
        load_results(tmp_path / "copy").plot("node-timeline")
    with pytest.raises(InputError, match="is no trace"):
        node_tracks(gzip.compress(b'{"traceEvents": [{"pid": 1, "ph": "X"}]}'))


def test_saved_results_have_their_trace(traced, tmp_path):
    folder, result = traced
    saved = load_results(folder)
    assert saved.trace == result.trace
    assert figure_bytes(saved.plot("node-timeline"), "png")[:4] == b"\x89PNG"
    saved.write(tmp_path / "copy")
    assert load_results(tmp_path / "copy").trace == result.trace


def test_commands_draw_the_trace(traced, tmp_path):
    done = invoke("plot", traced[0], "-o", tmp_path / "plots")
    assert done.exit_code == 0, done.output
    written = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert written == {*plots.PICTURES, *plots.TRACE_PICTURES}
    page = tmp_path / "report.html"
    assert invoke("report", traced[0], "-o", page).exit_code == 0
    assert 'id="node-timeline"' in page.read_text(encoding="utf-8")


def test_heat_maps_show_every_node(folders):
    results = load_results(folders / "two")
    labels = {text.get_text() for text in plots.utilisation(results).axes[0].get_yticklabels()}
    assert labels == set(results.nodes["node"])


def test_utilisation_of_the_busiest_stands_on_top(folders):
    results = load_results(folders / "two")
    first = plots.utilisation(results).axes[0].get_yticklabels()[0].get_text()
    means = results.nodes.groupby("node")["utilisation"].mean()
    assert means[first] == means.max()


def test_comparison_has_a_bar_for_each_run(folders):
    runs = {name: load_results(folders / name) for name in ("one", "two")}
    bars = plots.comparison(runs).axes[0].patches
    widths = [bar.get_width() for bar in bars]
    assert widths == [run.summary["decode_tokens_per_s"] for run in runs.values()]


def test_pictures_are_the_same_every_time(folders):
    results = {"one": load_results(folders / "one")}

    def drawn():
        return {name: figure_bytes(figure, "svg") for name, figure in pictures_of(results)}

    assert drawn() == drawn()


def test_plot_command(folders, tmp_path):
    done = invoke("plot", folders / "one")
    assert done.exit_code == 0, done.output
    written = {path.stem for path in (folders / "one" / "plots").iterdir()}
    assert written == set(plots.PICTURES)
    assert invoke("plot", folders / "one").exit_code == 2
    assert invoke("plot", folders / "one", "--force").exit_code == 0
    done = invoke(
        "plot", folders / "one", folders / "two", "-o", tmp_path / "both", "--format", "svg"
    )
    assert done.exit_code == 0, done.output
    names = {path.name for path in (tmp_path / "both").iterdir()}
    assert {"comparison.svg", "latencies.svg", "one-kv-use.svg", "two-queues.svg"} <= names
    assert "add -o DIR" in invoke("plot", folders / "one", folders / "two").output
    twice = invoke("plot", folders / "one", folders / "one", "-o", tmp_path / "x")
    assert "stands there twice" in twice.output


def test_report_is_one_page_that_needs_nothing_else(folders, tmp_path):
    page = tmp_path / "report.html"
    done = invoke("report", folders / "one", "-o", page)
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert text.count("<img") == len(plots.PICTURES) + 1  # and the placement
    saved = load_results(folders / "one")
    assert f"{saved.summary['decode_tokens_per_s']:,.1f}" in text
    assert "initial_requests" in text
    assert saved.manifest["scenario_sha256"] in text
    assert invoke("report", folders / "one", "-o", page).exit_code == 2
    assert invoke("report", folders / "one", "-o", tmp_path / "report.pdf").exit_code == 2


def test_report_tells_objectives_and_cost(tmp_path):
    settings = [
        *("--set", "run.duration=60 s", "--set", "run.warmup=20 s"),
        *("--set", 'slo={"chat": {"ttft": "9 s"}}'),
        *("--set", 'dollars_per_hour={"A100": 3.67, "L4x2": 1.62, "T4x2": 0.85}'),
    ]
    done = invoke("run", "quickstart", *settings, "-o", tmp_path / "priced")
    assert done.exit_code == 0, done.output
    assert invoke("report", tmp_path / "priced", "-o", tmp_path / "p.html").exit_code == 0
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "Objectives chat" in text
    assert "12.28, " in text


def test_report_compares_several(folders, tmp_path):
    page = tmp_path / "report.html"
    done = invoke("report", folders / "one", folders / "two", "-o", page)
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert text.index('id="comparison"') < text.index('id="one-kv-use"')


def test_report_takes_the_scenario_that_was_run(folders, tmp_path):
    page = tmp_path / "report.html"
    assert invoke("report", folders / "one", "-o", page, "--scenario", "quickstart").exit_code == 0
    file = tmp_path / "other.yaml"
    file.write_text("schema: 1\n")
    done = invoke("report", folders / "one", "-o", page, "--force", "--scenario", file)
    assert done.exit_code == 2


def test_names_are_escaped(folders, tmp_path):
    odd = tmp_path / "a<b>&c"
    odd.mkdir()
    for path in (folders / "one").iterdir():
        if path.is_file():
            (odd / path.name).write_bytes(path.read_bytes())
    page = tmp_path / "report.html"
    assert invoke("report", odd, "-o", page).exit_code == 0
    assert "<b>" not in page.read_text(encoding="utf-8")

"""Recorded runs: reading them, their figures, replaying and calibrating."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_scenario, offline
from typer.testing import CliRunner

from helixsim.calibration import CalibrationSettings, calibrate, fit_engine
from helixsim.calibration.document import engine_document
from helixsim.calibration.fit import Recording
from helixsim.calibration.parameters import Parameters
from helixsim.cli import app
from helixsim.errors import InputError
from helixsim.metrics.output import EVENT_COLUMNS
from helixsim.models.simulation import simulate
from helixsim.physics.engine import EngineCosts, EngineFile, GpuCosts, load_engine, shipped_engines
from helixsim.profiles.machine import LatencyProfile
from helixsim.recorded.figures import errors, recorded_figures
from helixsim.recorded.inspection import inspect_run, series
from helixsim.recorded.recording import load_recorded_run
from helixsim.recorded.replay import ReplaySettings, replay
from helixsim.scenario.load import load_scenario
from helixsim.yaml_files import parse_yaml, validate, yaml_text

LAYERS = {"compute_node_2": (0, 2), "compute_node_3": (2, 4), "compute_node_4": (2, 4)}
PREFILL = LatencyProfile((0, 10, 100), (0.0, 0.02, 0.1))
DECODE = LatencyProfile((0, 2, 10), (0.0, 0.015, 0.03))
ENGINE = EngineCosts(
    name="true",
    scheduler="prototype",
    per_sequence_overhead_s=0.0002,
    prompt_s=0.0005,
    poll_layer_s=0.0001,
    delivery_jitter_s=0.0002,
    copy_bytes_per_s=1e9,
    send_bytes_per_s=1e9,
    other_gpus=GpuCosts(prefill_scale=1.2, layer_pass_s=0.004, multi_sequence_overhead_s=0.001),
)
REQUESTS = [(0.15 * i, 10 + 7 * (i % 5), 4 + i % 6) for i in range(60)]


def cluster(physics="calibrated", engine=ENGINE, **changes):
    settings = {"requests": REQUESTS, "prefill": PREFILL, "decode": DECODE, "duration_s": 12.0}
    scenario = make_scenario(LAYERS, **(settings | changes))
    return replace(scenario, physics=physics, engine=engine)


def record(folder: Path, scenario, *, names=False, seed=0):
    """Write a simulated run as if a cluster had been recorded."""
    result = simulate(scenario, seed=seed, record_iterations=True)
    zero = result.summary["window_start_s"] - scenario.run.warmup_s
    requests = result.requests.set_index("request")
    lines = []
    for row in result.iterations.itertuples():
        prompt = int(requests.loc[row.request, "prompt_tokens"])
        tokens = prompt if row.phase == "prompt" else 1
        context = 0 if row.phase == "prompt" else prompt + row.iteration - 1
        for at, order, direction in ((row.end_s, 0, "in"), (row.start_s, 1, "out")):
            text = f"{at - zero!r},{row.request},{direction},{row.phase},{context},{tokens}"
            lines.append((at, order, text))
    folder.mkdir()
    body = "\n".join([",".join(EVENT_COLUMNS), *(text for *_, text in sorted(lines))])
    (folder / "events.csv.gz").write_bytes(gzip.compress(body.encode()))
    numbers = {name: place + 1 for place, name in enumerate(LAYERS)}
    routes = []
    for index, row in requests.iterrows():
        if row["status"].startswith("rejected") or not isinstance(row["route"], str):
            continue
        stages = [part.rstrip("]").split("[") for part in row["route"].split()]
        ends = [part.split(":") for _, part in stages]
        routes.append(
            {
                "query": index,
                "input_tokens": int(row["prompt_tokens"]),
                "output_tokens": int(row["output_tokens"]),
                "nodes": [*(numbers[name] for name, _ in stages), 0],
                "start_layers": [*(int(start) for start, _ in ends), -1],
                "end_layers": [*(int(end) for _, end in ends), -1],
            }
        )
    (folder / "routes.jsonl").write_text("\n".join(map(json.dumps, routes)))
    if names:
        named = {"0": "coordinator"} | {str(n): name for name, n in numbers.items()}
        (folder / "nodes.json").write_text(json.dumps(named))
    return result


def write_run(folder: Path, events, routes=None):
    folder.mkdir(exist_ok=True)
    (folder / "events.csv").write_text("\n".join([",".join(EVENT_COLUMNS), *events]))
    routes = routes or [route(0)]
    (folder / "routes.jsonl").write_text("\n".join(map(json.dumps, routes)))
    return folder


def route(query, **changes):
    plain = {
        "query": query,
        "input_tokens": 5,
        "output_tokens": 2,
        "nodes": [1, 2, 0],
        "start_layers": [0, 2, -1],
        "end_layers": [2, 4, -1],
    }
    return plain | changes


# -- reading


def test_reading(tmp_path):
    folder = write_run(
        tmp_path / "run",
        ["1,0,out,prompt,0,5", "3,0,in,prompt,0,5", "3,0,out,decode,5,1", "4.5,0,in,decode,5,1"],
    )
    run = load_recorded_run(folder)
    (request,) = run.requests
    assert (request.query, request.dispatched_s, request.prompt_tokens) == (0, 1.0, 5)
    assert [(s.node, s.start_layer, s.end_layer) for s in request.stages] == [(0, 0, 2), (1, 2, 4)]
    assert run.node_names == {0: "compute_node_2", 1: "compute_node_3"}
    assert run.passes.latency_s.tolist() == [2.0, 1.5]
    assert (run.length_s, run.sending_ended_s, run.is_closed_loop) == (4.5, 4.5, False)
    found = recorded_figures(run, 0.0, 4.5)
    assert found["decode_tokens_per_s"] == pytest.approx(1 / 4.5)
    assert found["prompt_latency_s"]["mean"] == 2.0


def test_events_may_be_written_down_in_another_order(tmp_path):
    events = ["1,0,out,prompt,0,5", "3,0,in,prompt,0,5", "3,0,out,decode,5,1", "4,0,in,decode,5,1"]
    run = load_recorded_run(write_run(tmp_path / "run", [events[3], *events[:3]]))
    # At one time, a pass comes back before the next one leaves, as it is written.
    assert run.passes.latency_s.tolist() == [2.0, 1.0]


def test_chunks_of_a_prefill_are_one_pass(tmp_path):
    folder = write_run(
        tmp_path / "run",
        ["1,0,out,prompt,0,3", "2,0,in,prompt,0,3", "2,0,out,prompt,3,2", "4,0,in,prompt,3,2"],
    )
    run = load_recorded_run(folder)
    assert run.passes.latency_s.tolist() == [3.0]
    assert run.requests[0].prompt_tokens == 5


def test_what_never_came_back_does_not_count(tmp_path):
    run = load_recorded_run(write_run(tmp_path / "run", ["1,0,out,prompt,0,5"]))
    assert np.isinf(run.passes.end_s).all()
    assert recorded_figures(run, 0.0, 1.0)["prompt_latency_s"]["mean"] is None


MISTAKES = [
    (["1,0,in,prompt,0,5"], None, "row 2: request 0 comes back without having left"),
    (["1,0,out,decode,0,1"], None, "row 2: request 0 leaves for a decode before its prompt"),
    (["2,0,out,prompt,0,5", "1,0,in,prompt,0,5"], None, "row 3: request 0 comes back without"),
    (["nan,0,out,prompt,0,5"], None, "row 2: time nan should be finite"),
    (["1,0,up,prompt,0,5"], None, "row 2: direction is in or out"),
    (["1,0,out,prompt"], None, "row 2: not enough values"),
    (["1,0,out,prompt,0,x"], None, "row 2: invalid literal"),
    ([], None, "has no events"),
    (["1,0,out,prompt,0,5"], [route(0, nodes=[1, 0])], "row 1: should be an object with query"),
    (["1,0,out,prompt,0,5"], [route(0), route(0)], "row 2: request 0 has a duplicate route"),
    (["1,0,out,prompt,0,5"], [route(0, output_tokens=0)], "row 1: needs output_tokens"),
]


@pytest.mark.parametrize(("events", "routes", "message"), MISTAKES)
def test_mistakes_are_named(tmp_path, events, routes, message):
    folder = write_run(tmp_path / "run", events, routes)
    with pytest.raises(InputError) as error:
        load_recorded_run(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("events.csv", "a,b\n", "row 1: should begin with time_s,query"),
        ("events.csv.gz", "no gzip", "cannot be read"),
        ("nodes.json", "[]", "should be an object such as"),
        ("routes.jsonl", "", "has no requests"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    folder = write_run(tmp_path / "run", ["1,0,out,prompt,0,5"])
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load_recorded_run(folder)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"routes\.jsonl\.gz is missing"):
        load_recorded_run(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        load_recorded_run(tmp_path / "nothing")


# -- replaying


def test_a_run_of_our_own_replays_as_it_was(tmp_path):
    scenario = cluster()
    record(tmp_path / "run", scenario)
    run = load_recorded_run(tmp_path / "run")
    result = replay(run, scenario, ReplaySettings(warmup_s=2.0))
    assert not run.is_closed_loop
    assert result.recorded["decode_tokens_per_s"] > 5
    for key, error in result.error["decode_latency_s"].items():
        assert error == pytest.approx(0.0, abs=1e-9), key
    assert result.error["decode_tokens_per_s"] == pytest.approx(0.0, abs=1e-9)


def test_a_closed_loop_replays_as_one(tmp_path):
    workload = offline([(20, 5), (35, 8)], initial_requests=6, spacing_s=0.0)
    scenario = cluster(workload=workload, feed_high_water_mark=1e-9)
    record(tmp_path / "run", scenario)
    run = load_recorded_run(tmp_path / "run")
    # Slower machines get fewer requests where requests follow completions, as many where not.
    slower = cluster(engine=ENGINE.model_copy(update={"other_gpus": GpuCosts(layer_pass_s=0.1)}))
    found = {
        closed: replay(run, slower, ReplaySettings(warmup_s=1.0, closed_loop=closed))
        for closed in (True, False)
    }
    arrived = {c: r.results[0].summary["requests"]["arrived"] for c, r in found.items()}
    assert run.is_closed_loop
    assert arrived[True] < arrived[False] == len(run.requests)


def test_rerouting_leaves_routes_to_the_scheduler(tmp_path):
    scenario = cluster()
    record(tmp_path / "run", scenario)
    run = load_recorded_run(tmp_path / "run")
    one_way = {"compute_node_2": (0, 2), "compute_node_4": (2, 4)}
    other = replace(make_scenario(one_way, requests=REQUESTS, prefill=PREFILL, decode=DECODE))
    with pytest.raises(InputError, match=r"request \d+: its route uses compute_node_3"):
        replay(run, other, ReplaySettings(warmup_s=1.0))
    result = replay(run, other, ReplaySettings(warmup_s=1.0, reroute=True))
    assert result.results[0].summary["requests"]["arrived"] == len(run.requests)


def test_routes_that_do_not_fit_are_named(tmp_path):
    events = ["1,0,out,prompt,0,5", "3,0,in,prompt,0,5"]
    changed = {"start_layers": [0, 1, -1], "end_layers": [1, 4, -1]}
    run = load_recorded_run(write_run(tmp_path / "run", events, [route(0, **changed)]))
    with pytest.raises(InputError, match="request 0: its route runs layers 0 to 1"):
        replay(run, cluster(), ReplaySettings(warmup_s=0.0))


def test_a_window_without_time_is_refused(tmp_path):
    run = load_recorded_run(write_run(tmp_path / "run", ["1,0,out,prompt,0,5"]))
    with pytest.raises(InputError, match="leaves no window"):
        replay(run, cluster(), ReplaySettings(warmup_s=100.0))


def test_errors_are_relative_to_what_was_recorded():
    assert errors({"a": 3.0, "b": {"c": 1.0}}, {"a": 2.0, "b": {"c": None}}) == {
        "a": 0.5,
        "b": {"c": None},
    }


def test_inspection(tmp_path):
    record(tmp_path / "run", cluster(), names=True)
    run = load_recorded_run(tmp_path / "run")
    found = inspect_run(run, 2.0, run.sending_ended_s)
    assert found["requests"] == len(REQUESTS)
    assert sum(each["requests"] for each in found["busiest_routes"]) == len(REQUESTS)
    frame = series(run)
    assert (
        frame["decode_tokens_per_s"].sum() * 10
        == (np.isfinite(run.passes.end_s) & ~run.passes.is_prompt).sum()
    )


# -- calibrating


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "run"
    scenario = cluster()
    record(folder, scenario)
    return Recording(load_recorded_run(folder), scenario)


START = ENGINE.model_copy(
    update={
        "name": "start",
        "other_gpus": GpuCosts(layer_pass_s=0.0025, multi_sequence_overhead_s=0.0007),
    }
)


def test_a_known_engine_is_found_again(recording):
    settings = CalibrationSettings(
        start=START, name="mine", evaluations=250, slice_s=10.0, warmup_s=2.0, seeds=(0,)
    )
    told = []
    found = fit_engine([recording], settings, lambda *args: told.append(args))
    ours, theirs = found.engine.for_machine("kind"), ENGINE.other_gpus
    assert found.loss < 0.35 * found.start_loss
    assert ours.prefill_scale == pytest.approx(theirs.prefill_scale, rel=0.25)
    assert abs(found.quality[0].error["decode_latency_s"]["mean"]) < 0.05
    assert found.engine.known.machine_types == ("kind",)
    assert told[-1][1] == found.evaluations

    # What is written reads back as what was found.
    document = engine_document(found, "a test")
    read = validate(EngineFile, parse_yaml(yaml_text(document), "x.yaml"), "x.yaml")
    assert read.delivery_jitter_s == pytest.approx(found.engine.delivery_jitter_s, rel=1e-3)
    assert read.known.max_prompt_tokens == found.engine.known.max_prompt_tokens


def test_processes_find_the_same(recording):
    settings = CalibrationSettings(
        start=START, name="mine", evaluations=30, slice_s=4.0, warmup_s=2.0, seeds=(0,)
    )
    alone = fit_engine([recording], settings)
    assert fit_engine([recording], replace(settings, jobs=2)).engine == alone.engine


def test_a_fit_needs_a_run(recording):
    with pytest.raises(InputError, match="all runs are held out"):
        fit_engine(
            [replace(recording, held_out=True)], CalibrationSettings(start=START, name="mine")
        )


def test_parameters_begin_at_the_start():
    parameters = Parameters.of(ENGINE, ["kind"])
    assert parameters.engine([0.0] * len(parameters.names)) == parameters.start
    moved = parameters.engine([1.0] * len(parameters.names))
    assert moved.prompt_s > ENGINE.prompt_s
    assert moved.for_machine("kind").prefill_scale > 1.2
    assert moved.for_machine("other") == ENGINE.other_gpus


# -- engine files and scenarios


@pytest.mark.parametrize("name", shipped_engines())
def test_shipped_engines_load(name):
    assert load_engine(name).name == name


OLD_KEYS = """\
schema: 1
kind: engine
name: old
per_further_request: 0.02 ms
machine_types:
  A100: {several_decodes: 0.5 ms}
"""


def test_old_keys_are_read_with_a_note(tmp_path):
    (tmp_path / "old.yaml").write_text(OLD_KEYS)
    with pytest.warns(FutureWarning, match="is now called") as notes:
        engine = load_engine("old.yaml", tmp_path)
    assert engine.per_sequence_overhead_s == pytest.approx(2e-5)
    assert engine.for_machine("A100").multi_sequence_overhead_s == pytest.approx(5e-4)
    assert ["per_further_request" in str(note.message) for note in notes] == [True, False]


def test_scenarios_name_engines(tmp_path):
    assert load_scenario("quickstart").engine.name == "helix-prototype"
    file = tmp_path / "mine.yaml"
    file.write_text("schema: 1\nkind: engine\nname: mine\nper_prompt: 1 ms\n")
    scenario = load_scenario("quickstart", [f"engine={file}"])
    assert scenario.engine.prompt_s == 0.001
    assert scenario.digest != load_scenario("quickstart").digest
    with pytest.raises(InputError, match="no engine 'helix-prototyp' ships"):
        load_scenario("quickstart", ["engine=helix-prototyp"])
    file.write_text("schema: 1\nkind: engine\nname: mine\nper_prompt: 1\n")
    with pytest.raises(InputError, match=r"mine\.yaml: per_prompt: .* has no unit"):
        load_scenario("quickstart", [f"engine={file}"])


# -- commands


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def quickstart_run(tmp_path_factory):
    """A recording of the quick start, with its own node names."""
    folder = tmp_path_factory.mktemp("quick") / "run"
    scenario = load_scenario(
        "quickstart",
        [
            "scheduler.preset=published",
            "workload.mode=online",
            "workload.mean_tokens_per_s=600",
        ],
    )
    scenario = replace(
        scenario, run=replace(scenario.run, duration_s=40.0, warmup_s=0.0), physics="calibrated"
    )
    result = simulate(scenario, record_iterations=True)
    zero = result.summary["window_start_s"]
    requests = result.requests.set_index("request")
    numbers = {node.name: place + 1 for place, node in enumerate(scenario.cluster)}
    lines, routes = [], []
    for row in result.iterations.itertuples():
        tokens = int(requests.loc[row.request, "prompt_tokens"]) if row.iteration == 0 else 1
        for at, order, way in ((row.end_s, 0, "in"), (row.start_s, 1, "out")):
            lines.append((at, order, f"{at - zero!r},{row.request},{way},{row.phase},0,{tokens}"))
    for index, row in requests.iterrows():
        stages = [part.rstrip("]").split("[") for part in row["route"].split()]
        routes.append(
            {
                "query": index,
                "output_tokens": int(row["output_tokens"]),
                "nodes": [numbers[name] for name, _ in stages],
                "start_layers": [int(part.split(":")[0]) for _, part in stages],
                "end_layers": [int(part.split(":")[1]) for _, part in stages],
            }
        )
    write_run(folder, [text for *_, text in sorted(lines)], routes)
    (folder / "nodes.json").write_text(json.dumps({str(n): name for name, n in numbers.items()}))
    return folder


def test_replay_command(tmp_path, quickstart_run):
    done = invoke(
        "replay",
        quickstart_run,
        "quickstart",
        "--set",
        "scheduler.preset=published",
        "--physics",
        "calibrated",
        "--warmup",
        "5 s",
        "--json",
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["error"]["decode_tokens_per_s"] == pytest.approx(0.0, abs=1e-9)
    assert set(found) >= {"recorded", "simulated", "error"}
    out = tmp_path / "out"
    done = invoke(
        "replay", quickstart_run, "quickstart", "--warmup", "5 s", "--seeds", 2, "-o", out
    )
    assert done.exit_code == 0, done.output
    assert "mean of 2 seeds" in done.stdout
    names = {path.name for path in out.iterdir()}
    assert {"replay.json", "replay.png", "replay_series.csv", "replay_nodes.csv"} <= names
    assert (out / "replay.png").read_bytes()[:4] == b"\x89PNG"
    assert invoke("replay", quickstart_run, "quickstart", "-o", out).exit_code == 2


def test_inspect_command(tmp_path, quickstart_run):
    done = invoke("inspect", quickstart_run, "--warmup", "5 s", "--json")
    assert json.loads(done.stdout)["nodes"] == 6
    done = invoke("inspect", quickstart_run, "--warmup", "5 s", "-o", tmp_path / "look")
    assert "decode throughput" in done.stdout
    names = {path.name for path in (tmp_path / "look").iterdir()}
    assert names == {"inspection.json", "inspection.png", "nodes.csv", "routes.csv", "series.csv"}
    assert invoke("inspect", quickstart_run, "-o", tmp_path / "look").exit_code == 2
    assert invoke("inspect", quickstart_run, "--warmup", "999 s").exit_code == 2


def test_replay_by_names(quickstart_run):
    result = replay(quickstart_run, "quickstart", warmup_s=5.0, seeds=2)
    assert result.settings == ReplaySettings(warmup_s=5.0, seeds=(0, 1))
    same = replay(load_recorded_run(quickstart_run), load_scenario("quickstart"), result.settings)
    assert same.as_dict() == result.as_dict()
    assert repr(result).startswith("<ReplayResult run in quickstart, paper physics: decode")
    assert len(repr(result)) < 200
    assert "decode_latency_s.p95" in result._repr_html_()
    assert len(result.plot().axes) == 4


def test_calibrate_by_names(tmp_path, quickstart_run):
    options = {"evaluations": 2, "slice_s": 5.0, "warmup_s": 5.0, "seeds": 1, "jobs": 1}
    told = []
    found = calibrate(
        quickstart_run, "quickstart", on_progress=lambda *args: told.append(args), **options
    )
    assert told[0][:2] == ("fitting", 1)
    assert repr(found).startswith("<CalibrationResult fitted, from helix-prototype: loss ")
    found.write(tmp_path / "mine.yaml")
    changed = load_scenario("quickstart").with_(engine=tmp_path / "mine.yaml")
    assert changed.engine.name == "fitted"
    assert "fitted to run; from helix-prototype" in (tmp_path / "mine.yaml").read_text("utf-8")
    with pytest.raises(InputError, match="1 recorded runs"):
        calibrate([quickstart_run], ["quickstart", "quickstart"], **options)


def test_calibrate_command(tmp_path, quickstart_run):
    out = tmp_path / "mine.yaml"
    common = ("--evaluations", 10, "--slice", "10 s", "--warmup", "5 s", "--seeds", 1, "--jobs", 1)
    done = invoke("calibrate", quickstart_run, "quickstart", "-o", out, *common)
    assert done.exit_code == 0, done.output
    assert load_scenario("quickstart", [f"engine={out}"]).engine.name == "mine"
    assert load_engine(out).fit[0].run == "run"
    assert invoke("calibrate", quickstart_run, "quickstart", "-o", out, *common).exit_code == 2
    done = invoke("calibrate", quickstart_run, "-o", tmp_path / "x.yaml", *common)
    assert "give one scenario for all runs" in done.output
    done = invoke(
        "calibrate", quickstart_run, "quickstart", "--hold-out", "rum", "-o", tmp_path / "x.yaml"
    )
    assert "no recorded run 'rum'" in done.output
    assert not (tmp_path / "x.yaml").exists()

"""`helixsim run` from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from builders import counts, reasons
from scenario_data import changed
from typer.testing import CliRunner

from helixsim.cli import app

PACKAGE_ROOT = Path(__file__).parents[2]
TINY = {
    "schema": 1,
    "name": "tiny",
    "llm": "llama1-30b",
    "cluster": {
        "coordinator": {"nic": "80 Gbit/s"},
        "nodes": [{"type": "A100", "count": 4, "name": "n{i}"}],
        "network": {"within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}},
    },
    "placement": {"layers": {"n0": [0, 18], "n1": [18, 36], "n2": [36, 48], "n3": [48, 60]}},
    "workload": {
        "mode": "offline",
        "initial_requests": 4,
        "lengths": "alpaca",
        "max_output_tokens": 50,
    },
    "scheduler": {"feed_high_water_mark": 0.05},
    "run": {"warmup": "2 s", "duration": "20 s", "seed": 1},
}
ONE_NODE = {
    "cluster.nodes": [{"type": "A100", "name": "only", "kv_token_layers": 600_000}],
    "placement": {"layers": {"only": [0, 60]}, "allow_overcommitted_layers": True},
}
TABLES = ["links", "nodes", "requests", "timeline"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(changes=None, name="tiny.yaml"):
    Path(name).write_text(yaml.safe_dump(changed(TINY, changes or {}), sort_keys=False))
    return name


def trace(*rows, name="trace.csv"):
    """A trace file: arrival, prompt tokens, output tokens."""
    lines = [
        "arrived_at,num_prefill_tokens,num_decode_tokens",
        *(",".join(map(str, r)) for r in rows),
    ]
    Path(name).write_text("\n".join(lines) + "\n")
    return {"workload": {"mode": "online", "trace": name}}


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["run", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def summary_of(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


def listing(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def python(*arguments, hash_seed="0"):
    """Run Python in a process of its own; what it writes on stdout and stderr."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout, done.stderr


# -- what comes out


def test_a_summary_for_people(folder):
    result = run(write())
    assert result.stdout.startswith(
        "tiny (adaptive, paper physics, seed 1), measured from 21 s to 39 s"
    )
    assert "decode throughput" in result.stdout
    assert result.stderr == ""
    assert listing() == ["tiny.yaml"]


def test_json_alone(folder):
    result = run(write(), "--json")
    assert json.loads(result.stdout)["scenario"] == "tiny"
    assert result.stderr == ""


def test_results_in_a_folder(folder):
    result = run(write(), "-o", "out")
    assert result.stdout.splitlines()[-1] == "results in out"
    tables = [f"{name}.parquet" for name in TABLES]
    assert listing("out") == sorted([*tables, "manifest.json", "summary.json"])
    assert listing() == ["out", "tiny.yaml"]


def test_json_and_files_agree(folder):
    shown = json.loads(run(write(), "--json", "-o", "out").stdout)
    assert json.loads(Path("out/summary.json").read_text()) == shown
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["scenario"] == TINY
    assert manifest["seed"] == 1
    requests = pd.read_parquet("out/requests.parquet")
    assert (requests.status == "completed").sum() == shown["requests"]["completed"] > 0


def test_tables_as_csv(folder):
    run(write(), "-o", "out", "--format", "csv")
    assert [name for name in listing("out") if name.endswith(".parquet")] == []
    assert Path("out/requests.csv").read_text().startswith("request,status,arrival_s,")


def test_iterations_are_recorded_if_asked_for(folder):
    shown = json.loads(run(write(), "-o", "out", "--record", "iterations", "--json").stdout)
    passes = pd.read_parquet("out/iterations.parquet")
    start, end = shown["window_start_s"], shown["window_end_s"]
    decodes = passes[(passes.phase == "decode") & passes.end_s.between(start, end)]
    assert len(decodes) / (end - start) == shown["decode_tokens_per_s"]


def test_recording_without_a_folder_is_refused_before_the_run(folder):
    result = run(write(), "--record", "iterations", code=2)
    assert result.stderr == "--record needs a folder to write to: add --output DIR\n"


def test_results_are_not_written_over_unless_forced(folder):
    file = write()
    run(file, "-o", "out", "--format", "csv")
    Path("out/notes.txt").write_text("mine")
    before = Path("out/summary.json").read_text()
    result = run(file, "-o", "out", "--seed", 2, code=2)
    assert result.stderr == "out: exists already; name another folder, or add --force\n"
    assert result.stdout == ""
    assert Path("out/summary.json").read_text() == before
    run(file, "-o", "out", "--seed", 2, "--force")
    assert json.loads(Path("out/summary.json").read_text())["seed"] == 2
    assert Path("out/notes.txt").read_text() == "mine"
    assert [name for name in listing("out") if name.endswith(".csv")] == []


def test_a_seed_is_a_value_set(folder):
    file = write()
    by_flag, by_set = summary_of(file, "--seed", 7), summary_of(file, "--set", "run.seed=7")
    assert by_flag == by_set
    assert by_flag["seed"] == 7
    assert summary_of(file) != by_flag


def test_the_flag_for_the_seed_comes_last(folder):
    assert summary_of(write(), "--seed", 7, "--set", "run.seed=3")["seed"] == 7


def test_watching(folder):
    result = run(write(), "--watch", "10 s", "--json")
    json.loads(result.stdout)
    heads = [line for line in result.stderr.splitlines() if line.startswith("at ")]
    assert [line.split(":")[0] for line in heads] == ["at 0.0 s", "at 10.0 s", "at 20.0 s"]
    assert result.stderr.count("n0") == 3


# -- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml"], "missing.yaml"),
        (["tiny.yaml", "--set", "run.sede=1"], "sede"),
        (["tiny.yaml", "--set", "placement.layers.n3=[50, 60]"], "no node holds layer 48"),
        (["tiny.yaml", "--set", "workload.mode=online"], "mean_tokens_per_s"),
        (["tiny.yaml", "--watch", "soon"], "soon"),
        (["tiny.yaml", "--watch", "0 s"], "--watch: '0 s' is too short"),
        (["tiny.yaml", "-o", "no/such/folder/out"], "there is no folder no/such/folder"),
        (["tiny.yaml", "-o", "tiny.yaml"], "tiny.yaml: is a file; name a folder"),
    ],
)
def test_mistakes_end_with_one_clear_message(folder, arguments, message):
    write()
    result = run(*arguments, *(() if "-o" in arguments else ("-o", "out")), code=2)
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert listing() == ["tiny.yaml"]


@pytest.mark.parametrize("flag", [["--format", "xml"], ["--seed", "-1"], ["--record", "all"]])
def test_flags_take_what_they_can_use(folder, flag):
    result = run(write(), *flag, code=2)
    assert flag[0] in result.stderr
    assert result.stdout == ""


def test_no_route_is_a_clear_error(folder):
    links = [["coordinator", "n0"], ["n0", "n1"], ["n2", "n3"], ["n3", "coordinator"]]
    result = run(write({"placement.links": links}), "-o", "out", code=2)
    assert "no route leads from the coordinator through all layers and back" in result.stderr
    assert listing() == ["tiny.yaml"]


# -- unusual scenarios


@pytest.mark.parametrize("policy", ["maxflow", "swarm", "random", "shortest_queue"])
def test_a_cluster_where_nothing_happens(folder, policy):
    file = write(trace((7, 10, 5)) | {"scheduler": {"policy": policy}})
    summary = summary_of(file, "--set", "run.duration=1 ms", "--set", "run.warmup=0 s")
    assert summary["requests"] == counts(arrived=1, in_flight=1)
    assert summary["decode_tokens_per_s"] == 0
    assert summary["ttft_s"]["mean"] is None


@pytest.mark.parametrize("policy", ["maxflow", "swarm", "random", "shortest_queue"])
def test_one_node_alone(folder, policy):
    summary = summary_of(write(ONE_NODE | {"scheduler.policy": policy}))
    assert summary["requests"]["completed"] > 0
    assert summary["requests"]["rejected"] == 0


def test_one_request_drained(folder):
    file = write(
        trace((0, 100, 5)) | {"run.drain": True, "run.duration": "0.1 s", "run.warmup": "0 s"}
    )
    run(file, "-o", "out", "--record", "iterations")
    passes = pd.read_parquet("out/iterations.parquet")
    assert list(passes.iteration) == [0, 1, 2, 3, 4, 5]
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["requests"] == counts(arrived=1, completed=1)


@pytest.mark.parametrize("policy", ["maxflow", "swarm", "random", "shortest_queue"])
def test_a_prompt_longer_than_any_batch_is_rejected(folder, policy):
    file = write(trace((1, 10**6, 5), (2, 10, 1)) | {"scheduler": {"policy": policy}})
    run(file, "-o", "out")
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["rejected_for"] == reasons(length=1)
    assert summary["requests"]["completed"] == 1
    statuses = list(pd.read_parquet("out/requests.parquet").status)
    assert statuses == ["rejected: length", "completed"]


def test_a_request_that_no_cache_can_hold_is_rejected(folder):
    nodes = [{"type": "A100", "count": 4, "name": "n{i}", "kv_token_layers": 5000}]
    published = {"cluster.nodes": nodes, "scheduler.preset": "published"}
    mean = {"workload.mean_output_tokens": 240}
    summary = summary_of(write(trace((1, 100, 5)) | published | mean))
    # 100 tokens and the expected 240 on 18 layers are 6120.
    assert summary["rejected_for"] == reasons(kv=1)
    assert summary["requests"] == counts(arrived=1, rejected=1)


def test_a_request_is_admitted_by_what_it_holds_and_rejected_by_what_it_comes_to_hold(folder):
    nodes = [{"type": "A100", "count": 4, "name": "n{i}", "kv_token_layers": 5000}]
    # 17 blocks of 16 tokens have room on 18 layers: 272 tokens.
    for output_tokens, status in ((172, {"completed": 1}), (173, {"rejected": 1})):
        written = write(trace((1, 100, output_tokens)) | {"cluster.nodes": nodes})
        summary = summary_of(written)
        assert summary["requests"] == counts(arrived=1, **status)
        assert summary["rejected_for"] == reasons(length=len(status.keys() - {"completed"}))


# -- real processes


TWO_WAYS = {
    "cluster.nodes": [{"type": "A100", "count": 8, "name": "n{i}"}],
    "placement.layers": {
        "n0": [0, 18],
        "n1": [18, 36],
        "n2": [36, 48],
        "n3": [48, 60],
        "n4": [0, 18],
        "n5": [18, 36],
        "n6": [36, 48],
        "n7": [48, 60],
    },
}
WRITE_BOTH = """
from helixsim import load_scenario, simulate
for policy in ("maxflow", "random"):
    scenario = load_scenario("tiny.yaml", ["scheduler.policy=" + policy])
    simulate(scenario, record_iterations=True).write(OUT + "-" + policy)
"""


def test_files_do_not_depend_on_the_hash_seed(folder):
    write({"run.duration": "2 s", "run.warmup": "1 s"} | TWO_WAYS)
    hash_seeds = ("0", "1", "4242")
    for hash_seed in hash_seeds:
        python("-c", f"OUT = '{hash_seed}'" + WRITE_BOTH, hash_seed=hash_seed)
    for policy in ("maxflow", "random"):
        first, *others = (Path(f"{hash_seed}-{policy}") for hash_seed in hash_seeds)
        assert len(pd.read_parquet(first / "iterations.parquet")) > 100
        for other in others:
            assert listing(first) == listing(other)
            for name in listing(first):
                assert content(first / name) == content(other / name), (policy, name)


def content(file):
    """What is in a file, but for the time at which it was made."""
    if file.name != "manifest.json":
        return file.read_bytes()
    return [line for line in file.read_text().splitlines() if "created_utc" not in line]


def test_interrupting_a_run_keeps_what_it_has(folder):
    file = write({"run.duration": "1000 h"})
    process = subprocess.Popen(
        [sys.executable, "-m", "helixsim", "run", file, "-o", "out", "--watch", "20 s", "--json"],
        env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # It is well under way once it has shown its status a few times.
        for line in process.stderr:
            if line.startswith("at 60.0 s"):
                break
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert stderr.endswith("interrupted: these results cover the run up to there only\n")
    assert "Traceback" not in stderr
    summary = json.loads(stdout)
    assert summary["partial"]
    assert json.loads(Path("out/summary.json").read_text()) == summary
    assert json.loads(Path("out/manifest.json").read_text())["partial"]
    end = summary["simulated_s"]
    assert 79.0 <= summary["window_end_s"] == end < 3_600_000
    requests = pd.read_parquet("out/requests.parquet")
    assert summary["requests"]["in_flight"] == (requests.status == "in flight").sum()
    assert requests.end_s.max() <= end
    assert listing() == ["out", "tiny.yaml"]


def test_the_command_runs_as_a_module(folder):
    stdout, stderr = python("-m", "helixsim", "run", write(), "--json")
    assert json.loads(stdout) == summary_of("tiny.yaml")
    assert stderr == ""


def test_a_scenario_without_a_placement_runs_by_a_rule(folder):
    # Four A100 of at most 18 layers of LLaMA-1 30B: one pipeline of 15 layers each.
    done = CliRunner().invoke(app, ["run", write({"placement": None})])
    assert done.exit_code == 0, done.stderr
    assert "note: the scenario has no placement; a simple rule gives: n0 0-15" in done.stderr

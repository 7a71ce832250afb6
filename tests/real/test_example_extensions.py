"""A package that adds one extension of each kind, installed and used without touching ours."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "example_extensions"
NAMES = (
    "--set",
    "physics=example-flat",
    "--set",
    "scheduler.policy=example-spread",
    "--set",
    "scheduler.node=example-fifo",
)
SHORT = ("--set", "run.duration=20 s", "--set", "run.warmup=0 s")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment variables with which the package is installed."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--no-build-isolation", "--target", str(folder), str(PACKAGE)],
        check=True,
    )  # fmt: skip
    path = os.pathsep.join([str(ROOT), str(folder)])
    return os.environ | {"PYTHONPATH": path}


@pytest.fixture
def call(environment, tmp_path):
    """Runs a command in an empty folder and returns what it printed."""

    def call(program, *arguments):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", program, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_run(call):
    summary = json.loads(call("helixsim", "run", "quickstart", *NAMES, *SHORT, "--json"))
    assert summary["physics"] == "example-flat"
    assert summary["policy"] == "example-spread"
    assert summary["node_scheduler"] == "example-fifo"
    assert summary["requests"]["completed"] > 0


def test_a_trace_of_its_format(call, tmp_path):
    (tmp_path / "log.csv").write_text("sent_ms,prompt,answer\n0,100,5\n500,200,3\n")
    online = ("--set", "workload.mode=online", "--set", f"workload.trace={tmp_path / 'log.csv'}")
    for named in ((), ("--set", "workload.trace_format=example-log")):
        printed = call(
            "helixsim", "run", "quickstart", *online, *named, *SHORT, "--set", "run.drain=true",
            "--json",
        )  # fmt: skip
        assert json.loads(printed)["requests"]["completed"] == 2


def test_sweep_in_two_processes(call, tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        "schema: 1\nkind: sweep\nscenario: quickstart\nseeds: 2\n"
        "set: {physics: example-flat, scheduler.node: example-fifo, run.duration: 20 s, "
        "run.warmup: 0 s}\n"
        "grid: {scheduler.policy: [example-spread, maxflow]}\n"
    )
    call("helixsim", "sweep", "sweep.yaml", "--jobs", "2", "-o", "out", "--format", "csv")
    rows = list(csv.DictReader((tmp_path / "out" / "cells.csv").read_text().splitlines()))
    throughput = {
        (row["scheduler.policy"], row["seed"]): float(row["decode_tokens_per_s"]) for row in rows
    }
    assert len(throughput) == 4
    assert all(value > 0 for value in throughput.values())


def test_plan(call):
    printed = call(
        "helixsim", "plan", "quickstart", *NAMES, "--effort", "quick", "--time-limit", "5 s",
        "--json",
    )  # fmt: skip
    assert json.loads(printed)["max_flow_tokens_per_s"] > 0


def test_a_local_real_cluster(call, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"num_hidden_layers": 60, "vocab_size": 100, "max_position_embeddings": 10_000})
    )
    printed = call(
        "helixreal", "run", "quickstart", "--local", "--engine", "example-counter", "--model",
        str(tmp_path), *NAMES, "--set", "run.duration=4 s", "--set", "run.warmup=0 s", "--set",
        "workload.initial_requests=4", "-o", "out", "--json",
    )  # fmt: skip
    summary = json.loads(printed)
    assert summary["requests"]["failed"] == 0
    assert summary["decode_tokens_per_s"] > 10
    real = json.loads((tmp_path / "out" / "manifest.json").read_text())["real"]
    assert {node["engine"] for node in real["nodes"].values()} == {"example-counter"}


def test_an_emulated_cluster_takes_its_times(call):
    printed = call(
        "helixreal", "run", "quickstart", "--local", *NAMES, "--set", "run.duration=4 s", "--set",
        "run.warmup=0 s", "--json",
    )  # fmt: skip
    summary = json.loads(printed)
    assert summary["physics"] == "example-flat"
    assert summary["requests"]["failed"] == 0
    assert summary["decode_tokens_per_s"] > 10

"""`helixsim sweep` and `helixsim.sweep`."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from small_study import SCENARIO, TOO_SLOW, write, write_study
from typer.testing import CliRunner

import helixsim
from helixsim.cli import app
from helixsim.errors import InputError
from helixsim.studies.combinations import load_sweep

PACKAGE_ROOT = Path(__file__).parents[2]
FRAMES = ("cells.parquet", "summary.parquet")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep(*arguments, code=0):
    result = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def frames(folder):
    return [(Path(folder) / name).read_bytes() for name in FRAMES]


# -- what comes out


def test_a_grid_with_seeds():
    found = helixsim.sweep(write_study(), jobs=1)
    cells = found.cells
    assert found.num_failed == 0
    assert list(cells.columns[:8]) == [
        "combination",
        "scheduler.policy",
        "workload.mean_tokens_per_s",
        "seed",
        "status",
        "error",
        "warnings",
        "simulated_s",
    ]
    assert list(cells.combination) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(cells.seed) == [3, 1] * 4
    assert list(cells["workload.mean_tokens_per_s"]) == [50, 50, 100.5, 100.5] * 2
    assert list(cells["scheduler.policy"]) == ["maxflow"] * 4 + ["random"] * 4
    assert set(cells.status) == {"ok"}
    assert {"ttft_s.p95", "requests.completed", "slo.quick.attainment", "slo.quick.met"} < set(
        cells
    )
    assert list(cells["cost.dollars_per_hour"]) == [14.4] * 8


def test_the_summary_is_over_seeds():
    found = helixsim.sweep(write_study(seeds=3), jobs=1)
    rows = found.summary[found.summary.figure == "ttft_s.mean"]
    assert list(rows.combination) == [0, 1, 2, 3]
    assert set(rows.seeds) == {3}
    values = found.cells[found.cells.combination == 2]["ttft_s.mean"]
    row = rows[rows.combination == 2].iloc[0]
    assert row["scheduler.policy"] == "random"
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert row.sd == pytest.approx(values.std(), rel=1e-12)
    # 4.303 is Student's t for 3 - 1 degrees of freedom.
    half = 4.30265273 * values.std() / math.sqrt(3)
    assert row.ci95_high - row["mean"] == pytest.approx(half, rel=1e-8)
    assert row["mean"] - row.ci95_low == pytest.approx(half, rel=1e-8)


def test_a_list_sets_what_it_says_and_no_more():
    combinations = [
        {"scheduler.policy": "swarm"},
        {"workload.mean_tokens_per_s": 50, "cluster.nodes.0.nic": "1 Gbit/s"},
        {"placement.layers.n3": [47, 60]},
    ]
    found = helixsim.sweep(write_study(grid=None, list=combinations, seeds=None), jobs=1)
    cells = found.cells
    assert list(cells.columns[1:5]) == [
        "scheduler.policy",
        "workload.mean_tokens_per_s",
        "cluster.nodes.0.nic",
        "placement.layers.n3",
    ]
    assert list(cells.seed) == [5, 5, 5]
    assert cells["workload.mean_tokens_per_s"].tolist()[1] == 50.0
    assert cells["workload.mean_tokens_per_s"].isna().tolist() == [True, False, True]
    assert cells["placement.layers.n3"].tolist()[2] == "[47, 60]"
    assert cells["scheduler.policy"].isna().tolist() == [False, True, True]


def test_values_for_all_runs():
    study = write_study(set={"run.duration": "8 s"}, grid=None, seeds=2)
    cells = helixsim.sweep(study, jobs=1).cells
    assert list(cells.combination) == [0, 0]
    assert list(cells.window_end_s - cells.window_start_s) == [6.0, 6.0]
    assert "run.duration" not in cells


def test_a_mapping_in_place_of_a_file():
    write_study()
    found = helixsim.sweep(
        {"schema": 1, "kind": "sweep", "scenario": "small.yaml", "seeds": [1]}, jobs=1
    )
    assert list(found.cells.seed) == [1]


def test_names_of_files_are_relative_to_the_sweep(monkeypatch):
    lengths = "input_tokens,output_tokens\n20,5\n30,6\n"
    write_study(
        grid={"workload.lengths": ["own.csv", "alpaca"]}, set={"workload.max_output_tokens": 50}
    )
    Path("own.csv").write_text(lengths)
    (elsewhere := Path("elsewhere")).mkdir()
    study = Path("sweep.yaml").absolute()
    monkeypatch.chdir(elsewhere)
    found = helixsim.sweep(study, jobs=1)
    assert set(found.cells.status) == {"ok"}
    assert list(found.cells["workload.lengths"].unique()) == ["own.csv", "alpaca"]


# -- the folder


def test_runs_are_those_of_helixsim_run():
    result = sweep(write_study(), "-o", "out", "--jobs", "1")
    assert result.stdout == "8 runs of small, results in out\n"
    assert result.stderr == ""
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "cells",
        *FRAMES[:1],
        "summary.parquet",
        "sweep.json",
    ]
    listed = json.loads(Path("out/sweep.json").read_text())["cells"]
    assert len(listed) == 8
    for cell in (listed[0], listed[7]):
        sets = [f"--set={path}={value}" for path, value in cell["set"].items()]
        arguments = [
            "run",
            "small.yaml",
            "-o",
            "one",
            "--force",
            *sets,
        ]
        assert CliRunner().invoke(app, [*arguments, "--seed", str(cell["seed"])]).exit_code == 0
        kept = Path("out", cell["file"]).read_bytes()
        assert kept == Path("one/summary.json").read_bytes()


def test_processes_change_nothing():
    study = write_study()
    sweep(study, "-o", "one", "--jobs", "1")
    sweep(study, "-o", "two", "--jobs", "2")
    assert frames("one") == frames("two")


def test_results_do_not_depend_on_the_hash_seed():
    study = write_study()
    for hash_seed in ("0", "77"):
        subprocess.run(
            [sys.executable, "-m", "helixsim", "sweep", study, "-o", hash_seed, "--jobs", "1"],
            env=environment() | {"PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
        )
    assert frames("0") == frames("77")


def test_what_is_done_is_not_done_again(monkeypatch):
    study = write_study()
    sweep(study, "-o", "out", "--jobs", "1")
    before = frames("out")
    for path in list(Path("out/cells").iterdir())[:3]:
        path.unlink()
    calls = []
    from helixsim.studies import backends

    carry_out = backends.carry_out
    monkeypatch.setattr(backends, "carry_out", lambda *run: calls.append(run) or carry_out(*run))
    sweep(study, "-o", "out", "--jobs", "1")
    assert len(calls) == 3
    assert frames("out") == before
    calls.clear()
    write_study(seeds=[3, 1, 2])
    sweep(study, "-o", "out", "--jobs", "1")
    assert [seed for _, seed in calls] == [2] * 4
    calls.clear()
    write("small.yaml", SCENARIO | {"description": "changed"})
    sweep(study, "-o", "out", "--jobs", "1")
    assert len(calls) == 12


def test_a_damaged_file_counts_for_nothing():
    study = write_study()
    sweep(study, "-o", "out", "--jobs", "1")
    before = frames("out")
    damaged, other = sorted(Path("out/cells").iterdir())[:2]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    other.write_text("[]")
    sweep(study, "-o", "out", "--jobs", "1")
    assert frames("out") == before
    assert damaged.read_bytes() == whole


def test_tables_as_csv_take_the_place_of_others():
    study = write_study()
    sweep(study, "-o", "out", "--jobs", "1")
    cells = pd.read_parquet("out/cells.parquet")
    sweep(study, "-o", "out", "--jobs", "1", "--format", "csv")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "cells",
        "cells.csv",
        "summary.csv",
        "sweep.json",
    ]
    assert pd.read_csv("out/cells.csv")["ttft_s.p95"].tolist() == cells["ttft_s.p95"].tolist()


# -- runs that fail


def test_runs_that_fail_are_told_and_the_rest_is_kept():
    combinations = [TOO_SLOW, {"scheduler.policy": "swarm"}]
    study = write_study(grid=None, list=combinations, seeds=2)
    result = sweep(study, "-o", "out", "--jobs", "1", code=1)
    assert result.stderr.splitlines() == [
        "failed: cluster: the link from coordinator to n0 can have 1 bytes/s at most; this policy "
        "uses none of 10 bytes/s or less",
        "2 of 4 runs failed; see the table cells",
    ]
    cells = pd.read_parquet("out/cells.parquet")
    assert list(cells.status) == ["failed", "failed", "ok", "ok"]
    assert cells.error[0].startswith("cluster: the link")
    assert cells["ttft_s.mean"].isna().tolist() == [True, True, False, False]
    summary = pd.read_parquet("out/summary.parquet")
    assert set(summary[summary.combination == 0].seeds) == {0}
    assert len(list(Path("out/cells").iterdir())) == 2


# -- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"grid": {"scheduler.polcy": ["swarm"]}},
            "sweep.yaml: grid.scheduler.polcy: a scenario has no scheduler.polcy; did you mean",
        ),
        (
            {"set": {"run.durtion": "8 s"}},
            "sweep.yaml: set.run.durtion: a scenario has no run.durtion",
        ),
        (
            {"grid": {"workload.mean_tokens_per_s": [*range(1, 38), -1]}},
            "sweep.yaml: combination 37 (workload.mean_tokens_per_s=-1): small.yaml: "
            "workload.mean_tokens_per_s",
        ),
        (
            {"grid": None, "list": [{"scheduler.policy": "swarm"}, {"scheduler.x": 1}]},
            "sweep.yaml: list[1].scheduler.x: a scenario has no scheduler.x",
        ),
        ({"list": [{"run.duration": "5 s"}]}, "list: conflicts with the grid"),
        ({"grid": {"run.seed": [1, 2]}}, "grid.run.seed: cannot be set here"),
        ({"grid": {"scheduler.policy": []}}, "grid.scheduler.policy"),
        ({"grid": {"run.duration": ["5 s", "5 s"]}}, "grid: is the same as combination 0"),
        ({"seeds": [1, 1]}, "seeds: duplicate seed"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": [-1]}, "seeds[0]"),
        ({"scenario": "none.yaml"}, "none.yaml"),
        ({"scenario": "quickstrat"}, "sweep.yaml: scenario: no scenario 'quickstrat' ships"),
        ({"gird": {}}, "gird: unknown key; did you mean 'grid'"),
        ({"seeds": 100_000, "grid": {"run.duration": ["5 s", "6 s"]}}, "200,000 runs"),
    ],
)
def test_everything_is_checked_before_anything_runs(changes, message):
    result = sweep(write_study(**changes), "-o", "out", code=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("no/out", "there is no folder no"),
        ("sweep.yaml", "sweep.yaml: is a file; name a folder"),
        ("full", "full: holds something other than a sweep; name another folder"),
    ],
)
def test_folders_that_cannot_be_used(output, message):
    study = write_study()
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    result = sweep(study, "-o", output, code=2)
    assert message in result.stderr
    assert [path.name for path in Path("full").iterdir()] == ["notes.txt"]


def test_a_scenario_that_changes_meanwhile_is_noticed():
    Path("own.csv").write_text("input_tokens,output_tokens\n20,5\n")
    study = write_study(grid={"workload.lengths": ["own.csv"]}, seeds=1)
    (cell,) = load_sweep(study).cells
    assert cell.run.load().digest == cell.run.digest
    Path("own.csv").write_text("input_tokens,output_tokens\n21,5\n")
    with pytest.raises(InputError, match="has changed since the start"):
        cell.run.load()


def test_odd_arguments():
    study = write_study()
    with pytest.raises(InputError, match="jobs: at least 1"):
        helixsim.sweep(study, jobs=0)
    with pytest.raises(InputError, match="no backend 'spark'"):
        helixsim.sweep(study, backend="spark")


# -- real processes


def environment():
    return os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)}


def start_and_await_the_first_run(study, jobs):
    """Start a sweep; come back when it has kept a run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "helixsim", "sweep", study, "-o", "out", "--jobs", str(jobs)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(Path("out").glob("cells/*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


LONGER = {"set": {"run.duration": "60 s"}, "seeds": 3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The tables of a sweep that was not ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("undisturbed"))
        sweep(write_study(**LONGER), "-o", "out", "--jobs", "2")
        return frames("out")


@pytest.mark.parametrize(
    ("how", "jobs"),
    [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGKILL, 1), (signal.SIGKILL, 2)],
)
def test_a_sweep_that_was_ended_goes_on(undisturbed, how, jobs):
    study = write_study(**LONGER)
    process = start_and_await_the_first_run(study, jobs)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does: its processes get it as well
    else:
        process.send_signal(how)
    stdout, stderr = process.communicate(timeout=60)
    kept = {path: path.stat().st_mtime_ns for path in Path("out/cells").glob("*.json")}
    assert 0 < len(kept) < 12
    assert not Path("out/cells.parquet").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert stdout == ""
        # joblib's tracker of resources may warn of a semaphore that its processes left.
        assert stderr.splitlines()[0] == (
            f"interrupted: {len(kept)} of 12 runs are kept in out; the same command goes on "
            "from there"
        )
    Path("out/cells/.half.json.1.tmp").write_text("{")
    sweep(study, "-o", "out", "--jobs", "2")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(Path("out/cells").iterdir())) == 12
    assert frames("out") == undisturbed

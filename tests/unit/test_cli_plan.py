"""`helixsim plan` and `helixsim bound` from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import mip
import pandas as pd
import pytest
import yaml
from scenario_data import changed
from typer.testing import CliRunner

from helixsim.cli import app
from helixsim.errors import InputError
from helixsim.scenario.load import load_scenario

PACKAGE_ROOT = Path(__file__).parents[2]
NODES = ["n0", "n1", "n2", "n3"]
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
    "run": {"warmup": "2 s", "duration": "10 s", "seed": 1},
}
KEYS = [
    "method",
    "objective",
    "max_flow_tokens_per_s",
    "upper_bound_tokens_per_s",
    "optimal",
    "stages",
    "seconds",
    "placement",
]
QUICK = ("--method", "swarm", "--seeds", 1, "--jobs", 1)
BY_FLOW = ("--objective", "flow", "--jobs", 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(changes=None, name="tiny.yaml"):
    Path(name).write_text(yaml.safe_dump(changed(TINY, changes or {}), sort_keys=False))
    return name


def helixsim(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def plan(*arguments, code=0):
    return helixsim("plan", *arguments, code=code)


def listing(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


# -- output


def test_json_by_flow(folder):
    result = plan(write(), *BY_FLOW, "--json")
    found = json.loads(result.stdout)
    assert list(found) == KEYS
    assert (found["method"], found["objective"]) == ("optimise", "flow")
    assert list(found["placement"]) == NODES
    assert 0 < found["max_flow_tokens_per_s"] <= found["upper_bound_tokens_per_s"] * (1 + 1e-9)
    assert found["stages"] == 4
    assert result.stderr == ""
    assert listing() == ["tiny.yaml"]


def test_json_simulated(folder):
    result = plan(write(), *QUICK, "--json")
    found = json.loads(result.stdout)
    assert list(found) == [
        *KEYS,
        "goal",
        "simulated",
        "counted",
        "relative_error",
        "seeds",
        "front",
    ]
    assert found["seeds"] == 1
    assert found["simulated"]["decode_tokens_per_s"] > 0
    assert found["simulated"]["decode_latency_s"]["mean"] > 0
    (point,) = found["front"]
    assert point["chosen"]
    assert point["placement"] == found["placement"]
    assert result.stderr == ""


def test_a_plan_as_text(folder):
    result = plan(write(), *QUICK, "--set", "scheduler.preset=published", "-o", "placed.yaml")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("method      swarm, objective simulated; ")
    assert any(line.startswith("simulated   ") for line in lines)
    assert any(line.startswith("goal        decode_tokens_per_s ") for line in lines)
    assert "            mean of 1 run, 10 s each" in lines
    assert lines[-2] == "written: placed.yaml"
    assert lines[-1].startswith("hint: requests followed the published split")
    assert result.stderr == ""
    chosen = plan(write(), *QUICK)  # the preset has the balanced split
    assert "hint:" not in chosen.stdout


def test_unused_nodes_are_null_and_named(folder):
    file = write({"cluster.nodes": [{"type": "A100", "count": 5, "name": "n{i}"}]})
    arguments = (file, *BY_FLOW, "--method", "separate")
    found = json.loads(plan(*arguments, "--json").stdout)
    unused = [name for name, layers in found["placement"].items() if layers is None]
    if unused:
        assert f"unused      {', '.join(unused)}" in plan(*arguments).stdout
    held = [name for name, layers in found["placement"].items() if layers]
    assert sorted(held + unused) == [*NODES, "n4"]


@pytest.mark.parametrize(
    "method", ["optimise", "milp", "petals", "swarm", "separate", "separate-mixed"]
)
def test_every_method(folder, method):
    file = write({"cluster.nodes": [{"type": "A100", "count": 6, "name": "n{i}"}]})
    midway = (
        ("--partial-inference",) if method == "petals" else ()
    )  # otherwise its nodes do not connect
    found = json.loads(plan(file, *BY_FLOW, "--method", method, *midway, "--json").stdout)
    assert found["method"] == method
    assert found["max_flow_tokens_per_s"] > 0


def test_a_placement_file_fits_its_scenario(folder):
    file = write()
    found = json.loads(plan(file, *QUICK, "-o", "placed.yaml", "--json").stdout)
    document = yaml.safe_load(Path("placed.yaml").read_text())
    assert document["kind"] == "placement"
    held = {name: layers for name, layers in found["placement"].items() if layers}
    assert document["layers"] == held
    write({"placement": {"file": "placed.yaml"}}, name="planned.yaml")
    assert load_scenario("planned.yaml").placement.layers.keys() == held.keys()
    helixsim("validate", "planned.yaml")


def test_a_scenario_in_another_folder_reaches_its_files(folder):
    Path("data").mkdir()
    Path("else/where").mkdir(parents=True)
    rows = ["arrived_at,num_prefill_tokens,num_decode_tokens", "0.5,20,5", "1,30,5"]
    Path("data/trace.csv").write_text("\n".join(rows) + "\n")
    cluster = {"schema": 1, "kind": "cluster", **TINY["cluster"]}
    Path("data/cluster.yaml").write_text(yaml.safe_dump(cluster, sort_keys=False))
    changes = {
        "cluster": {"file": "data/cluster.yaml"},
        "workload": {"mode": "online", "trace": "data/trace.csv"},
    }
    file = write(changes)
    plan(file, *QUICK, "--set", "run.seed=5", "--write-scenario", "else/where/planned.yaml")
    document = yaml.safe_load(Path("else/where/planned.yaml").read_text())
    assert document["workload"]["trace"] == "../../data/trace.csv"
    assert document["run"]["seed"] == 5
    summary = json.loads(helixsim("run", "else/where/planned.yaml", "--json").stdout)
    assert summary["requests"]["arrived"] == 2
    helixsim("validate", "else/where/planned.yaml")


def test_a_front_as_table_and_plot(folder):
    plan(write(), *QUICK, "--write-front", "front.csv")
    table = pd.read_csv("front.csv")
    assert list(table.label) == ["method"]
    assert table.chosen.all()
    assert Path("front.png").read_bytes().startswith(b"\x89PNG")
    assert listing() == ["front.csv", "front.png", "tiny.yaml"]


def test_a_raw_solution_there_and_back(folder):
    file = write()
    files = ("--write-model", "model.lp", "--write-solution", "raw.sol")
    first = json.loads(plan(file, *BY_FLOW, "--method", "milp", *files, "--json").stdout)
    assert listing() == ["model.lp", "raw.sol", "tiny.yaml"]
    again = json.loads(plan(file, *BY_FLOW, "--from-solution", "raw.sol", "--json").stdout)
    assert again["placement"] == first["placement"]
    assert again["max_flow_tokens_per_s"] == first["max_flow_tokens_per_s"]


def test_bounds(folder):
    file = write()
    found = json.loads(helixsim("bound", file, "--json").stdout)
    assert list(found) == [
        "trivial_bound_tokens_per_s",
        "upper_bound_tokens_per_s",
        "limit",
        "layers_per_further_node",
        "layers_per_further_stage",
        "served_bound",
        "served_bound_of_placement",
    ]
    assert found["served_bound"]["decode_tokens_per_s"] > 0
    own = found["served_bound_of_placement"]["decode_tokens_per_s"]
    assert 0 < own <= found["served_bound"]["decode_tokens_per_s"]
    assert 0 < found["upper_bound_tokens_per_s"] <= found["trivial_bound_tokens_per_s"]
    planned = json.loads(plan(file, *BY_FLOW, "--json").stdout)
    best = planned["max_flow_tokens_per_s"]
    assert best <= found["upper_bound_tokens_per_s"] * (1 + 1e-9)
    text = helixsim("bound", file, "--max-stages", 4).stdout
    assert "no placement with at most 4 stages has a greater maximum flow" in text
    assert "placements can serve more" in text
    assert "no placement serves" in text


def test_served_tokens_have_no_bound_under_a_node_scheduler_of_ones_own(folder):
    import helixsim as package
    from helixsim.control.node_schedulers.paper import PaperScheduler

    with suppress(InputError):  # another test has registered it
        package.register_node_scheduler("unbounded", PaperScheduler)
    found = json.loads(
        helixsim("bound", write(), "--set", "scheduler.node=unbounded", "--json").stdout
    )
    assert found["served_bound"] is None
    assert found["upper_bound_tokens_per_s"] > 0


# -- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "--method"),
        (["--objective", "profit"], "--objective"),
        (["--goal", "speed"], "--goal: unknown figure 'speed'"),
        (["--subject-to", "ttft_s.mean<3"], "--subject-to: 'ttft_s.mean<3' is not a limit"),
        (["--subject-to", "ttft<=3"], "--subject-to: unknown figure 'ttft'"),
        (["--time-limit", "soon"], "--time-limit: "),
        (["--time-limit", "0 s"], "--time-limit: must be above 0 s, not 0 s"),
        (["--solver", "CPLEX"], "unknown solver 'CPLEX'; choose one of CBC, HIGHS, GUROBI"),
        (["--max-stages", "3"], "3 nodes hold at most 54 of 60 layers"),
        (["--set", "llm=llama2-70b", "--set", "placement=null"], "32 are missing"),
        (["--write-model", "m.lp"], "only method milp writes a model"),
        (["-o", "no/such/p.yaml"], "there is no folder no/such"),
        (["-o", "tiny.yaml"], "tiny.yaml: exists already; name another file, or add --force"),
        (["-o", "x.yaml", "--write-scenario", "x.yaml"], "x.yaml: is named for two outputs"),
        (["--write-front", "f.png"], "f.png: is named for two outputs"),
        (
            ["--objective", "flow", "--write-front", "f.csv"],
            "--write-front: only simulated plans have a front",
        ),
        (["--from-solution", "missing.sol"], "missing.sol"),
    ],
)
def test_errors_are_one_clear_message(folder, arguments, message):
    write()
    outputs = () if "-o" in arguments else ("-o", "out.yaml")
    result = plan("tiny.yaml", *arguments, *outputs, "--jobs", 1, code=2)
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert listing() == ["tiny.yaml"]


@pytest.mark.parametrize("command", ["plan", "bound"])
def test_a_cluster_that_is_not_connected_is_named(folder, command):
    links = [
        {"from": a, "to": b, "bandwidth": "10 Gbit/s", "latency": "1 ms"}
        for a in ("coordinator", "n0", "n1", "n2")
        for b in ("coordinator", "n0", "n1", "n2")
        if a != b
    ]
    file = write({"cluster.network": {"links": links}, "placement": ...})
    result = helixsim(command, file, code=2)
    assert (
        "the cluster is not connected: no route from the coordinator and back passes n3"
        in result.stderr
    )
    assert "only 54 of 60 layers" in result.stderr


def test_a_bound_that_no_placement_meets_is_refused(folder):
    result = helixsim("bound", write(), "--max-stages", 3, code=2)
    assert "6 are missing" in result.stderr


def test_a_solver_that_is_not_installed(folder, monkeypatch):
    def fail(**_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(mip, "Model", fail)
    result = plan(write(), "--solver", "HiGHS", code=2)
    assert result.stderr == "the solver HIGHS is not installed; run: pip install highsbox\n"


def test_files_are_not_written_over_unless_forced(folder):
    file = write()
    Path("placed.yaml").write_text("mine")
    plan(file, *BY_FLOW, "-o", "placed.yaml", code=2)
    assert Path("placed.yaml").read_text() == "mine"
    plan(file, *BY_FLOW, "-o", "placed.yaml", "--force")
    assert yaml.safe_load(Path("placed.yaml").read_text())["kind"] == "placement"


# -- real processes


LISTENING = (  # background jobs of a shell ignore Ctrl-C; this process must not
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from helixsim.cli import main; main()"
)


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", LISTENING, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_plan_as_a_process_is_quiet(folder):
    process = start("plan", write(), *QUICK, "--json")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert json.loads(stdout)["placement"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupting_a_plan_keeps_the_best(folder, jobs):
    file = write({"run.duration": "1000 h"})
    process = start("plan", file, "--jobs", jobs, "-o", "placed.yaml", "--json")
    try:
        time.sleep(5)  # by then it simulates, which takes hours
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, so that the workers get it too
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1] == "interrupted: this is the best placement found so far"
    assert "Traceback" not in stderr
    found = json.loads(stdout)
    assert found["partial"]
    held = {name: layers for name, layers in found["placement"].items() if layers}
    assert yaml.safe_load(Path("placed.yaml").read_text())["layers"] == held


def test_processes_of_a_killed_plan_end_too(folder):
    file = write({"run.duration": "1000 h"})
    process = start("plan", file, "--jobs", "2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 60
    while len(started := children.read_text().split()) < 3:  # two workers and the resource tracker
        assert time.monotonic() < until
        time.sleep(0.1)
    process.kill()
    process.communicate()
    while any(Path(f"/proc/{child}").exists() for child in started):
        assert time.monotonic() < until, "some processes still run"
        time.sleep(0.2)


# -- constraints


def test_constraints_on_the_command_line(folder):
    options = ["--fix", "a100-0=0-17", "--ban", "t4-pair-0=0-9", "--leave-out", "t4-pair-1"]
    result = helixsim("plan", "quickstart", *BY_FLOW, *options, "-o", "placed.yaml", "--json")
    placement = json.loads(result.stdout)["placement"]
    assert placement["a100-0"] == [0, 18]
    assert placement["t4-pair-0"] is None or placement["t4-pair-0"][0] >= 10
    assert placement["t4-pair-1"] is None
    moved = helixsim(
        "plan",
        "quickstart",
        *BY_FLOW,
        "--start-from",
        "placed.yaml",
        "--move-price",
        "1e9",
        "--json",
    )
    assert json.loads(moved.stdout)["placement"] == placement


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fix", "a100-0"], "--fix: 'a100-0' cannot be read; write NODE=FIRST-LAST"),
        (["--ban", "a100-9=0"], "--ban: the cluster has no node 'a100-9'"),
        (["--move-price", "1"], "--move-price: needs --start-from"),
        (["--start-from", "quickstart", "--fix", "a100-0=0-59"], "it holds at most 18"),
        (
            ["--leave-out", "a100-0", "--leave-out", "a100-1", "--leave-out", "l4-pair-0"],
            "left out",
        ),
    ],
)
def test_constraints_that_cannot_be_kept(folder, options, message):
    result = helixsim("plan", "quickstart", *BY_FLOW, *options, code=2)
    assert message in result.stderr
    assert result.stdout == ""

"""The published mixed-integer program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import cache
from itertools import product

import psutil
import pytest
from planner_problems import published, small10, toy_problem
from planner_validator import allowed_links, longest_route, validate

from helixsim.errors import InputError, OutputError, PlacementError, ScenarioError, SimulationError
from helixsim.planner.heuristics import swarm_ranges
from helixsim.planner.max_flow.dinic import flow_value
from helixsim.planner.milp import milp
from helixsim.planner.milp.formulation import build
from helixsim.planner.milp.inputs import milp_inputs
from helixsim.planner.milp.model_file import model_text
from helixsim.planner.milp.solutions import ranges_of, recover, route_depths, start_values
from helixsim.planner.milp.solver_process import SolverProcess, solve
from helixsim.planner.search import FlowSearch
from helixsim.planner.solver import MAXIMIZE, new_model

HOST = "coordinator"

SIZES = {"a": 2, "b": 2, "d": 3}
"""Node -> most layers, of 4, that it may hold."""
TOYS = {
    "aligned": {},
    "partial inference": {"partial_inference": True},
    # Links bind: a token has 10 bytes between nodes.
    "slow link": {"link": (0.5, 0.0), "links": {("a", "b"): (1.0, 0.0)}},
    "missing links": {"links": {("a", "b"): (0.0, 0.0), ("d", HOST): (0.0, 0.0)}},
    "slow interfaces": {"nics": {"d": 0.3125, "a": 0.625}},
    "slow coordinator": {"nics": {HOST: 0.05}},
    "few links": {"keep_links": 1},
}


def toy(name="aligned", sizes=SIZES, num_layers=4):
    return toy_problem(sizes, num_layers, **TOYS[name])


def every_placement(problem):
    """All placements that use every node."""
    num_layers = problem.num_layers
    choices = [
        [
            (start, start + size)
            for size in range(1, problem.max_layers(node) + 1)
            for start in range(num_layers - size + 1)
        ]
        for node in range(len(problem))
    ]
    return (dict(enumerate(spans)) for spans in product(*choices))


@cache
def best_of_all(name, max_stages=None):
    problem, best = toy(name), 0.0
    for ranges in every_placement(problem):
        if max_stages is not None:
            named = {problem.names[node]: span for node, span in ranges.items()}
            if longest_route(allowed_links(problem, named)) > max_stages:
                continue
        best = max(best, flow_value(problem, ranges))
    return best


def searched(problem, *, max_stages=None, limit_s=60.0, **options):
    begin = time.monotonic()
    search = FlowSearch(
        problem,
        elapsed_s=lambda: time.monotonic() - begin,
        time_limit_s=limit_s,
        max_stages=max_stages,
    )
    milp(search, **options)
    return search


# -- the optimum -------------------------------------------------------------------------------


@pytest.mark.parametrize("strengthen", [True, False])
@pytest.mark.parametrize("name", TOYS)
def test_the_program_has_the_optimum(name, strengthen):
    """The program alone, without a start or a bound that may already be the optimum."""
    problem = toy(name)
    inputs = milp_inputs(problem, strengthen=strengthen)
    answer = solve(inputs, "CBC", 0, 60.0, None)
    assert answer["status"] == "OPTIMAL"
    assert answer["bound"] == pytest.approx(best_of_all(name), rel=1e-6)
    ranges = ranges_of(inputs, answer["values"])
    validate(problem, ranges, flow_value(problem, ranges))
    assert flow_value(problem, ranges) == pytest.approx(best_of_all(name), rel=1e-6)


@pytest.mark.parametrize("name", ["aligned", "slow link"])
def test_a_search_proves_its_optimum(name):
    problem = toy(name)
    search = searched(problem, strengthen=False)
    assert search.optimal
    validate(problem, search.ranges, search.value)
    assert search.value == pytest.approx(best_of_all(name), rel=1e-6)


@pytest.mark.parametrize("strengthen", [True, False])
@pytest.mark.parametrize("name", ["aligned", "partial inference", "missing links"])
@pytest.mark.parametrize("max_stages", [2])
def test_a_limit_on_stages(name, max_stages, strengthen):
    problem = toy(name)
    expected = best_of_all(name, max_stages)
    answer = solve(
        milp_inputs(problem, max_stages=max_stages, strengthen=strengthen), "CBC", 0, 60.0, None
    )
    assert answer["status"] == "OPTIMAL"
    assert answer["bound"] == pytest.approx(expected, rel=1e-6)
    if not strengthen:
        return
    search = searched(problem, max_stages=max_stages)
    validate(problem, search.ranges, search.value, max_stages=max_stages)
    assert search.value == pytest.approx(expected, rel=1e-6)


def test_a_limit_that_nothing_meets():
    with pytest.raises(PlacementError, match=r"routes of 1 stages or less: .* 1 are missing"):
        searched(toy(), max_stages=1)
    # The two nodes that hold two layers each are not linked.
    apart = {("a", "b"): (0.0, 0.0), ("b", "a"): (0.0, 0.0)}
    problem = toy_problem({"a": 2, "b": 2, "c": 1}, 4, links=apart)
    with pytest.raises(PlacementError, match="no placement lets a request pass on a route of 2 st"):
        searched(problem, max_stages=2)


@pytest.mark.reference
def test_ten_machines_are_solved_to_proved_optimality(reference):
    problem = small10(reference)
    search = searched(problem, limit_s=20.0)
    assert search.optimal
    assert search.value == pytest.approx(286.5874, abs=5e-5)
    validate(problem, search.ranges, search.value)


def test_24_machines_meet_the_bound_from_the_start():
    problem = published("single24")
    search = searched(problem, limit_s=20.0)
    assert search.optimal
    assert search.value == pytest.approx(2045.6410, abs=5e-5)


# -- starts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize(("max_stages", "strengthen"), [(None, True), (3, False)])
def test_every_placement_is_a_start(name, strengthen, max_stages):
    """With the values of a start fixed, the program is feasible and has the placement's flow."""
    problem = toy(name)
    inputs = milp_inputs(problem, strengthen=strengthen, max_stages=max_stages)
    integers = {v.name for v in build(inputs).model.vars if v.var_type != "C"}
    for number, ranges in enumerate(every_placement(problem)):
        if number % 41:
            continue
        values = start_values(inputs, ranges)
        assert set(values) == integers
        model = build(inputs).model
        for var in model.vars:
            if var.name in values:
                var.lb = var.ub = values[var.name]
        assert model.optimize().name == "OPTIMAL", ranges
        assert model.objective_value == pytest.approx(
            flow_value(problem, ranges), rel=1e-6, abs=1e-9
        )


def test_unused_nodes_lengthen_no_route():
    inputs = milp_inputs(toy(), max_stages=2)
    values = start_values(inputs, {0: (0, 2), 2: (2, 4)})
    assert values["start_1"] == 3  # no node ends there
    values = start_values(inputs, {1: (0, 1), 2: (1, 4)})
    assert (values["start_0"], values["start_1"]) == (0, 3)
    inputs = milp_inputs(toy(), max_stages=2, strengthen=False)
    assert start_values(inputs, {0: (0, 1), 1: (1, 3), 2: (3, 4)}) is None
    values = start_values(inputs, {0: (0, 3), 2: (3, 4)})
    assert values["start_1"] == 2


def test_interchangeable_nodes_swap_into_order():
    inputs = milp_inputs(toy(sizes={"a": 2, "b": 2, "c": 2}))
    assert inputs.interchangeable == ((0, 1, 2),)
    values = start_values(inputs, {0: (2, 4), 1: (0, 2), 2: (0, 1)})
    assert [values[f"start_{node}"] for node in range(3)] == [0, 0, 2]


def test_nodes_with_different_links_are_not_interchangeable():
    assert milp_inputs(toy("slow link", {"a": 2, "b": 2, "c": 2, "d": 2})).interchangeable == (
        (2, 3),
    )
    assert milp_inputs(toy("slow interfaces", {"a": 2, "b": 2, "c": 2})).interchangeable == (
        (1, 2),
    )


def test_a_start_that_is_given_is_kept():
    problem = published("single24")
    ranges = swarm_ranges(problem)
    search = searched(problem, limit_s=0.0, start=ranges, strengthen=False)
    assert search.trace[0].value == flow_value(problem, ranges)


def test_routes_are_measured_along_links():
    inputs = milp_inputs(toy("missing links"))
    layers = {0: (0, 1), 1: (1, 2), 2: (2, 4)}
    assert route_depths(inputs, layers) == {0: 1, 1: 1, 2: 2}


# -- the process -------------------------------------------------------------------------------


def test_the_process_answers_as_a_call_does():
    inputs = milp_inputs(toy())
    with SolverProcess(inputs, "CBC", 3) as process:
        assert process.solve(30.0, None) == solve(inputs, "CBC", 3, 30.0, None)


def test_a_solver_that_is_not_installed():
    for strengthen in (True, False):
        search = FlowSearch(toy(), solver="GUROBI")
        with pytest.raises(ScenarioError, match="GUROBI is not installed"):
            milp(search, strengthen=strengthen)


def test_a_process_that_dies_is_an_error():
    with (
        SolverProcess(milp_inputs(toy()), "GUROBI", 0) as process,  # which it cannot load
        pytest.raises(SimulationError, match="ended with code 1"),
    ):
        process.solve(20.0, None)


def test_time_ends_the_process():
    inputs = milp_inputs(published("het42"), strengthen=False)
    with SolverProcess(inputs, "CBC", 0) as process:
        assert process.solve(60.0, None, patience_s=0.5) is None


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from planner_problems import published
from helixsim.planner.milp import milp
from helixsim.planner.search import FlowSearch
search = FlowSearch(published("single24"), max_stages=14)
print("ready", flush=True)
try:
    milp(search, solution_file=Path(sys.argv[2]))
except KeyboardInterrupt:
    print(search.value)
"""


def cpu_s(pid):
    """Seconds that a process and those that it has started have computed."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(sum(each.cpu_times()[:2]) for each in family)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal as terminals there do")
def test_ctrl_c_keeps_what_was_found(tmp_path):
    tests = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    file = tmp_path / "best.sol"
    run = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, tests, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout.readline() == "ready\n"
    until, before = time.monotonic() + 60, cpu_s(run.pid)
    while cpu_s(run.pid) < before + 2.5:
        assert time.monotonic() < until
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    try:
        output, _ = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 0
    problem = published("single24")
    assert flow_value(problem, recover(problem, file)) == pytest.approx(float(output))


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "name"), [("lp", "aligned"), ("mps", "partial inference")])
def test_a_model_file_is_complete(tmp_path, suffix, name):
    problem = toy(name)
    file = tmp_path / f"model.{suffix}"
    search = searched(problem, model_file=file, strengthen=False)
    model = new_model(MAXIMIZE, "CBC")
    model.read(str(file))
    model.verbose = 0
    assert model.optimize().name == "OPTIMAL"
    assert abs(model.objective_value) == pytest.approx(search.value, rel=1e-6)
    assert {v.name for v in model.vars if v.name.startswith("flow")} >= {"flow_source_0"}


def test_long_rows_are_broken_between_terms(tmp_path):
    model = build(milp_inputs(published("single24"))).model
    lines = model_text(model, tmp_path / "model.lp").splitlines()
    assert max(map(len, lines)) <= 200
    assert all(line[0] != " " or line.split()[0] != "=" for line in lines if line)


def test_a_solution_file_is_read_back(tmp_path):
    problem = toy()
    file = tmp_path / "best.sol"
    search = searched(problem, solution_file=file, strengthen=False)
    assert flow_value(problem, recover(problem, file)) == pytest.approx(search.value)


def test_a_solution_of_cbc_itself_is_read(tmp_path):
    problem = toy()
    values = start_values(milp_inputs(problem), {0: (0, 2), 1: (2, 4)})
    lines = ["Optimal - objective value 1.5"]
    lines += [f"{n} {name} {value} 0" for n, (name, value) in enumerate(values.items()) if value]
    file = tmp_path / "cbc.sol"
    file.write_text("\n".join(lines))
    assert recover(problem, file) == {0: (0, 2), 1: (2, 4), 2: (3, 4)}


GOOD = "start_0 0\nhold_0_2 1\nstart_1 2\nhold_1_2 1\nstart_2 0\nhold_2_1 1"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("start_1 2", "start_1 two", "line 3: 'two' is not a number"),
        ("start_1 2", "start_1 nan", "line 3: 'nan' is not a number"),
        ("start_1 2", "start_1", "line 3: 'start_1' is not a name and a value"),
        ("start_1 2", "start_0 2", "line 3: start_0 has a value already"),
        ("start_1 2", "start_1 4", "line 3: start_1 must be a layer from 0 to 3, not 4"),
        ("start_1 2", "start_1 1.5", "line 3: start_1 must be a whole number, not 1.5"),
        (
            "start_1 2",
            "start_9 2",
            "line 3: start_9 belongs to node 9, but this cluster has 3",
        ),
        ("start_1 2", "start_x 2", "line 3: start_x is not a variable of the program"),
        ("start_1 2\n", "", "no request can pass through this placement"),
        ("start_1 2", "start_1 3", "node 1 (b) ends with layer 5, but toy has 4"),
        ("start_1 2", "start_1 1", "no request can pass through this placement"),
        (
            "hold_1_2 1",
            "hold_1_3 1",
            "line 4: hold_1_3 is 1, but this node may hold at most 2",
        ),
        ("hold_1_2 1", "hold_1_2 3", "line 4: hold_1_2 must be 0 or 1, not 3"),
        ("hold_1_2 1", "hold_1_2 0", "the number of layers of node 1 (b) is missing"),
    ],
)
def test_bad_solution_files(tmp_path, old, new, message):
    file = tmp_path / "bad.sol"
    file.write_text(GOOD)
    assert recover(toy(), file) == {0: (0, 2), 1: (2, 4), 2: (0, 1)}
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(ScenarioError) as caught:
        recover(toy(), file)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_no_solution_file(tmp_path):
    with pytest.raises(ScenarioError, match="there is no such file"):
        recover(toy(), tmp_path / "none.sol")
    (tmp_path / "binary.sol").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match="is not UTF-8 text"):
        recover(toy(), tmp_path / "binary.sol")


def test_files_are_refused_before_the_search(tmp_path):
    file = tmp_path / "there.sol"
    file.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        searched(toy(), solution_file=file)
    with pytest.raises(InputError, match="is not a model format"):
        searched(toy(), model_file=tmp_path / "model.txt")
    assert file.read_text() == "mine"

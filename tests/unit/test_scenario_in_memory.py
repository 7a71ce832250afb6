"""Scenarios built and changed in Python: the same values and the same errors as from files."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import yaml

from helixsim import Placement, Scenario, capacity, load_scenario, replay, simulate, sweep
from helixsim.errors import InputError, ScenarioError
from helixsim.scenario.files import shipped_folder

QUICKSTART = yaml.safe_load((shipped_folder() / "quickstart.yaml").read_text("utf-8"))
SHORT = {"duration": "30 s", "warmup": "5 s"}


def test_a_dict_gives_the_scenario_of_the_file():
    loaded = load_scenario("quickstart")
    built = Scenario.from_dict(QUICKSTART)
    assert built == loaded
    assert built.digest == loaded.digest
    assert Scenario.from_dict({k: v for k, v in QUICKSTART.items() if k != "schema"}) == loaded


def test_python_values_are_taken_as_those_of_a_file():
    layers = {name: tuple(ends) for name, ends in QUICKSTART["placement"]["layers"].items()}
    built = Scenario.from_dict(QUICKSTART | {"placement": {"layers": layers}})
    assert built.placement == load_scenario("quickstart").placement
    assert built.document["placement"]["layers"] == QUICKSTART["placement"]["layers"]


def test_numbers_of_numpy_are_taken_as_those_of_python():
    run = QUICKSTART["run"] | {"seed": np.int64(7)}
    workload = QUICKSTART["workload"] | {"initial_requests": np.int32(4)}
    built = Scenario.from_dict(QUICKSTART | {"run": run, "workload": workload})
    assert (built.run.seed, built.workload.initial_requests) == (7, 4)
    assert type(built.document["run"]["seed"]) is int
    for share in (np.float64(0.25), Decimal("0.25")):
        changed = load_scenario("quickstart").with_(scheduler={"min_flow_share": share})
        assert type(changed.document["scheduler"]["min_flow_share"]) is float
    named = Scenario.from_dict(QUICKSTART | {"name": np.str_("mine")})
    assert type(named.document["name"]) is str


def test_a_document_that_is_no_mapping():
    with pytest.raises(InputError, match="a scenario is a mapping from keys to values, not list"):
        Scenario.from_dict([QUICKSTART])


def test_files_are_found_from_elsewhere_later(tmp_path, monkeypatch):
    """A relative folder is that of the time when the scenario was made."""
    (tmp_path / "two.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,9,3\n")
    monkeypatch.chdir(tmp_path)
    workload = {"mode": "online", "trace": "two.csv"}
    built = Scenario.from_dict(QUICKSTART | {"workload": workload})
    monkeypatch.chdir("/")
    assert built.with_(run={"seed": 5}).workload.trace == built.workload.trace


def test_mistakes_are_told_as_those_of_a_file():
    with pytest.raises(ScenarioError, match=r"<dict>: run\.duration: '3' is not a quantity"):
        Scenario.from_dict(QUICKSTART | {"run": {"duration": "3"}})
    with pytest.raises(ScenarioError, match=r"no workload\.mod; did you mean 'workload\.mode'"):
        load_scenario("quickstart").with_(workload={"mod": "online"})


@pytest.mark.parametrize(
    ("changes", "overrides"),
    [
        ({"physics": "calibrated", "run.seed": 3}, ["physics=calibrated", "run.seed=3"]),
        ({"run": {"seed": 3, "duration": "60 s"}}, ["run.seed=3", "run.duration=60 s"]),
        ({"scheduler": {"kv": {"high_water_mark": 0.5}}}, ["scheduler.kv.high_water_mark=0.5"]),
        ({"slo": {"chat": {"ttft": "5 s"}}}, ['slo={"chat": {"ttft": "5 s"}}']),
        (
            {"workload": {"mode": "online", "mean_tokens_per_s": 90, "arrivals": "poisson"}},
            ["workload.mode=online", "workload.mean_tokens_per_s=90", "workload.arrivals=poisson"],
        ),
    ],
)
def test_changes_are_those_of_set(changes, overrides):
    changed = load_scenario("quickstart").with_(**changes)
    assert changed == load_scenario("quickstart", overrides)
    assert changed.document == load_scenario("quickstart", overrides).document


def test_clusters_and_placements_are_replaced_whole():
    scenario = load_scenario("quickstart")
    nodes = [{"type": "A100", "count": 4, "name": "a-{i}"}]
    cluster = QUICKSTART["cluster"] | {"nodes": nodes}
    placement = Placement({f"a-{i}": (15 * i, 15 * i + 15) for i in range(4)})
    changed = scenario.with_(cluster=cluster, placement=placement)
    assert changed.cluster.machine_mix() == {"A100": 4}
    assert changed.placement == placement
    assert scenario.with_(placement=scenario.placement).placement == scenario.placement


def test_files_are_found_beside_the_scenario(tmp_path, monkeypatch):
    (tmp_path / "lengths.csv").write_text("input_tokens,output_tokens\n5,5\n7,3\n")
    workload = QUICKSTART["workload"] | {"lengths": "lengths.csv"}
    document = QUICKSTART | {"workload": workload}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for scenario in (
        load_scenario(tmp_path / "mine.yaml"),
        Scenario.from_dict(document, base_dir=tmp_path),
    ):
        changed = scenario.with_(run={"duration": "5 s", "warmup": "1 s"})
        assert changed.workload.lengths == scenario.workload.lengths
        assert simulate(changed).summary["requests"]["completed"] > 0
        found = sweep(changed, {"grid": {"physics": ["paper"]}, "seeds": 2}, jobs=1)
        assert list(found.cells["status"]) == ["ok", "ok"]
    with pytest.raises(InputError, match=r"lengths\.csv"):
        Scenario.from_dict(document)


def test_a_replaced_scenario_is_not_taken_for_its_document():
    scenario = load_scenario("quickstart")
    moved = replace(scenario, placement=Placement({"a100-0": (0, 5)}))
    for change in (
        lambda: moved.with_(run={"seed": 1}),
        lambda: sweep(moved, {"seeds": 2}),
        lambda: capacity(moved, "ttft_s.p95<=5"),
    ):
        with pytest.raises(ScenarioError, match=r"differ from its document"):
            change()


def test_a_sweep_of_a_scenario_is_that_of_a_file():
    settings = {"grid": {"workload.initial_requests": (5, 10)}, "seeds": 2}
    fixed = {f"run.{key}": value for key, value in SHORT.items()}
    head = {"schema": 1, "kind": "sweep", "scenario": "quickstart", "set": fixed}
    of_file = sweep(head | settings, jobs=1)
    scenario = load_scenario("quickstart").with_(run=SHORT)
    for found in (
        sweep(scenario, settings, jobs=1),
        sweep("quickstart", {"set": fixed} | settings),
    ):
        assert found.cells.equals(of_file.cells)
    with pytest.raises(InputError, match=r"grid\.workload\.x: a scenario has no workload\.x"):
        sweep(scenario, {"grid": {"workload.x": [1]}})
    for wrong in (lambda: sweep(scenario), lambda: sweep(head, settings)):
        with pytest.raises(InputError, match="a sweep alone, or a scenario and settings"):
            wrong()


def test_capacity_of_a_scenario_is_that_of_a_file():
    changes = ["workload.mode=online", "workload.mean_tokens_per_s=300"]
    changes += ["run.duration=60 s", "run.warmup=10 s"]
    options = {"seeds": 1, "tolerance": 1, "keep_up": 0.1, "jobs": 1}
    of_file = capacity("quickstart", "ttft_s.p50<=9", overrides=changes, **options)
    scenario = load_scenario("quickstart", changes)
    assert capacity(scenario, "ttft_s.p50<=9", **options).to_json() == of_file.to_json()


def test_folders_and_names_can_be_replayed_alike(tmp_path):
    with pytest.raises(InputError, match="does not exist; name a folder or a file of a recording"):
        replay(Path("nothing"), "quickstart")

import re
from pathlib import Path

import pytest
import yaml
from scenario_data import CLUSTER, PLACEMENT, SCENARIO

from helixsim.errors import ScenarioError
from helixsim.scenario.load import load_scenario
from helixsim.scenario.workload_values import GammaArrivals, PoissonArrivals
from helixsim.traces import Lengths, length_model

TRACE = "Timestamp,Request tokens,Response tokens,Model,Total tokens,Log Type\n1,5,6,m,11,a\n"
LENGTHS = "input_tokens,output_tokens\n5,6\n"


@pytest.fixture
def parts(scenario_file):
    """The same scenario with cluster and placement in files of a folder below."""
    for kind, body in (("cluster", CLUSTER), ("placement", PLACEMENT)):
        scenario_file(name=f"parts/{kind}.yaml", base={"schema": 1, "kind": kind, **body})
    return {key: {"file": f"parts/{key}.yaml"} for key in ("cluster", "placement")}


@pytest.mark.parametrize("policy", ["maxflow", "swarm", "random", "shortest_queue"])
def test_set_the_policy(load, policy):
    assert load({}, f"scheduler.policy={policy}").scheduler.policy == policy


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("scheduler.kv.high_water_mark=0.9", "scheduler.kv.high_water_mark", 0.9),
        ("scheduler.kv.expected_output_ratio=0.6", "scheduler.kv.expected_output_ratio", 0.6),
        ("scheduler.feed_high_water_mark=0.5", "scheduler.feed_high_water_mark", 0.5),
        ("workload.initial_requests=180", "workload.initial_requests", 180),
        ("workload.mode=offline", "workload.mode", "offline"),
        ("run.warmup=60 s", "run.warmup_s", 60.0),
        ("run.duration= 2 min", "run.duration_s", 120.0),
        ("run.seed=3", "run.seed", 3),
        ("run.drain=true", "run.drain", True),
        ("physics=paper", "physics", "paper"),
        ("placement.allow_overcommitted_layers=true", "placement.allow_overcommitted_layers", True),
        ("name=other", "name", "other"),
    ],
)
def test_set_one_value(load, override, place, value):
    found = load({}, override)
    for step in place.split("."):
        found = getattr(found, step)
    assert found == value
    assert type(found) is type(value)


def test_later_values_win(load):
    assert load({}, "run.seed=1", "run.seed=2").run.seed == 2


def test_the_document_holds_what_was_set(load):
    document = load({}, "run.seed=1", "scheduler.kv={high_water_mark: 0.5}").document
    assert document == {
        **SCENARIO,
        "run": {"duration": "100 s", "seed": 1},
        "scheduler": {"kv": {"high_water_mark": 0.5}},
    }


# -- modes


def test_modes_switch_both_ways(load):
    online = {"workload": {"mode": "online", "mean_tokens_per_s": 70, "arrivals": "poisson"}}
    workload = load(online, "workload.mode=offline").workload
    assert (workload.mode, workload.arrivals, workload.mean_tokens_per_s) == ("offline", None, None)
    offline = {"workload": {"mode": "offline", "initial_requests": 5}}
    workload = load(offline, "workload.mode=online", "workload.mean_tokens_per_s=350").workload
    assert (workload.mode, workload.mean_tokens_per_s) == ("online", 350)
    assert load(online, "workload.arrivals={gamma: {cv: 3}}").workload.arrivals == GammaArrivals(3)
    assert load(online, "workload.arrivals.gamma.cv=3").workload.arrivals == GammaArrivals(3)


def test_a_trace_and_its_alternatives_take_each_others_place(load, tmp_path):
    (tmp_path / "trace.csv").write_text(TRACE)
    synthetic = {
        "workload": {
            "mode": "online",
            "lengths": "alpaca",
            "arrivals": "poisson",
            "mean_tokens_per_s": 1,
        }
    }
    workload = load(synthetic, "workload.trace=trace.csv").workload
    assert (len(workload.trace), workload.lengths, workload.arrivals) == (1, None, None)
    traced = {"workload": {"mode": "online", "trace": "trace.csv"}}
    workload = load(traced, "workload.arrivals=poisson", "workload.mean_tokens_per_s=70").workload
    assert (workload.trace, workload.arrivals) == (None, PoissonArrivals())
    workload = load(traced, "workload.mode=offline", "workload.lengths=alpaca").workload
    assert (workload.trace, workload.lengths) == (None, length_model("alpaca"))


# -- sections in files


def test_set_beside_a_file(load, parts):
    scenario = load(parts, "placement.allow_overcommitted_layers=true")
    assert scenario.placement.allow_overcommitted_layers
    assert scenario.document["placement"] == {
        "file": "parts/placement.yaml",
        "allow_overcommitted_layers": True,
    }


@pytest.mark.parametrize("in_file", [True, False])
def test_a_file_gives_way_to_what_is_set_beside_it(load, parts, scenario_file, in_file):
    scenario_file(
        {"layers.far-1": [72, 80], "allow_overcommitted_layers": in_file},
        name="parts/placement.yaml",
        base={"schema": 1, "kind": "placement", **PLACEMENT},
    )
    load_args = parts, f"placement.allow_overcommitted_layers={str(not in_file).lower()}"
    message = "exceed max_layers" if in_file else "has no capacity for 8"
    with pytest.raises(ScenarioError, match=message):
        load(*load_args)


def test_set_within_a_file(load, parts):
    scenario = load(parts, "cluster.nodes.2.type=A100", "placement.layers.far-1=[73, 80]")
    assert scenario.cluster.machine_mix() == {"A100": 8}
    assert scenario.cluster.nodes[:6] == load().cluster.nodes[:6]
    assert scenario.document["placement"] == PLACEMENT


def test_set_another_file(load, parts, scenario_file):
    nodes = [{"name": "big", "type": "A100"}, {"type": "A100", "count": 7, "name": "far-{i}"}]
    scenario_file(
        {"nodes": nodes}, name="other.yaml", base={"schema": 1, "kind": "cluster", **CLUSTER}
    )
    scenario_file(
        {"layers": {f"far-{i}": [12 * i, min(80, 12 * i + 12)] for i in range(7)}},
        name="others.yaml",
        base={"schema": 1, "kind": "placement"},
    )
    overrides = ("cluster.file=other.yaml", "placement.file=others.yaml")
    for changes in (parts, {}):
        scenario = load(changes, *overrides)
        assert scenario.cluster.machine_mix() == {"A100": 8}
        assert scenario.placement.layers["far-6"] == (72, 80)


def test_set_a_generator_and_within_one(load, scenario_file):
    generator = {
        "coordinator": {"nic": "1 GB/s"},
        "machines": {"A100": 3},
        "network": {"within": {"bandwidth": "1 GB/s", "latency": "1 ms"}},
    }
    scenario_file(name="gen.yaml", base={"schema": 1, "kind": "generator", **generator})
    for changes in ({"placement": ...}, {"placement": ..., "cluster": {"generate": "gen.yaml"}}):
        assert len(load(changes, "cluster.generate=gen.yaml").cluster) == 3
    bigger = load(changes, "cluster.generate.machines.A100=4")
    assert len(bigger.cluster) == 4
    assert bigger.document["cluster"] == {
        "generate": {**generator, "machines": {"A100": 4}},
    }


# -- files named by what is set


def test_files_lie_in_the_current_directory_or_the_scenarios(load, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "near.csv").write_text(LENGTHS)
    scenario = load({}, "workload.lengths=near.csv")
    assert scenario.workload.lengths == Lengths(((5, 6),))
    assert scenario.document["workload"]["lengths"] == "near.csv"
    digest = scenario.digest
    (here / "near.csv").write_text("input_tokens,output_tokens\n7,8\n")
    scenario = load({}, "workload.lengths=near.csv")
    assert scenario.workload.lengths == Lengths(((7, 8),))
    assert scenario.document["workload"]["lengths"] == str(here / "near.csv")
    (here / "near.csv").write_text(LENGTHS)
    assert load({}, "workload.lengths=near.csv").digest == digest
    assert load({}, f"workload.lengths={tmp_path / 'near.csv'}").digest == digest
    assert load({}, "workload={mode: offline, lengths: near.csv}").digest == digest


def test_a_file_in_the_current_directory_does_not_hide_a_built_in_name(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("alpaca").write_text(LENGTHS)
    assert load({}, "workload.lengths=alpaca").workload.lengths == length_model("alpaca")


def test_names_in_the_scenario_itself_are_not_looked_up_elsewhere(load, tmp_path, monkeypatch):
    (tmp_path / "near.csv").write_text(LENGTHS)
    here = tmp_path / "here"
    here.mkdir()
    (here / "near.csv").write_text("input_tokens,output_tokens\n7,8\n")
    monkeypatch.chdir(here)
    workload = load({"workload.lengths": "near.csv"}, "run.seed=1").workload
    assert workload.lengths == Lengths(((5, 6),))


# -- mistakes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed", "--set takes PATH=VALUE, such as run.seed=1, not 'run.seed'"),
        ("=3", "--set takes PATH=VALUE"),
        ("run..seed=3", "--set takes PATH=VALUE"),
        ("run.sede=3", "--set run.sede=3: a scenario has no run.sede; did you mean 'run.seed'?"),
        ("warmup=3 s", "did you mean 'run.warmup'?"),
        ("scheduler.high_water_mark=0.9", "did you mean 'scheduler.kv.high_water_mark'?"),
        (
            "xyz=1",
            "it may have cluster, description, dollars_per_hour, engine, faults, gpus, llm, "
            "machine_types, name",
        ),
        (
            "scheduler.kv.zzz=1",
            "scheduler.kv may have admission, expected_output_ratio, high_water_mark",
        ),
        ("run.seed.x=3", "a scenario has no run.seed.x; run.seed is a single value"),
        ("cluster.nodes.3.type=L4", "cluster.nodes has 3 entries, counted from 0"),
        ("cluster.nodes.-1.type=L4", "a scenario has no cluster.nodes.-1.type"),
        ("cluster.network.links.0.latency=1 s", "cluster.network.links has 0 entries"),
        (
            "cluster.nodes.0.tpye=L4",
            "did you mean 'cluster.nodes.0.type'?",
        ),
        ("run.seed=[", "--set run.seed=[: line 2, column 1: not valid YAML"),
        ("run={a: 1, a: 2}", "duplicate key 'a'"),
        ("run.seed=", "run.seed: should be a valid integer, not nothing"),
        ("run.seed='3'", "run.seed: should be a valid integer, not '3'"),
        ("run=3", "run: should hold keys and values, not 3"),
        ("cluster.file=no.yaml", "no.yaml: there is no such file"),
        ("workload.trace=no.csv", "workload.trace: an offline workload is a closed loop"),
    ],
)
def test_a_mistake_in_what_is_set_is_named(load, override, message):
    with pytest.raises(ScenarioError, match=re.escape(message)):
        load({}, override)


def test_a_file_that_cannot_be_entered_is_named(load, parts, tmp_path):
    (tmp_path / "parts" / "cluster.yaml").write_text("- 1\n")
    with pytest.raises(ScenarioError, match=r"cluster\.yaml: this file holds no keys and values"):
        load(parts, "cluster.nodes.0.type=L4")


def test_loading_does_not_change_the_file(scenario_file):
    file = scenario_file()
    load_scenario(file, ["run.seed=1"])
    assert yaml.safe_load(file.read_text()) == SCENARIO

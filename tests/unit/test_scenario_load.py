import json
import re
import subprocess
import sys

import pytest
import yaml
from scenario_data import CLUSTER, PLACEMENT, SCENARIO, changed

from helixsim.cluster import Link, Nic, Node
from helixsim.control.node_schedulers import NODE_SCHEDULERS
from helixsim.errors import InputError, ScenarioError
from helixsim.placement.placement import Placement
from helixsim.profiles.library import DATA
from helixsim.requests import TraceRequest
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import Fault, Faults, RunSettings
from helixsim.scenario.scheduler_settings import PRESETS, KvSettings, SchedulerSettings
from helixsim.scenario.workload_values import (
    GammaArrivals,
    PatternArrivals,
    PoissonArrivals,
    SlotArrivals,
    Workload,
)
from helixsim.traces import Lengths, arrival_pattern, length_model


def test_a_scenario_with_all_defaults(load):
    scenario = load()
    assert scenario.name == "mine"
    assert scenario.llm.name == "llama2-70b"
    assert list(scenario.machine_types) == ["A100", "L4"]
    assert scenario.placement == Placement({k: tuple(v) for k, v in PLACEMENT["layers"].items()})
    assert scenario.scheduler == PRESETS["tuned"]
    assert scenario.workload == Workload(
        mode="offline",
        lengths=length_model("azure-conversation"),
        initial_requests=20,
        spacing_s=0.1,
        mean_prompt_tokens=750,
        mean_output_tokens=240,
        rate_scale=1.0,
    )
    assert scenario.physics == "paper"
    assert scenario.run == RunSettings(
        seed=0, warmup_s=0.0, duration_s=100.0, drain=False, sample_interval_s=10.0
    )
    assert scenario.document == SCENARIO


def test_all_settings_arrive(load):
    scenario = load(
        {
            "scheduler": {
                "preset": "published",
                "policy": "swarm",
                "kv": {"high_water_mark": 0.9, "expected_output_ratio": 0.6},
                "feed_high_water_mark": 0.7,
                "min_flow_share": 0,
            },
            "workload": {
                "mode": "offline",
                "initial_requests": 3,
                "spacing": "200 ms",
                "lengths": "azure-code",
                "max_prompt_tokens": 2048,
                "max_output_tokens": 1024,
                "mean_prompt_tokens": 100,
                "mean_output_tokens": 50,
            },
            "run": {
                "seed": 7,
                "warmup": "1 min",
                "duration": "0.2 h",
                "drain": True,
                "sample_interval": "5 s",
            },
        }
    )
    assert scenario.scheduler == SchedulerSettings(
        policy="swarm",
        kv=KvSettings(high_water_mark=0.9, expected_output_ratio=0.6),
        feed_high_water_mark=0.7,
        min_flow_share=0,
    )
    assert scenario.workload == Workload(
        mode="offline",
        lengths=length_model("azure-code").limited(max_prompt_tokens=2048, max_output_tokens=1024),
        initial_requests=3,
        spacing_s=0.2,
        mean_prompt_tokens=100,
        mean_output_tokens=50,
    )
    assert scenario.run == RunSettings(
        seed=7, warmup_s=60.0, duration_s=720.0, drain=True, sample_interval_s=5.0
    )


def test_profiles_are_those_of_the_cluster(load):
    scenario = load()
    assert scenario.profiles() == {
        name: scenario.machine_types[name].profiles["llama2-70b"] for name in ("A100", "L4")
    }


def test_a_scenario_may_leave_the_placement_open(load):
    assert load({"placement": ...}).placement is None


# -- cluster


def test_nodes_of_a_group_are_numbered_and_take_after_their_type(load):
    cluster = load().cluster
    assert [node.name for node in cluster] == [
        "big",
        *(f"a100-{i}" for i in range(5)),
        "far-0",
        "far-1",
    ]
    assert cluster.node("far-1") == Node(
        name="far-1",
        machine_type="L4",
        nic=Nic(1e10, 1e10),
        disk_bytes_per_s=1e9,
        region="east",
        kv_token_layers=None,
    )
    assert cluster.coordinator_nic == Nic(1e10, 1e10)
    assert cluster.front_ends[0].region == "default"


def test_numbers_go_on_over_groups_of_one_pattern(load):
    changes = {
        "cluster.nodes": [{"type": "L4", "count": 2}, {"type": "L4", "region": "b"}],
        "placement": ...,
    }
    assert [node.name for node in load(changes).cluster] == ["l4-0", "l4-1", "l4-2"]


def test_a_node_may_differ_from_its_type(load):
    changes = {
        "cluster.nodes.0": {
            "name": "big",
            "type": "A100",
            "nic": {"inbound": "1 GB/s", "outbound": "2 GB/s"},
            "disk": "3 GB/s",
            "kv_token_layers": 1000,
        },
        "cluster.coordinator.nic": {"inbound": "4 GB/s", "outbound": "5 GB/s"},
        "cluster.coordinator.region": "east",
    }
    cluster = load(changes).cluster
    assert cluster.node("big") == Node("big", "A100", Nic(1e9, 2e9), 3e9, "default", 1000)
    assert cluster.coordinator_nic == Nic(4e9, 5e9)
    assert cluster.network.link("coordinator", "far-0").latency_s == 0.001


def test_rules_give_links_within_and_across_regions(load):
    network = load().cluster.network
    assert network.link("big", "a100-0") == Link("big", "a100-0", 1.25e9, 0.001)
    assert network.link("coordinator", "far-0") == Link("coordinator", "far-0", 1.25e7, 0.05)
    assert network.link("big", "big") is None
    assert network.link("big", "nobody") is None


def test_the_most_special_rule_counts(load):
    rule = {"bandwidth": "1 GB/s"}
    changes = {
        "cluster.nodes.1.region": "west",
        "cluster.network": {
            "within": {**rule, "latency": "1 ms"},
            "regions": [
                {"between": ["west", "east"], **rule, "latency": "2 ms"},
                {"between": ["east", "east"], **rule, "latency": "3 ms"},
            ],
            "links": [
                {"from": "far-0", "to": "a100-0", **rule, "latency": "4 ms"},
                {"between": ["a100-0", "far-0"], **rule, "latency": "5 ms"},
            ],
        },
        "placement": ...,
    }
    network = load(changes).cluster.network
    found = {
        pair: link and link.latency_s
        for pair in (
            ("a100-0", "a100-1"),
            ("a100-1", "far-0"),
            ("far-0", "a100-1"),
            ("far-0", "far-1"),
            ("far-0", "a100-0"),
            ("a100-0", "far-0"),
            ("big", "far-0"),
            ("coordinator", "big"),
        )
        for link in [network.link(*pair)]
    }
    assert found == {
        ("a100-0", "a100-1"): 0.001,
        ("a100-1", "far-0"): 0.002,
        ("far-0", "a100-1"): 0.002,
        ("far-0", "far-1"): 0.003,
        ("far-0", "a100-0"): 0.004,
        ("a100-0", "far-0"): 0.005,
        ("big", "far-0"): None,
        ("coordinator", "big"): 0.001,
    }


SPREAD = {
    "cluster.network.within": {
        "bandwidth": {"mean": "1 GB/s", "spread": "0.5 GB/s"},
        "latency": {"mean": "10 ms", "spread": "10 ms"},
    }
}


def test_spread_values_are_drawn_per_pair(load):
    network = load(SPREAD).cluster.network
    names = ["coordinator", "big", *(f"a100-{i}" for i in range(5))]
    links = [network.link(a, b) for a in names for b in names if a != b]
    assert all(0.5e9 <= link.bandwidth_bytes_per_s < 1.5e9 for link in links)
    assert all(0 <= link.latency_s < 0.02 for link in links)
    assert len({link.bandwidth_bytes_per_s for link in links}) == len(links) / 2
    for link in links:
        back = network.link(link.target, link.source)
        assert (back.bandwidth_bytes_per_s, back.latency_s) == (
            link.bandwidth_bytes_per_s,
            link.latency_s,
        )


def test_spread_values_depend_on_the_seed_and_the_names_alone(load):
    link = load(SPREAD).cluster.network.link("big", "a100-3")
    fewer = {**SPREAD, "cluster.nodes.1.count": 4, "placement": ...}
    assert load(fewer).cluster.network.link("big", "a100-3") == link
    other = load({**SPREAD, "cluster.network.seed": 1}).cluster.network.link("big", "a100-3")
    assert other.bandwidth_bytes_per_s != link.bandwidth_bytes_per_s


def test_spread_values_do_not_depend_on_the_hash_seed(scenario_file):
    file = scenario_file(SPREAD)
    code = (
        "import sys; from helixsim.scenario.load import load_scenario\n"
        "s = load_scenario(sys.argv[1])\n"
        "print(s.cluster.network.link('big', 'a100-0').latency_s.hex(), s.digest)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, file],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


# -- files of their own


def head(kind, body):
    return {"schema": 1, "kind": kind, **body}


@pytest.fixture
def in_files(scenario_file):
    scenario_file(name="parts/cluster.yaml", base=head("cluster", CLUSTER))
    scenario_file(name="parts/placement.yaml", base=head("placement", PLACEMENT))
    return {
        "cluster": {"file": "parts/cluster.yaml"},
        "placement": {"file": "parts/placement.yaml"},
    }


def test_sections_may_lie_in_files(load, in_files):
    inline, filed = load(), load(in_files)
    assert filed.cluster == inline.cluster
    assert filed.placement == inline.placement
    assert filed.document["cluster"] == {"file": "parts/cluster.yaml"}


def test_a_mistake_in_a_file_names_that_file(load, in_files, scenario_file):
    bad = head("placement", changed(PLACEMENT, {"layers.big": [0, 90]}))
    file = scenario_file(name="parts/placement.yaml", base=bad)
    with pytest.raises(ScenarioError, match=r"\[0, 90\] is no range of layers") as caught:
        load(in_files)
    assert (caught.value.file, caught.value.where) == (str(file), "layers.big")
    bad = head("cluster", changed(CLUSTER, {"nodes.2.type": "L5"}))
    file = scenario_file(name="parts/cluster.yaml", base=bad)
    with pytest.raises(ScenarioError, match=r"no machine type 'L5'") as caught:
        load(in_files)
    assert (caught.value.file, caught.value.where) == (str(file), "nodes[2].type")


def test_a_file_of_another_kind_is_refused(load, in_files):
    with pytest.raises(ScenarioError, match="kind: should be 'cluster', not 'placement'"):
        load({**in_files, "cluster.file": "parts/placement.yaml"})


def test_own_llms_and_machine_types(load, tmp_path):
    llm = yaml.safe_load((DATA / "llms" / "llama2-70b.yaml").read_text())
    (tmp_path / "llm.yaml").write_text(yaml.safe_dump({**llm, "name": "mine-70b"}))
    machine = yaml.safe_load((DATA / "machines" / "A100.yaml").read_text())
    profile = machine["llms"]["llama2-70b"]
    for name in ("A100", "L4"):
        file = {**machine, "name": name, "disk": "9 GB/s", "llms": {"mine-70b": profile}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(file))
    changes = {"llm": "llm.yaml", "machine_types": ["L4.yaml", "A100.yaml"]}
    scenario = load(changes)
    assert scenario.llm.name == "mine-70b"
    assert list(scenario.machine_types) == ["A100", "L4"]
    assert scenario.cluster.node("big").disk_bytes_per_s == 9e9
    with pytest.raises(ScenarioError, match="'A100' has no profile for mine-70b, only for llama"):
        load({**changes, "machine_types": ["L4.yaml"]})
    with pytest.raises(ScenarioError, match=re.escape("machine_types[1]: duplicate machine type")):
        load({**changes, "machine_types": ["L4.yaml", "L4.yaml"]})


# -- workload


ONLINE = {"workload.mode": "online", "workload.mean_tokens_per_s": 700}


def test_online_workloads_have_arrivals(load):
    workload = load(ONLINE).workload
    assert workload == Workload(
        mode="online",
        lengths=length_model("azure-conversation"),
        arrivals=PatternArrivals(arrival_pattern("azure-conversation")),
        mean_tokens_per_s=700,
    )


@pytest.mark.parametrize(
    ("entry", "arrivals"),
    [
        ("azure-code", PatternArrivals(arrival_pattern("azure-code"))),
        ("poisson", PoissonArrivals()),
        ({"gamma": {"cv": 2}}, GammaArrivals(2)),
        ("counts.csv", SlotArrivals((3, 0, 1), 3.0)),
        ({"slots": {"file": "counts.csv"}}, SlotArrivals((3, 0, 1), 3.0)),
        ({"slots": {"file": "counts.csv", "length": "1 min"}}, SlotArrivals((3, 0, 1), 60.0)),
    ],
)
def test_kinds_of_arrivals(load, tmp_path, entry, arrivals):
    (tmp_path / "counts.csv").write_text("arrivals\n3\n0\n1\n")
    assert load({**ONLINE, "workload.arrivals": entry}).workload.arrivals == arrivals


def test_lengths_from_a_file_with_limits(load, tmp_path):
    (tmp_path / "lengths.csv").write_text("input_tokens,output_tokens\n5,6\n70,8\n9,100\n")
    changes = {"workload.lengths": "lengths.csv"}
    assert load(changes).workload.lengths == Lengths(((5, 6), (70, 8), (9, 100)))
    changes |= {"workload.max_prompt_tokens": 50, "workload.max_output_tokens": 50}
    assert load(changes).workload.lengths == Lengths(((5, 6),))
    changes |= {"workload.max_prompt_tokens": 4}
    with pytest.raises(ScenarioError, match=r"workload\.lengths: too few requests within the lim"):
        load(changes)


TRACE = "Timestamp,Request tokens,Response tokens,Model,Total tokens,Log Type\n1,5,6,m,11,a\n"


def test_a_trace_has_times_and_lengths_of_its_own(load, tmp_path):
    (tmp_path / "trace.csv").write_text(TRACE)
    changes = {
        "workload": {"mode": "online", "trace": "trace.csv", "rate_scale": 2, "initial_requests": 3}
    }
    workload = load(changes).workload
    assert workload.trace.requests == (TraceRequest(0.0, 5, 6),)  # from the first request
    assert workload.rate_scale == 2
    assert (workload.lengths, workload.arrivals, workload.mean_tokens_per_s) == (None, None, None)


def test_files_of_workloads_are_named_in_messages(load, tmp_path):
    (tmp_path / "lengths.csv").write_text("input_tokens,output_tokens\n5,x\n")
    with pytest.raises(InputError, match=r"lengths\.csv: row 2"):
        load({"workload.lengths": "lengths.csv"})


# -- digest


def test_equal_scenarios_have_equal_digests_wherever_they_lie(load, in_files, tmp_path):
    first = load(in_files).digest
    assert re.fullmatch("[0-9a-f]{64}", first)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("mine.yaml", "parts"):
        (tmp_path / name).rename(elsewhere / name)
    moved = elsewhere / "mine.yaml"
    assert load_scenario(moved).digest == first
    keys = json.loads(json.dumps(changed(SCENARIO, in_files), sort_keys=True))
    moved.write_text(yaml.safe_dump(keys, sort_keys=True))
    assert load_scenario(moved).digest == first


def test_the_order_of_keys_changes_nothing_unless_the_digest_too(load):
    layers = dict(reversed(PLACEMENT["layers"].items()))
    turned, straight = load({"placement.layers": layers}), load()
    assert turned.digest == straight.digest
    assert list(turned.placement.layers) == list(straight.placement.layers)
    generators = [
        {
            "coordinator": {"nic": "1 GB/s"},
            "regions": {"a": machines},
            "network": {},
        }
        for machines in ({"L4": 1, "T4": 2}, {"T4": 2, "L4": 1})
    ]
    one, other = (
        load({"placement": ..., "cluster": {"generate": generator}}) for generator in generators
    )
    assert one.cluster != other.cluster
    assert one.digest != other.digest


def test_the_digest_covers_values_set_and_files_named(load, in_files, scenario_file, tmp_path):
    (tmp_path / "lengths.csv").write_text("input_tokens,output_tokens\n5,6\n")
    changes = {**in_files, "workload.lengths": "lengths.csv"}
    digests = [load(changes).digest, load(changes, "run.seed=1").digest]
    (tmp_path / "lengths.csv").write_text("input_tokens,output_tokens\n5,7\n")
    digests.append(load(changes).digest)
    body = changed(CLUSTER, {"coordinator.nic": "1 GB/s"})
    scenario_file(name="parts/cluster.yaml", base=head("cluster", body))
    digests.append(load(changes).digest)
    assert len(set(digests)) == len(digests)


def test_whole_prefills_are_no_stream(load):
    scheduler = {"scheduler.preset": "published", "scheduler.stream_chunks": True}
    assert not load(scheduler).scheduler.stream_chunks
    assert load({**scheduler, "scheduler.prefill_chunk_tokens": 100}).scheduler.stream_chunks


def test_node_schedulers_can_be_named(load):
    assert load().scheduler.node is None  # the performance model's own
    for name in NODE_SCHEDULERS.shipped_names():
        assert load({"scheduler.node": name}).scheduler.node == name
    own = "helixsim.control.node_schedulers.paper:PaperScheduler"
    assert load({"scheduler.node": own}).scheduler.node == own


# -- mistakes


MISTAKES = [
    ({"schema": 2}, "schema: should be 1, not 2"),
    ({"name": ...}, "name: this key is missing"),
    ({"nmae": "x"}, "nmae: unknown key; did you mean 'name'?"),
    ({"llm": "llama2-9b"}, "llm: no LLM 'llama2-9b' ships with helixsim; did you mean"),
    ({"llm": "x.yaml"}, "x.yaml: there is no such file"),
    ({"machine_types": ["A100"]}, "machine_types[0]: 'A100' is not a file"),
    (
        {"physics": "real"},
        "physics: no performance model 'real'; there are paper, calibrated (searched: registered "
        "in this process, shipped with helixsim, and entry points 'helixsim.performance_models' of "
        "installed packages; name your own as module:Class)",
    ),
    ({"physics": "no_such_module:Model"}, "physics: the performance model 'no_such_module:Model'"),
    ({"physics": "real physics"}, "physics: "),
    ({"cluster": "c.yaml"}, "cluster: should hold keys and values, not 'c.yaml'"),
    ({"cluster": {"file": "c.yaml"}}, "c.yaml: there is no such file"),
    ({"cluster.file": "c.yaml"}, "cluster.nodes: this key does not go with the others here"),
    ({"cluster.coordinator": ...}, "cluster.coordinator: this key is missing"),
    ({"cluster.coordinator.nic": "0 B/s"}, "cluster.coordinator.nic: should be greater than 0"),
    ({"cluster.coordinator.nic": 7}, "cluster.coordinator.nic: 7 has no unit"),
    ({"cluster.coordinator.nic": {"inbound": "1 B/s"}}, "nic.outbound: this key is missing"),
    ({"cluster.nodes": []}, "cluster.nodes: "),
    ({"cluster.nodes.2.type": "L5"}, "cluster.nodes[2].type: no machine type 'L5'; known are A100"),
    ({"cluster.nodes.2.type": "L4x3"}, "did you mean 'L4x2'?"),
    ({"cluster.nodes.0.count": 2}, "cluster.nodes[0].name: must contain {i}"),
    ({"cluster.nodes.1.count": 0}, "cluster.nodes[1].count: should be greater than or equal to 1"),
    ({"cluster.nodes.2.name": "x{j}{i}"}, "cluster.nodes[2].name: the only braces allowed are {i}"),
    ({"cluster.nodes.0.name": "a100-3"}, "cluster.nodes[1].name: duplicate node name 'a100-3'"),
    ({"cluster.nodes.0.name": "coordinator"}, "nodes[0].name: 'coordinator' is reserved"),
    ({"cluster.nodes.0.name": "source"}, "nodes[0].name: 'source' is reserved"),
    ({"cluster.nodes.0.name": "sink"}, "nodes[0].name: 'sink' is reserved"),
    ({"cluster.nodes.0.kv_token_layers": 0}, "nodes[0].kv_token_layers: should be greater than"),
    (
        {"cluster.network.within.bandwidth": {"mean": "1 GB/s", "spread": "1 GB/s"}},
        "cluster.network.within.bandwidth.spread: must be below the mean",
    ),
    (
        {"cluster.network.within.latency": {"mean": "1 ms", "spread": "2 ms"}},
        "cluster.network.within.latency.spread: must not exceed the mean",
    ),
    ({"cluster.network.within.bandwidth": "0 B/s"}, "bandwidth: should be greater than 0"),
    ({"cluster.network.within.latency": "1 GB"}, "latency: '1 GB' is not a time quantity"),
    (
        {"cluster.network.regions": [{"between": ["east", "wets"]}]},
        "cluster.network.regions[0].bandwidth: this key is missing",
    ),
    ({"placement": {"file": "p.yaml"}}, "p.yaml: there is no such file"),
    ({"placement.file": "p.yaml"}, "placement.layers: this key does not go with the others"),
    ({"placement.layers": {}}, "placement.layers: "),
    ({"placement.layers.bgi": [0, 1]}, "placement.layers.bgi: the cluster has no such node; did"),
    ({"placement.layers.big": [0, 0]}, "placement.layers.big: [0, 0] is no range of layers"),
    ({"placement.layers.big": [-1, 3]}, "placement.layers.big: [-1, 3] is no range of layers"),
    ({"placement.layers.far-1": [75, 81]}, "placement.layers.far-1: [75, 81] is no range"),
    ({"placement.layers.far-1": [75]}, "placement.layers.far-1[1]: this key is missing"),
    ({"placement.layers.far-1": [72, 80]}, "far-1: 8 layers of llama2-70b exceed max_layers (7)"),
    (
        {"placement.layers.far-1": [72, 80], "placement.allow_overcommitted_layers": True},
        "placement.layers.far-1: 'L4' has no capacity for 8 layers of llama2-70b",
    ),
    ({"placement.layers.a100-2": [36, 47]}, "placement.layers: no node holds layer 47"),
    ({"workload.mode": "both"}, "workload.mode: should be 'offline' or 'online', not 'both'"),
    ({"workload.mode": "online"}, "workload.requests_per_s: this key is missing"),
    ({"workload.trace": "t.csv"}, "workload.trace: an offline workload is a closed loop"),
    ({"workload.lengths": "azure"}, "workload.lengths: there is no file"),
    ({"workload.lengths": "azure-cod"}, "did you mean 'azure-code'?"),
    ({**ONLINE, "workload.arrivals": "possion"}, "did you mean 'poisson'?"),
    ({**ONLINE, "workload.arrivals": {"gamma": {"cv": 0}}}, "workload.arrivals.gamma.cv: should"),
    ({**ONLINE, "workload.arrivals": 3}, "workload.arrivals: "),
    ({**ONLINE, "workload.arrivals": "zero.csv"}, "workload.arrivals: contains no arrivals"),
    ({**ONLINE, "workload.mean_tokens_per_s": 0}, "workload.mean_tokens_per_s: should be greater"),
    ({**ONLINE, "workload.rate_scale": 2}, "workload.rate_scale: is for a trace"),
    ({**ONLINE, "workload.trace": "t.csv"}, "workload.mean_tokens_per_s: conflicts with the trace"),
    ({"workload": {"mode": "online", "trace": "t.csv"}}, "workload.trace: there is no file"),
    ({"workload.initial_requests": 0}, "workload.initial_requests: should be greater than"),
    (
        {"scheduler.policy": "max"},
        "scheduler.policy: no routing policy 'max'; there are maxflow, adaptive, swarm, random, "
        "shortest_queue, least_kv, prefix_aware (searched: registered",
    ),
    (
        {"scheduler.policy": "helixsim.control:Nothing"},
        "'helixsim.control' has no attribute 'Nothing'",
    ),
    (
        {"scheduler.node": "papre"},
        "scheduler.node: no node scheduler 'papre'; there are paper, prototype, vllm (searched:",
    ),
    ({"scheduler.kv.high_water_mark": 0}, "scheduler.kv.high_water_mark: should be greater than 0"),
    ({"scheduler.kv.high_water_mark": 1.1}, "should be less than or equal to 1, not 1.1"),
    ({"scheduler.kv.expected_output_ratio": 0}, "expected_output_ratio: should be greater than 0"),
    ({"scheduler.feed_high_water_mark": 2}, "scheduler.feed_high_water_mark: should be less than"),
    ({"scheduler.min_flow_share": 1}, "scheduler.min_flow_share: should be less than 1"),
    ({"run.warmup": "100 s"}, "run.warmup: must be below the duration of 100 s"),
    ({"run.duration": "0 s"}, "run.duration: should be greater than 0"),
    ({"run.duration": 60}, "run.duration: 60 has no unit"),
    ({"run.seed": 1.5}, "run.seed: should be a valid integer, not 1.5"),
    ({"run.seed": True}, "run.seed: should be a valid integer, not True"),
    (
        {"run.sample_interval": "0 s"},
        "run.sample_interval: should be greater than or equal to 0.001",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_place(load, tmp_path, changes, message):
    (tmp_path / "zero.csv").write_text("arrivals\n0\n0\n")
    with pytest.raises(ScenarioError, match=re.escape(message)):
        load(changes)


RULE = {"bandwidth": "1 GB/s", "latency": "1 ms"}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            {"regions": [{"between": ["east", "eats"], **RULE}]},
            "regions[0].between[1]: no machine is in region 'eats'; did you mean 'east'?",
        ),
        (
            {
                "regions": [
                    {"between": ["east", "default"], **RULE},
                    {"between": ["default", "east"], **RULE},
                ]
            },
            "regions[1].between: duplicate rule for default and east",
        ),
        ({"links": [{"between": ["big", "bigg"], **RULE}]}, "links[0]: there is no machine 'bigg'"),
        ({"links": [{"between": ["big", "big"], **RULE}]}, "links[0]: a link joins two different"),
        ({"links": [{"from": "big", **RULE}]}, "links[0]: give either between or both from and to"),
        (
            {"links": [{"between": ["big", "far-0"], "from": "big", **RULE}]},
            "links[0]: give either between or both from and to",
        ),
        (
            {
                "links": [
                    {"between": ["far-0", "big"], **RULE},
                    {"between": ["big", "far-0"], **RULE},
                ]
            },
            "links[1]: duplicate entry for the link between big and far-0",
        ),
        (
            {"links": [{"from": "far-0", "to": "big", **RULE}] * 2},
            "links[1]: duplicate entry for the link between far-0 and big",
        ),
    ],
)
def test_a_mistake_in_the_network_is_named(load, network, message):
    with pytest.raises(ScenarioError, match=re.escape(f"cluster.network.{message}")):
        load({"cluster.network": network})


CHAIN = [
    ["coordinator", "big"],
    ["big", "a100-0"],
    ["a100-0", "a100-1"],
    ["a100-1", "a100-2"],
    ["a100-2", "a100-3"],
    ["a100-3", "a100-4"],
    ["a100-4", "far-0"],
    ["far-0", "far-1"],
    ["far-1", "coordinator"],
]


def test_links_of_a_placement_keep_their_order(load):
    links = CHAIN[::-1]
    assert load({"placement.links": links}).placement.links == tuple(map(tuple, links))


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ([], "placement.links: "),
        ([["coordinator", "bgi"]], "placement.links[0]: 'bgi' holds no layers; did you mean 'big'"),
        ([*CHAIN, CHAIN[0]], "placement.links[9]: duplicate link from coordinator to big"),
        ([["coordinator", "coordinator"]], "placement.links[0]: the cluster has no link from coo"),
        ([["coordinator", "a100-0"]], "placement.links[0]: a100-0 starts with layer 12, not with"),
        ([["big", "coordinator"]], "placement.links[0]: big ends before layer 12, not after the"),
        ([["a100-4", "far-1"]], "after a100-4 comes layer 70, but far-1 holds [73, 80]"),
        ([["a100-0", "big"]], "after a100-0 comes layer 24, but big holds [0, 12]"),
        (CHAIN[1:], "placement.links: no route leads from the coordinator"),
    ],
)
def test_links_of_a_placement_must_fit(load, links, message):
    with pytest.raises(ScenarioError, match=re.escape(message)):
        load({"placement.links": links})


def test_links_of_a_placement_must_be_in_the_network(load):
    changes = {"placement.links": CHAIN, "cluster.network.across": ...}
    with pytest.raises(ScenarioError) as caught:
        load(changes)
    assert "2 mistakes" in str(caught.value)
    assert "placement.links[6]: the cluster has no link from a100-4 to far-0" in str(caught.value)
    assert "placement.links[8]: the cluster has no link from far-1 to" in str(caught.value)


def test_a_node_with_a_kv_capacity_of_its_own_may_hold_any_number_of_layers(load):
    changes = {
        "placement.layers.far-1": [71, 80],
        "placement.allow_overcommitted_layers": True,
        "cluster.nodes.2.kv_token_layers": 7000,
    }
    assert load(changes).placement.layers["far-1"] == (71, 80)


def test_a_file_that_holds_no_scenario(tmp_path):
    file = tmp_path / "x.yaml"
    for text in ("", "[]", "hello"):
        file.write_text(text)
        with pytest.raises(ScenarioError, match="it should hold keys and values"):
            load_scenario(file, ["run.seed=1"])


def test_an_unknown_shipped_scenario():
    with pytest.raises(ScenarioError, match="no scenario 'quikstart' ships with helixsim"):
        load_scenario("quikstart")


def test_faults(load):
    events = [
        {"node": "big", "at": "1 min", "duration": "30 s"},
        {"node": "far-0", "at": "5 s"},
    ]
    scenario = load({"faults": {"detection": "500 ms", "events": events}})
    assert scenario.faults == Faults(
        detection_s=0.5, events=(Fault("big", 60.0, 30.0), Fault("far-0", 5.0))
    )
    assert load().faults == Faults(detection_s=3.0)
    chosen = load({"scheduler": {"prefill_chunk_tokens": 512, "max_waiting": 100}}).scheduler
    assert (chosen.prefill_chunk_tokens, chosen.max_waiting) == (512, 100)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"node": "bog", "at": "5 s"}, "faults.events[1].node: no node 'bog'; did you mean 'big'"),
        ({"node": "a100-0", "at": "-1 s"}, "faults.events[1].at: '-1 s' is not a quantity"),
        (
            {"node": "big", "at": "95 s"},
            "faults.events[1].at: big is still down at that time; it is back",
        ),
        (
            {"node": "big", "at": "50 s"},
            "faults.events[0].at: big is still down: its previous fault",
        ),
    ],
)
def test_mistakes_in_faults(load, event, message):
    first = {"node": "big", "at": "1 min", "duration": "30 s"}
    with pytest.raises(ScenarioError, match=re.escape(message)):
        load({"faults": {"events": [first, event]}})


def test_a_fault_of_a_node_without_layers(load):
    changes = {
        "cluster.nodes.1.count": 6,
        "faults": {"events": [{"node": "a100-5", "at": "5 s"}]},
    }
    with pytest.raises(ScenarioError, match=r"faults\.events\[0\]\.node: a100-5 holds no layers"):
        load(changes)
    assert load(changes | {"placement": ...}).faults.events == (Fault("a100-5", 5.0),)

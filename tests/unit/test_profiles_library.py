import copy
import csv
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from helixsim.errors import ScenarioError
from helixsim.profiles.library import (
    DATA,
    load_llm,
    load_machine_type,
    shipped_llms,
    shipped_machine_types,
)
from helixsim.profiles.machine import LLM, Capacity, PlannerHints

TINY = LLM("tiny", 10, 1000.0, 2.0, 1e9, 1000.0)

LLM_FILE = {
    "schema": 1,
    "kind": "llm",
    "name": "tiny",
    "num_layers": 10,
    "hidden_size": 500,
    "layer_size": "1 GB",
    "kv_size": "1000 B",
}

MACHINE_FILE = {
    "schema": 1,
    "kind": "machine",
    "name": "MyGPU",
    "memory": "10 GB",
    "nic": "10 Gbit/s",
    "disk": "2 GB/s",
    "llms": {
        "tiny": {
            "prefill": {"tokens": [0, 1000], "ms": [0, 10]},
            "decode": {"tokens": [0, 100], "ms": [0, 5.0]},
            "kv": {"from_memory": 0.9},
        }
    },
}


@pytest.fixture
def write(tmp_path):
    def write(data, **changes):
        data = copy.deepcopy(data)
        for path, value in changes.items():
            *parents, last = path.split("__")
            target = data
            for parent in parents:
                target = target.setdefault(parent, {})
            if value is ...:
                del target[last]
            else:
                target[last] = value
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
        return "mine.yaml", tmp_path

    return write


# -- what ships


def test_what_ships():
    assert shipped_llms() == ("llama1-30b", "llama2-70b")
    assert shipped_machine_types() == ("A100", "L4", "L4x2", "T4", "T4x2", "T4x4", "V100")


def test_shipped_llms():
    assert load_llm("llama2-70b") == LLM("llama2-70b", 80, 16384.0, 2.0, 1.53e9, 4096.0)
    assert load_llm("llama1-30b") == LLM("llama1-30b", 60, 13312.0, 2.0, 1e9, 26624.0)


@pytest.mark.parametrize("name", shipped_machine_types())
def test_shipped_machine_types_are_complete(name):
    machine = load_machine_type(name)
    assert machine.name == name
    assert tuple(machine.profiles) == shipped_llms()
    for llm, profile in machine.profiles.items():
        assert (profile.machine_type, profile.llm) == (name, llm)
        assert set(range(1, profile.max_layers + 1)) <= set(profile.capacities)


def test_a_shipped_capacity_and_its_hints():
    profile = load_machine_type("A100").profiles["llama2-70b"]
    assert profile.max_layers == 12
    assert profile.capacities[12] == Capacity(3377472, 3, 6144, 300, 300_000)
    assert profile.capacities[20] == Capacity(491900, 3, 6144, 300, 300_000)
    assert profile.hints == PlannerHints(8, 12, 80.0)


# -- against the published figures


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.reference
def test_every_published_capacity_is_shipped(reference):
    rows = rows_of(reference / "capacity.csv")
    machines = {name: load_machine_type(name) for name in shipped_machine_types()}
    for row in rows:
        profile = machines[row["machine"]].profiles[row["model"]]
        assert profile.max_layers == int(row["max_layers"])
        assert profile.capacities[int(row["layers"])] == Capacity(
            kv_token_layers=int(row["kv_token_layers"]),
            max_prompts=int(row["prompt_max_requests"]),
            max_prompt_tokens=int(row["prompt_max_tokens"]),
            max_decode_tokens=int(row["decode_max_tokens"]),
            max_decode_context=int(row["decode_max_context"]),
        )
    shipped = sum(
        profile.max_layers for machine in machines.values() for profile in machine.profiles.values()
    )
    assert shipped == len(rows)


@pytest.mark.reference
@pytest.mark.parametrize("name", shipped_machine_types())
@pytest.mark.parametrize("llm", shipped_llms())
def test_every_published_layer_time_is_shipped(reference, llm, name):
    profile = load_machine_type(name).profiles[llm]
    rows = rows_of(reference / "profiles" / llm / f"{name}.csv")
    for phase, curve in (("prompt", profile.prefill), ("decode", profile.decode)):
        points = [row for row in rows if row["phase"] == phase]
        assert curve.tokens == tuple(int(row["batch_tokens"]) for row in points)
        assert curve.seconds == tuple(float(row["layer_time_ms"]) * 0.001 for row in points)


@pytest.mark.reference
@pytest.mark.parametrize("name", shipped_machine_types())
def test_published_machines_are_shipped(reference, name):
    published = ConfigParser()
    published.read(reference / "clusters" / "machine_profiles.ini")
    machine = load_machine_type(name)
    assert published[name]["vram_size"] == f"{machine.memory_bytes / 1e9:g} * GB"
    # "gbps" there is 1e9 bytes per second
    assert published[name]["inbound_nic_speed"] == f"{machine.nic_bytes_per_s / 1e9:g} * gbps"
    assert published[name]["outbound_nic_speed"] == f"{machine.nic_bytes_per_s / 1e9:g} * gbps"
    assert published[name]["disk_speed"] == f"{machine.disk_bytes_per_s / 1e9:g} * gbps"


@pytest.mark.reference
def test_every_published_placement_has_its_capacity_here(reference):
    checked = 0
    for solution_file in sorted((reference / "placements").glob("*/*/solution.ini")):
        llm = re.search(r"llama.*", solution_file.parts[-3]).group()
        solution, cluster = ConfigParser(), ConfigParser()
        solution.read(solution_file)
        cluster.read(solution_file.with_name("simulator_cluster.ini"))
        for node, layers in solution["Solution"].items():
            if node not in cluster:
                continue
            profile = load_machine_type(cluster[node]["machine_type"].strip('"')).profiles[llm]
            capacity = profile.capacity(len(yaml.safe_load(layers)))
            assert capacity.kv_token_layers == int(cluster[node]["kv_cache_capacity"])
            checked += 1
    assert checked > 250


@pytest.mark.reference
def test_the_shipped_files_are_what_the_script_writes(reference, tmp_path):
    script = Path(__file__).parents[1] / "tools" / "restate_profiles.py"
    subprocess.run([sys.executable, script, reference, tmp_path], check=True)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.yaml"))
    assert written == sorted(path.relative_to(DATA) for path in DATA.rglob("*.yaml"))
    for path in written:
        assert (tmp_path / path).read_text() == (DATA / path).read_text(), path


# -- files of users


def test_a_user_s_llm(write):
    assert load_llm(*write(LLM_FILE)) == TINY
    changes = {"hidden_size": ..., "activation_size": "3 kB", "token_size": "4 B"}
    llm = load_llm(*write(LLM_FILE, **changes))
    assert (llm.activation_bytes_per_token, llm.token_bytes) == (3000.0, 4.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": ...}, "give either hidden_size or activation_size"),
        ({"activation_size": "1 kB"}, "give either hidden_size or activation_size"),
        ({"num_layers": 0}, "num_layers: should be greater than or equal to 1, not 0"),
        ({"num_layers": 10**9}, "num_layers: should be less than"),
        ({"num_layers": True}, "num_layers: should be a valid integer, not True"),
        ({"layer_size": "0 GB"}, "layer_size: must be above zero"),
        ({"layer_size": 1.5e9}, "layer_size: 1500000000.0 has no unit"),
        ({"kind": "machine"}, "kind: should be 'llm', not 'machine'"),
        ({"schema": 2}, "schema: should be 1, not 2"),
        ({"name": "../x"}, r"name: '../x' does not match"),
        ({"num_layer": 3}, "num_layer: unknown key; did you mean 'num_layers'?"),
    ],
)
def test_mistakes_in_an_llm_file(write, changes, message):
    with pytest.raises(ScenarioError, match=re.escape(message)):
        load_llm(*write(LLM_FILE, **changes))


def test_kv_capacity_from_memory(write):
    profile = load_machine_type(*write(MACHINE_FILE), llms=[TINY]).profiles["tiny"]
    # 9 GB usable, 1 GB a layer, 16,000 B a block and layer
    assert list(profile.capacities) == list(range(1, 9))
    assert profile.capacities[1] == Capacity(8_000_000, 1, 2048, 256, 256_000)
    assert profile.capacities[7].kv_token_layers == 2_000_000 // 112 * 112
    assert profile.max_layers == 5
    assert profile.hints == PlannerHints(3, 5, 990 / (7.5 + 12))


def test_kv_capacity_from_memory_holds_no_more_layers_than_the_llm_has(write):
    profile = load_machine_type(*write(MACHINE_FILE, memory="1 TB"), llms=[TINY]).profiles["tiny"]
    assert list(profile.capacities) == list(range(1, 11))
    assert profile.max_layers == 10


def test_kv_capacity_from_memory_needs_the_llm(write):
    assert load_machine_type(*write(MACHINE_FILE)).profiles == {}


def test_kv_capacity_from_memory_of_a_shipped_llm(write):
    serving = MACHINE_FILE["llms"]["tiny"]
    file = write(MACHINE_FILE, memory="80 GB", llms={"llama2-70b": serving})
    profile = load_machine_type(*file).profiles["llama2-70b"]
    assert profile.max_layers == 26
    assert profile.capacities[20].kv_token_layers == 10_107_200


TABLE = {"layers": [1, 2, 3, 5], "token_layers": [500, 400, 300, 100]}


def test_kv_capacity_listed_with_columns_of_limits(write):
    file = write(
        MACHINE_FILE,
        llms__tiny__kv=TABLE,
        llms__tiny__max_layers=3,
        llms__tiny__batch_limits={"max_prompts": 2, "max_decode_tokens": [40, 30, 20, 10]},
        llms__tiny__planner={"typical_layers": 1, "start_performance": 7},
    )
    profile = load_machine_type(*file).profiles["tiny"]
    assert profile.capacities == {
        1: Capacity(500, 2, 2048, 40, 40_000),
        2: Capacity(400, 2, 2048, 30, 30_000),
        3: Capacity(300, 2, 2048, 20, 20_000),
        5: Capacity(100, 2, 2048, 10, 10_000),
    }
    assert profile.hints == PlannerHints(1, 3, 7.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llms": {}}, "llms: should have at least 1 entry, not none"),
        ({"memory": 24}, "memory: 24 has no unit; write a number and a unit, such as '24 GB'"),
        ({"memory": "0 GB"}, "memory: must be above zero"),
        ({"nic": "10 Gb/s"}, "nic: '10 Gb/s' is not a bandwidth quantity"),
        (
            {"memory": "1 GB"},
            "llms.tiny.kv.from_memory: 1 GB x 0.9 are too small for a layer of tiny",
        ),
        (
            {"llms__tiny__prefil": {}},
            "llms.tiny.prefil: unknown key; did you mean 'prefill'?",
        ),
        (
            {"llms__tiny__prefill__tokens": [0, 5, 5], "llms__tiny__prefill__ms": [0, 1, 2]},
            "llms.tiny.prefill.tokens[2]: tokens must rise, but 5 follows 5",
        ),
        (
            {"llms__tiny__prefill__tokens": [1, 2]},
            "llms.tiny.prefill.tokens[0]: must be 0, not 1",
        ),
        (
            {"llms__tiny__decode__ms": [0, -1]},
            "llms.tiny.decode.ms[1]: must be a finite time of at least zero",
        ),
        (
            {"llms__tiny__decode__ms": [0, float("nan")]},
            "llms.tiny.decode.ms[1]: should be a finite number, not nan",
        ),
        ({"llms__tiny__decode__ms": [0]}, "llms.tiny.decode: 2 numbers of tokens but 1 times"),
        (
            {"llms__tiny__decode__ms": ["0 s", "1 s"]},
            "llms.tiny.decode.ms[0]: should be a valid number, not '0 s'",
        ),
        ({"llms__tiny__kv": {}}, "llms.tiny.kv: give either from_memory or layers with"),
        (
            {"llms__tiny__kv": {"from_memory": 0.9, "layers": [1]}},
            "llms.tiny.kv: give either from_memory or layers with token_layers",
        ),
        (
            {"llms__tiny__kv": {"from_memory": 90}},
            "llms.tiny.kv.from_memory: should be less than or equal to 1, not 90",
        ),
        (
            {"llms__tiny__kv": {"layers": [1, 2], "token_layers": [5]}},
            "llms.tiny.kv.token_layers: has 1 entries, but layers has 2",
        ),
        (
            {"llms__tiny__kv": {"layers": [2], "token_layers": [5]}},
            "llms.tiny.kv.layers[0]: must be 1, not 2",
        ),
        (
            {"llms__tiny__kv": {"layers": [1, 1], "token_layers": [5, 5]}},
            "llms.tiny.kv.layers[1]: layers must rise, but 1 follows 1",
        ),
        (
            {"llms__tiny__kv": TABLE},
            "llms.tiny.kv.layers: must have every count up to max_layers (5), but 4 is missing",
        ),
        (
            {"llms__tiny__kv": TABLE, "llms__tiny__max_layers": 6},
            "llms.tiny.kv.layers: must have every count up to max_layers (6), but 4 is missing",
        ),
        (
            {"llms__tiny__max_layers": 9},
            "llms.tiny.max_layers: its memory holds 8 layers of tiny at most, not 9",
        ),
        (
            {"llms__tiny__planner": {"typical_layers": 9}},
            "llms.tiny.planner.typical_layers: must not exceed max_layers (5), but is 9",
        ),
        (
            {
                "llms__tiny__kv": TABLE,
                "llms__tiny__max_layers": 3,
                "llms__tiny__planner": {"typical_layers": 4},
            },
            "llms.tiny.planner.typical_layers: must not exceed max_layers (3), but is 4",
        ),
        (
            {"llms__tiny__batch_limits": {"max_prompts": [1]}},
            "llms.tiny.batch_limits.max_prompts: must be a number, not a list",
        ),
        (
            {
                "llms__tiny__kv": TABLE,
                "llms__tiny__max_layers": 3,
                "llms__tiny__batch_limits": {"max_prompts": [1]},
            },
            "llms.tiny.batch_limits.max_prompts: has 1 entries, but kv.layers has 4",
        ),
    ],
)
def test_mistakes_in_a_machine_file(write, changes, message):
    file, folder = write(MACHINE_FILE, **changes)
    with pytest.raises(ScenarioError, match=re.escape(message)) as caught:
        load_machine_type(file, folder, [TINY])
    assert str(caught.value).startswith(str(folder / file))


# -- names and paths


def test_unknown_names():
    with pytest.raises(ScenarioError, match=r"no LLM 'llama-70b' ships .* 'llama2-70b'"):
        load_llm("llama-70b")
    with pytest.raises(ScenarioError, match=r"no machine type 'H100' ships .* did you mean"):
        load_machine_type("H100")
    with pytest.raises(ScenarioError, match="known are A100, L4"):
        load_machine_type("../../etc/passwd")


def test_paths_are_relative_to_the_base(tmp_path):
    (tmp_path / "gpus").mkdir()
    shutil.copy(DATA / "machines" / "L4.yaml", tmp_path / "gpus" / "l4.yml")
    assert load_machine_type("gpus/l4.yml", tmp_path) == load_machine_type("L4")
    assert load_machine_type(tmp_path / "gpus/l4.yml", "/") == load_machine_type("L4")
    with pytest.raises(ScenarioError, match=r"gpus/l5\.yaml: there is no such file"):
        load_machine_type("gpus/l5.yaml", tmp_path)


def test_a_file_of_the_wrong_kind(tmp_path):
    with pytest.raises(ScenarioError, match="kind: should be 'llm', not 'machine'"):
        load_llm(DATA / "machines" / "L4.yaml")

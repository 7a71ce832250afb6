"""LLMs with layers of different sizes: files, weights of a stage, KV capacity."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import yaml
from builders import HOST, fitting_pairs, make_cluster, make_machine_type

from helixsim.errors import PlacementError, ScenarioError
from helixsim.llms.architecture import (
    NUMBER_FORMATS,
    Architecture,
    Attention,
    LayerKind,
    Matrix,
)
from helixsim.llms.read import read_architecture
from helixsim.placement.placement import Placement, placement_mistakes
from helixsim.placement.topology import build_topology
from helixsim.profiles.kv_memory import KvMemory
from helixsim.profiles.library import load_llm, load_machine_type
from helixsim.profiles.llm_file import llm_document, llm_of, llm_text
from helixsim.profiles.machine import LLM

# Layers of 10, 30, 30 and 10 bytes; a token takes 1, 2, 2 and 4 bytes in their KV caches.
UNEVEN = LLM(
    name="uneven",
    num_layers=4,
    activation_bytes_per_token=8.0,
    token_bytes=2.0,
    layer_bytes=20.0,
    kv_bytes_per_token_layer=2.25,
    embedding_bytes=100.0,
    head_bytes=101.0,
    shared_bytes=100.0,
    bytes_of_layer=(10.0, 30.0, 30.0, 10.0),
    kv_bytes_of_layer=(1.0, 2.0, 2.0, 4.0),
)
UNEVEN_FILE = {
    "schema": 1,
    "kind": "llm",
    "name": "uneven",
    "num_layers": 4,
    "activation_size": "8 B",
    "kinds": [
        {"name": "outer", "layer_size": "10 B", "kv_size": "1 B"},
        {"layer_size": "30 B", "kv_size": "2 B"},
        {"layer_size": "10 B", "kv_size": "4 B"},
    ],
    "kind_of_layer": [0, 1, 1, 2],
    "embedding_size": "100 B",
    "head_size": "101 B",
    "tied": True,
}
MACHINE_FILE = {
    "schema": 1,
    "kind": "machine",
    "name": "box",
    "memory": "1000 B",
    "nic": "10 Gbit/s",
    "disk": "2 GB/s",
    "llms": {
        "uneven": {
            "prefill": {"tokens": [0, 1000], "ms": [0, 10]},
            "decode": {"tokens": [0, 100], "ms": [0, 5.0]},
            "kv": {"from_memory": 0.5, "copies": 2},
            "max_layers": 2,
        }
    },
}


# -- sizes of a stage


def test_weights_and_kv_of_a_stage():
    assert [UNEVEN.weights_bytes(*stage) for stage in ((0, 1), (1, 3), (2, 4), (0, 4))] == [
        110, 60, 141, 80 + 101
    ]  # fmt: skip
    assert [UNEVEN.kv_bytes_per_token(*stage) for stage in ((0, 1), (1, 3), (0, 4))] == [1, 4, 9]
    untied = replace(UNEVEN, shared_bytes=0.0)
    assert untied.weights_bytes(0, 4) == 80 + 201
    equal = replace(UNEVEN, bytes_of_layer=(), kv_bytes_of_layer=())
    assert (equal.weights_bytes(0, 2), equal.kv_bytes_per_token(0, 2)) == (140, 4.5)


def test_kv_capacity_of_a_range_and_of_any():
    memory = KvMemory(UNEVEN, 500.0)
    # Blocks of 16 tokens. Layer 0: (500 - 110) // 16 = 24 blocks; layer 3: (500 - 111) // 64 = 6.
    assert memory.token_layers(0, 1) == 24 * 16
    assert memory.token_layers(3, 4) == 6 * 16
    # Layers 1 and 2: (500 - 60) // 64 = 6 blocks, of 16 tokens on two layers.
    assert memory.token_layers(1, 3) == 6 * 16 * 2
    # Layers 2 and 3: (500 - 141) // 96 = 3.
    assert memory.token_layers(2, 4) == 3 * 16 * 2
    # Of three: layers 1 to 3, (500 - 171) // 128 = 2; of four: (500 - 181) // 144 = 2.
    assert memory.by_count() == {1: 6 * 16, 2: 3 * 32, 3: 2 * 48, 4: 2 * 64}
    # Two copies: layer 3 has 389 // 128 = 3 blocks.
    assert KvMemory(UNEVEN, 500.0, copies=2).token_layers(3, 4) == 3 * 16
    # What some range of as many layers leaves no room for, no planner may assign.
    assert KvMemory(UNEVEN, 200.0).by_count() == {1: 16}
    assert KvMemory(UNEVEN, 200.0).token_layers(1, 3) == 2 * 32


# -- files


def write(folder, name, data):
    (folder / name).write_text(yaml.safe_dump(data))
    return folder / name


def test_an_llm_file_with_kinds(tmp_path):
    assert load_llm(write(tmp_path, "llm.yaml", UNEVEN_FILE)) == UNEVEN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": []}, "layer_size: this key is missing (or kinds instead)"),
        ({"layer_size": "1 B"}, "layer_size: give either kinds or layer_size with kv_size"),
        ({"kv_size": "1 B"}, "kv_size: give either kinds or layer_size with kv_size"),
        ({"kind_of_layer": [0]}, "kind_of_layer: has 1 entries, but num_layers is 4"),
        ({"kind_of_layer": [0, 1, 3, 0]}, "kind_of_layer[2]: must be below 3, the number of kin"),
        ({"kinds": [{"layer_size": "1 B", "kv_size": "0 B"}]}, "kinds[0].kv_size: must be above"),
        ({"once_size": "1 B"}, "once_size: give either once_size or embedding_size and head_size"),
    ],
)
def test_mistakes_in_an_llm_file(tmp_path, changes, message):
    with pytest.raises(ScenarioError) as caught:
        load_llm(write(tmp_path, "llm.yaml", UNEVEN_FILE | changes))
    assert message in str(caught.value)


def test_a_node_has_the_capacity_of_its_own_layers(tmp_path):
    machine = load_machine_type(write(tmp_path, "box.yaml", MACHINE_FILE), llms=[UNEVEN])
    profile = machine.profiles["uneven"]
    # Planners: layers 2 and 3 leave (500 - 141) // 192 = 1 block.
    assert profile.capacities[2].kv_token_layers == 32
    layers = {"a": (0, 1), "b": (1, 3), "c": (3, 4)}
    cluster = make_cluster(
        dict.fromkeys(layers, "box"),
        dict.fromkeys(fitting_pairs(layers, 4), (1000.0, 0.5)),
        nics={HOST: 7.0},
    )
    topology = build_topology(UNEVEN, cluster, Placement(layers), {"box": machine})
    # 390 // 32, 440 // 128 and 389 // 128 blocks.
    assert [node.capacity.kv_token_layers for node in topology.nodes] == [12 * 16, 3 * 32, 3 * 16]
    assert topology.nodes[0].capacity.max_prompts == profile.capacities[2].max_prompts
    assert pickle.loads(pickle.dumps(topology)) == topology  # noqa: S301


def test_layers_that_do_not_fit(tmp_path):
    data = copy.deepcopy(MACHINE_FILE) | {"memory": "480 B"}
    del data["llms"]["uneven"]["max_layers"]
    machine = load_machine_type(write(tmp_path, "box.yaml", data), llms=[UNEVEN])
    profile = machine.profiles["uneven"]
    with pytest.raises(PlacementError, match="the memory of 'box' is too small for the layers 2 "):
        profile.range_capacity(2, 4)
    cluster = make_cluster({"a": "box"}, {}, nics={HOST: 7.0})
    placement = Placement({"a": (2, 4)}, allow_overcommitted_layers=True)
    ((where, message),) = placement_mistakes(placement, cluster, UNEVEN, {"box": profile})
    assert where == "layers.a"
    assert "to 3 of uneven and a KV cache; to allow this, set kv_token_layers" in message


def test_capacities_that_are_listed_depend_on_the_number_of_layers_only():
    profile = make_machine_type("kind", 4).profiles["toy"]
    assert profile.range_capacity(1, 3) == profile.capacity(2)


# -- from an architecture


def kind_of(width, window=None):
    attention = Attention(num_heads=2, num_kv_heads=1, key_dim=4, value_dim=4, window=window)
    return LayerKind(name=f"width {width}", attention=attention, matrices=(Matrix("up", 8, width),))


def architecture_of(*kinds, kind_of_layer, tied=False):
    return Architecture(
        name="made",
        hidden_size=8,
        vocab_size=10,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        tied_embedding=tied,
        weights=NUMBER_FORMATS["fp8"],
        kv=NUMBER_FORMATS["bf16"],
        activations=NUMBER_FORMATS["bf16"],
        other_values=8,
    )


def test_an_llm_from_an_architecture():
    made = architecture_of(kind_of(4), kind_of(6), kind_of_layer=(0, 1, 1), tied=True)
    assert llm_of(made) == LLM(
        name="made",
        num_layers=3,
        activation_bytes_per_token=16.0,
        token_bytes=2.0,
        layer_bytes=(32 + 48 + 48) / 3,
        kv_bytes_per_token_layer=16.0,
        embedding_bytes=160.0,
        head_bytes=176.0,
        shared_bytes=160.0,
        bytes_of_layer=(32.0, 48.0, 48.0),
        kv_bytes_of_layer=(16.0, 16.0, 16.0),
    )
    assert llm_of(made).weights_bytes(0, 3) == 128 + 176
    assert llm_of(architecture_of(kind_of(4), kind_of_layer=(0,))).once_bytes == 160 + 176


def test_layers_with_a_window_keep_a_share_of_the_context():
    made = architecture_of(kind_of(4, window=128), kind_of(4), kind_of_layer=(0, 1))
    assert llm_of(made).kv_bytes_of_layer == (16 * 128 / 4096, 16.0)
    assert llm_of(made, kv_context_tokens=512).kv_bytes_of_layer == (4.0, 16.0)
    # At a short context, the layers are equal.
    short = llm_of(made, "short", kv_context_tokens=100)
    assert short.has_equal_layers
    assert (short.name, short.kv_bytes_per_token_layer) == ("short", 16.0)


@pytest.mark.parametrize("name", ["llama3.1-8b", "deepseek-v3", "gpt-oss-120b", "gemma3-12b"])
def test_a_file_of_an_architecture_reads_back(tmp_path, name):
    architecture = read_architecture(name)
    (tmp_path / "llm.yaml").write_text(llm_text(architecture))
    llm = load_llm(tmp_path / "llm.yaml")
    assert llm == llm_of(architecture)
    assert yaml.safe_load(llm_text(architecture)) == llm_document(architecture)
    sizes = [architecture.layer_bytes(kind) for kind in architecture.layers]
    tables = architecture.table_bytes * (1 if architecture.tied_embedding else 2)
    whole = sum(sizes) + tables + architecture.other_values * 2
    assert llm.weights_bytes(0, llm.num_layers) == pytest.approx(whole, rel=1e-12)


def test_kv_capacity_of_an_rtx_4090():
    # vLLM 0.19 had room for 41,408 tokens of Llama-3.1-8B in 0.9 of 25.25 GB. It keeps 1.25 GB
    # for activations.
    llm = llm_of(read_architecture("llama3.1-8b"))
    capacity = KvMemory(llm, 0.9 * 25.25e9 - 1.25e9).token_layers(0, 32) / 32
    assert capacity == pytest.approx(41_408, rel=0.05)

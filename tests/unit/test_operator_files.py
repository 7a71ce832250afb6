"""Machine files with operator tables, and LLM files with weights outside the layers."""

from __future__ import annotations

import copy

import pytest
import yaml

from helixsim.errors import ScenarioError
from helixsim.profiles.library import load_llm, load_machine_type
from helixsim.profiles.machine import LLM
from helixsim.profiles.operators import AllReduce, ExpertTable, OperatorCurve

TINY = LLM("tiny", 10, 1000.0, 2.0, 1e9, 1000.0)
CURVE = {"tokens": [1, 100], "ms": [1, 2.5]}
ATTENTION = {
    "chunk": [0, 100],
    "chunk_context": [0],
    "decodes": [0, 10],
    "decode_context": [1000],
    "ms": [0, 2, 4, 5],
}
MACHINE = {
    "schema": 1,
    "kind": "machine",
    "name": "MyGPU",
    "memory": "10 GB",
    "nic": "10 Gbit/s",
    "disk": "2 GB/s",
    "llms": {
        "tiny": {
            "operators": {
                "dense": CURVE,
                "embedding": CURVE,
                "final_norm": CURVE,
                "head": CURVE,
                "attention": ATTENTION,
                "decode_skew": 0.1,
                "tensor_parallel": 2,
                "all_reduce": {"latency": "60 us", "bandwidth": "20 GB/s"},
                "experts": {
                    "num_experts": 8,
                    "experts_per_token": 2,
                    "tokens": [1],
                    "experts": [2, 8],
                    "ms": [1, 4],
                },
            },
            "kv": {"from_memory": 0.9},
        }
    },
}


@pytest.fixture
def load(tmp_path):
    def load(*, llms=(TINY,), **changes):
        data = copy.deepcopy(MACHINE)
        for path, value in changes.items():
            *parents, last = path.split("__")
            target = data["llms"]["tiny"]
            for parent in parents:
                target = target[parent]
            if value is ...:
                del target[last]
            else:
                target[last] = value
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
        return load_machine_type("mine.yaml", tmp_path, llms)

    return load


def test_a_file_with_operators(load):
    profile = load().profiles["tiny"]
    tables = profile.operators
    assert tables.kinds[0].dense == OperatorCurve((1, 100), (0.001, 0.0025))
    assert tables.kinds[0].attention.seconds == pytest.approx((0, 0.002, 0.004, 0.005))
    assert (tables.decode_skew, tables.tensor_parallel) == (0.1, 2)
    assert tables.all_reduce == AllReduce(pytest.approx(60e-6), 20e9)
    assert tables.kinds[0].experts == ExpertTable(8, 2, (1,), (2, 8), (0.001, 0.004))
    # One decode: dense 1 ms, experts 1 ms, attention 0.2 ms, two all-reduces of 60 us and 1,000
    # bytes at 20 GB/s, a tenth of embedding, norm and head, 1 ms each.
    assert profile.decode(1) == pytest.approx(2.2e-3 + 2 * (60e-6 + 1000 / 20e9) + 0.3e-3)


def test_operators_need_the_llm(load):
    listed = {"layers": [1], "token_layers": [1000]}
    assert load(kv=listed, llms=()).profiles == {}
    assert load(kv=listed).profiles["tiny"].operators is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operators": ...}, "llms.tiny.prefill: this key is missing (or operators instead)"),
        (
            {"decode": {"tokens": [0, 1], "ms": [0, 1]}},
            "llms.tiny.decode: give either operators or prefill with decode",
        ),
        ({"operators__dense__tokens": [100, 1]}, "operators.dense.tokens[1]: tokens must rise"),
        ({"operators__dense__ms": [0, 1]}, "operators.dense.ms[0]: must be a finite time above"),
        (
            {"operators__attention__ms": [0, 1]},
            "operators.attention.ms: has 2 times, but should have 2 x 1 x 2 x 1 = 4",
        ),
        ({"operators__attention__chunk": [1, 2]}, "attention.chunk[0]: must be 0, not 1"),
        ({"operators__all_reduce": ...}, "operators.all_reduce: give it, since tensor_parallel"),
        (
            {"operators__all_reduce__bandwidth": "0 B/s"},
            "operators.all_reduce.bandwidth: must be above zero",
        ),
        (
            {"operators__experts__experts_per_token": 9},
            "operators.experts.experts_per_token: must be 1 to num_experts (8), not 9",
        ),
        ({"operators__dense": ...}, "operators.dense: this key is missing (or kinds instead)"),
        (
            {"operators__kinds": [{"dense": CURVE, "attention": ATTENTION}]},
            "operators.dense: give either kinds or dense with attention",
        ),
        (
            {"operators__kind_of_layer": [0]},
            "llms.tiny.operators.kind_of_layer: has 1 entries, but tiny has 10 layers",
        ),
        ({"operators__kind_of_layer": [1]}, "operators.kind_of_layer[0]: must be 0 to 0"),
        ({"operators__decode_skew": 2}, "operators.decode_skew: should be less than or equal"),
    ],
)
def test_errors(load, changes, message):
    with pytest.raises(ScenarioError) as error:
        load(**changes)
    assert message in str(error.value)


def test_weights_outside_the_layers(tmp_path, load):
    data = {"schema": 1, "kind": "llm", "name": "tiny", "num_layers": 10, "hidden_size": 500}
    data |= {"layer_size": "0.5 GB", "kv_size": "1000 B", "once_size": "2 GB"}
    (tmp_path / "llm.yaml").write_text(yaml.safe_dump(data))
    llm = load_llm("llm.yaml", tmp_path)
    assert llm == LLM("tiny", 10, 1000.0, 2.0, 0.5e9, 1000.0, 1e9, 1e9)
    capacities = load(llms=[llm]).profiles["tiny"].capacities
    # 9 GB less 10 layers and 2 GB; less 4 layers and 1 GB.
    assert capacities[10].kv_token_layers == pytest.approx(2e9 / 1000, rel=1e-3)
    assert capacities[4].kv_token_layers == pytest.approx(6e9 / 1000, rel=1e-3)


def test_a_file_with_layers_of_two_kinds(load):
    kinds = [{"dense": CURVE, "attention": ATTENTION}] * 2
    tables = (
        load(
            operators__dense=...,
            operators__attention=...,
            operators__experts=...,
            operators__kinds=kinds,
            operators__kind_of_layer=[0] * 3 + [1] * 7,
        )
        .profiles["tiny"]
        .operators
    )
    assert len(tables.kinds) == 2
    assert [share for share, _ in tables.stage(2, 4).kinds] == [0.5, 0.5]
    assert [share for share, _ in tables.stage(3, 10).kinds] == [1.0]

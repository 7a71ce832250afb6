"""Machine files and machine types from operator tables."""

from __future__ import annotations

from dataclasses import replace

import llm_architectures as llms
import pytest
from operator_files import write_operator_files

from helixsim.errors import InputError
from helixsim.hardware.gpu import Gpu, GpuMachine
from helixsim.profiles.library import load_machine_type
from helixsim.profiles.machine import LLM
from helixsim.profiles.machine_documents import (
    MachineFacts,
    facts_of,
    kv_copies,
    machine_document,
    machine_type_of,
)
from helixsim.profiles.operator_documents import operators_document, tables_of_document
from helixsim.profiles.operators import LayerTables
from helixsim.profiles.sources.all_reduce import with_all_reduce
from helixsim.profiles.sources.operator_folder import TablesSource
from helixsim.profiles.sources.trust import REPLAYS, error_statement
from helixsim.profiles.whole_steps import WholeStep, kernels_s
from helixsim.yaml_files import yaml_text

TINY = LLM(
    name="tiny",
    num_layers=2,
    activation_bytes_per_token=1000.0,
    token_bytes=2.0,
    layer_bytes=1e9,
    kv_bytes_per_token_layer=1e4,
)
FACTS = MachineFacts(name="m", memory="10 GB", memory_share=0.5)


def machine(num_gpus=1, memory_bytes=10e9):
    sheet = Gpu(
        name="G", title="", generation="", memory_bytes=memory_bytes, memory_bytes_per_s=1e12
    )
    return GpuMachine(sheet, num_gpus)


@pytest.fixture
def sourced(tmp_path):
    source = TablesSource(write_operator_files(tmp_path / "tables"))
    return lambda num_gpus=1: source(llms.llama_8b(), machine(num_gpus))


def test_a_file_and_a_value_are_the_same(sourced, tmp_path):
    for num_gpus in (1, 2):
        found = sourced(num_gpus)
        file = tmp_path / "m.yaml"
        file.write_text(yaml_text(machine_document(TINY, FACTS, found)))
        assert load_machine_type(file, llms=[TINY]) == machine_type_of(TINY, FACTS, found)


def test_what_a_file_says(sourced):
    profile = machine_type_of(TINY, FACTS, sourced()).profiles["tiny"]
    assert (profile.figures, profile.source) == ("tables", sourced().source)
    # Half of 10 GB, less two layers of 1 GB, is room for 3e9 / 2e4 tokens in two layers.
    assert profile.max_layers == 2
    assert profile.capacities[2].kv_token_layers == 150_000 * 2
    assert profile.capacities[2].max_prompt_tokens == 100
    assert profile.capacities[2].max_decode_tokens == 128
    copied = machine_type_of(TINY, replace(FACTS, kv_copies=2.0), sourced()).profiles["tiny"]
    assert copied.capacities[2].kv_token_layers == 74_992 * 2  # whole blocks of 16


def test_several_kinds_of_layers_come_back(sourced):
    tables = sourced().tables
    kind = tables.kinds[0]
    other = LayerTables(replace(kind.dense, seconds=(1e-3, 2e-3)), kind.attention)
    both = replace(tables, kinds=(kind, other), kind_of_layer=(0, 1, 1))
    document = operators_document(both)
    back = tables_of_document(document)
    assert operators_document(back) == document
    assert back.kind_of_layer == (0, 1, 1)
    assert back.kinds[1].dense(1) == pytest.approx(1e-3)


def test_facts_of_a_machine():
    # Eight KV heads on 16 GPUs: two hold the same; a latent is on all.
    facts = facts_of(machine(16, 80e9), llms.llama_8b(), nic="25 Gbit/s")
    assert (facts.name, facts.memory, facts.nic) == ("Gx16", "1280 GB", "25 Gbit/s")
    assert facts.kv_copies == 2
    assert kv_copies(llms.llama_8b(), 8) == 1
    assert kv_copies(llms.deepseek_v3(), 8) == 8


def test_too_little_memory(sourced):
    with pytest.raises(InputError) as error:
        machine_type_of(TINY, replace(FACTS, memory="1 GB"), sourced())
    assert "too small for a layer of tiny" in str(error.value)


def test_whole_steps(sourced):
    tables = sourced().tables

    def us(**step):
        return 1e6 * kernels_s(tables, 2, 1000.0, WholeStep(**step))

    # Layer 200 + attention 70, twice; embedding 3, norm 2, head 50.
    assert us(chunk=100, decodes=0) == pytest.approx(2 * (200 + 70 * 100 / 512) + 55)
    assert us(decodes=1, decode_context=1024) == pytest.approx(2 * (100 + 5) + 55)
    assert us(decodes=100, decode_context=1024) == pytest.approx(2 * (200 + 5 + 75 * 99 / 127) + 65)


# -- all-reduces of the user's machine


def test_other_all_reduces(sourced):
    found = sourced(2)
    assert with_all_reduce(found, None, None) is found
    changed = with_all_reduce(found, "10 us", None)
    assert changed.source == f"{found.source}; all-reduces of the user: 10 us"
    tables = changed.tables
    assert tables.all_reduce.latency_s == pytest.approx(10e-6)
    assert tables.all_reduce.bytes_per_s == 20e9
    assert with_all_reduce(found, None, "5 GB/s").tables.all_reduce.bytes_per_s == 5e9


@pytest.mark.parametrize(
    ("num_gpus", "latency", "bandwidth", "message"),
    [
        (1, "10 us", None, "--all-reduce-latency: a machine with one GPU has no all-reduces"),
        (2, None, "0 B/s", "--all-reduce-bandwidth: must be above zero"),
        (2, "10 m", None, "'10 m' is not a time"),
    ],
)
def test_errors_of_all_reduces(sourced, num_gpus, latency, bandwidth, message):
    with pytest.raises(InputError) as error:
        with_all_reduce(sourced(num_gpus), latency, bandwidth)
    assert message in str(error.value)


# -- how far off


def test_statements():
    assert error_statement("tables") == (
        "operator tables of the pair itself: on recorded runs of vLLM, mean latencies within 3 %"
    )
    assert error_statement("measured").endswith(
        "mean latencies within 4 %, and 32 % where all-reduces of the machine took longer than the "
        "measured ones"
    )
    assert {replay.kind for replay in REPLAYS} == {"tables", "measured", "roofline"}

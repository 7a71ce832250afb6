"""The LLM of a scenario, from a config.json or a shipped configuration."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import yaml
from scenario_data import SCENARIO

from helixsim import load_scenario
from helixsim.errors import InputError, ScenarioError
from helixsim.llms.catalogue import shipped_config
from helixsim.llms.read import read_architecture
from helixsim.profiles.llm_file import llm_of
from helixsim.scenario.scenario_text import scenario_rows

CONFIG = shipped_config("llama2-70b").config


@pytest.fixture
def config_folder(tmp_path):
    """A folder with the config.json of LLaMA-2 70B."""
    folder = tmp_path / "llama2-70b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_llm_files_have_no_architecture(load):
    assert load().architecture is None


def test_a_shipped_configuration(load):
    scenario = load({"llm": {"config": "llama2-70b"}})
    assert scenario.architecture == read_architecture("llama2-70b")
    assert scenario.llm == llm_of(scenario.architecture)
    assert scenario.llm.layer_bytes == 2 * (
        2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 16384
    )
    assert pickle.loads(pickle.dumps(scenario)) == scenario  # noqa: S301
    with pytest.raises(ScenarioError, match="'A100' has no profile for qwen3-32b, only for llama1"):
        load({"llm": "qwen3-32b"})


def test_a_scenario_in_words_says_what_the_llm_is(load):
    rows = dict(scenario_rows(load({"llm": {"config": "llama2-70b", "weights": "fp8"}})))
    assert rows["LLM"] == (
        "llama2-70b, 80 layers, 68.98 x 10^9 parameters; weights fp8, KV cache fp16"
    )
    assert dict(scenario_rows(load()))["LLM"] == "llama2-70b, 80 layers"


def test_number_formats_name_and_context(load):
    llm = {"config": "gpt-oss-20b", "name": "llama2-70b", "kv": "fp8", "kv_context": 256}
    scenario = load({"llm": llm | {"weights": "int8", "activations": "fp16"}, "placement": ...})
    made = scenario.architecture
    assert [form.name for form in (made.weights, made.kv, made.activations)] == [
        "int8", "fp8", "fp16"
    ]  # fmt: skip
    # 8 KV heads of 64 values; half of the context is in the window of 128 tokens.
    assert scenario.llm.kv_bytes_of_layer[:2] == (512.0, 1024.0)
    assert scenario.llm.name == "llama2-70b"


def test_windows_are_reckoned_for_the_context_of_the_workload(load):
    workload = {"requests_per_s": 1, "prompt_tokens": 700, "output_tokens": 200}
    llm = {"config": "gpt-oss-20b", "name": "llama2-70b"}
    changes = {"workload": workload, "placement": ...}
    # A window of 128 tokens of 700 + 200 / 2; 8 KV heads of 64 keys and values in 16 bits.
    kept = load(changes | {"llm": llm}).llm.kv_bytes_of_layer
    assert kept[:2] == (128 / 800 * 2048, 2048)
    given = load(changes | {"llm": llm | {"kv_context": 256}}).llm.kv_bytes_of_layer
    assert given[:2] == (1024, 2048)
    short = load(changes | {"llm": llm, "workload": workload | {"prompt_tokens": 20}})
    # 120 tokens are all in the window: all layers are equal.
    assert short.llm.kv_bytes_per_token_layer == 2048


@pytest.mark.parametrize(
    "llm", ["llama2-70b/config.json", "./llama2-70b", {"config": "./llama2-70b"}]
)
def test_a_config_json_beside_the_scenario(load, config_folder, llm):
    scenario = load({"llm": llm})
    assert scenario.architecture == read_architecture("llama2-70b")


def test_the_digest_covers_the_config(load, config_folder, tmp_path):
    first = load({"llm": {"config": "llama2-70b/config.json", "name": "llama2-70b"}})
    shutil.move(config_folder, tmp_path / "moved")
    moved = load({"llm": {"config": "moved", "name": "llama2-70b"}})
    assert moved.digest == first.digest
    again = load({"llm": {"config": "moved/config.json", "name": "llama2-70b"}})
    assert again.digest == moved.digest
    (tmp_path / "moved" / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 32001}))
    changed = load({"llm": {"config": "moved", "name": "llama2-70b"}})
    assert changed.digest != moved.digest
    with pytest.raises(ScenarioError, match="a file that it names has changed"):
        moved.with_(physics="calibrated")


def test_values_set_beside_the_file(tmp_path, config_folder, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(SCENARIO))
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario(file, ["llm={config: ./llama2-70b}", "llm.weights=fp8"])
    assert scenario.document["llm"] == {
        "config": str(tmp_path / "llama2-70b"),
        "weights": "fp8",
    }
    assert scenario.llm.layer_bytes == 8192**2 * 2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 16384
    named = load_scenario(file, ["llm.weights=fp8"])
    assert named.document["llm"] == {"config": "llama2-70b", "weights": "fp8"}
    assert scenario.with_(**{"llm.kv": "fp8"}).architecture.kv.name == "fp8"


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        ("llama2-71b", "llm: no LLM 'llama2-71b' ships with helixsim; did you mean 'llama"),
        ({"config": "qwen3-33b"}, "llm.config: no LLM 'qwen3-33b' ships with helixsim; did you"),
        ({"config": "x.yaml"}, "llm.config: x.yaml is an LLM file, whose sizes are fixed; write"),
        ({"config": "qwen3-32b", "weights": "fp9"}, "llm.weights: no number format 'fp9'; did you"),
        ({"config": "qwen3-32b", "kv_context": 0}, "llm.kv_context: should be greater than"),
        ({"config": "qwen3-32b", "kvs": 0}, "llm.kvs: unknown key; did you mean 'kv'?"),
        ({"weights": "fp8"}, "llm.config: this key is missing"),
        (7, "llm: "),
    ],
)
def test_mistakes(load, llm, message):
    with pytest.raises(ScenarioError) as caught:
        load({"llm": llm})
    assert message in str(caught.value)
    assert "mine.yaml: " in str(caught.value)


def test_a_mistake_in_the_config_names_its_file(load, config_folder):
    (config_folder / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 0}))
    with pytest.raises(InputError, match=r"llama2-70b/config\.json: hidden_size: must be a whole"):
        load({"llm": "./llama2-70b"})
    (config_folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"llama2-70b/config\.json: cannot be read: No such file"):
        load({"llm": "./llama2-70b"})

"""helixsim llm, helixsim llms: what a config.json says."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from helixsim.cli import app
from helixsim.llms.catalogue import shipped_configs
from helixsim.llms.read import read_architecture
from helixsim.profiles.library import load_llm
from helixsim.profiles.llm_file import llm_of


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_a_table(run):
    result = run("llm", "gpt-oss-20b", "--kv", "fp8", "--context", "1024")
    assert result.exit_code == 0
    # 8 KV heads of 64, keys and values of one byte; an eighth in layers with a window of 128.
    # FLOP: twice 3.028 x 10^9 weights of layers and 0.579 x 10^9 of the head; in 12 layers each,
    # 64 heads of 64 query and 64 output values with 1,024 or 128 tokens: 2 x 64 x 128 x 1,152.
    assert result.output.splitlines() == [
        "LLM         gpt-oss-20b (openai/gpt-oss-20b)",
        "sizes       24 layers, hidden state of 2,880 values, vocabulary of 201,088, up to 131,072 "
        "tokens",
        "parameters  20,914,757,184; published 20,910,000,000 (+0.02 %; model card (arXiv "
        "2508.10925), table 1)",
        "active      3,608,310,144 for each token",
        "formats     weights bf16, KV cache fp8, activations bf16",
        "weights     13.76 GB, with embedding and head of 1.158 GB (each)",
        "KV cache    13,824 B for each token in all layers, at a context of 1,024 tokens",
        "FLOP        7.441 x 10^9 for each token at this context",
        "",
        "layers  kind                    attention                               experts          "
        "parameters     weights   KV per token",
        "12      experts, window of 128  64 heads, 8 KV heads of 64, window 128  4 of 32 (mxfp4)  "
        "0.8232 x 10^9  476.9 MB  128 B",
        "12      experts, all tokens     64 heads, 8 KV heads of 64              4 of 32 (mxfp4)  "
        "0.8232 x 10^9  476.9 MB  1,024 B",
    ]


def test_json(run):
    told = json.loads(run("llm", "deepseek-v3", "--json").output)
    assert told["parameters"] == 671_026_419_200
    assert told["published_parameters"] == 671_000_000_000
    assert told["formats"] == {"weights": "fp8", "kv": "bf16", "activations": "bf16"}
    assert [kind["layers"] for kind in told["kinds"]] == [3, 58]
    assert told["kinds"][1]["experts"]["experts_per_token"] == 8
    assert told["kv_bytes_per_token"] == 61 * 576 * 2
    llm = llm_of(read_architecture("deepseek-v3"))
    assert told["weights_bytes"] == llm.weights_bytes(0, 61)


def test_an_llm_file(run, tmp_path):
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 10}
    config |= {"num_attention_heads": 4, "intermediate_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run("llm", ".", "--name", "mine", "--weights", "fp8", "-o", "mine.yaml")
    assert result.exit_code == 0
    assert "published" not in result.output
    llm = load_llm("mine.yaml", tmp_path)
    assert (llm.name, llm.layer_bytes) == ("mine", 4 * 64 + 384 + 2 * 16)
    text = (tmp_path / "mine.yaml").read_text()
    assert 'source: "sizes from .: weights fp8, KV cache bf16, activations bf16"' in text
    assert run("llm", ".", "-o", "mine.yaml").exit_code == 2
    assert run("llm", "gemma2-9b", "-o", "mine.yaml", "--force").exit_code == 0
    assert load_llm("mine.yaml", tmp_path) == llm_of(read_architecture("gemma2-9b"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "no LLM 'nope' ships with helixsim; known are deepseek-v2-lite"),
        (["qwen3-32b", "--kv", "fp7"], "--kv: no number format 'fp7'; did you mean 'fp8'?"),
        (["mine.yaml"], "mine.yaml: is not a config.json but, by its name, an LLM file"),
        (["mine.json"], "mine.json: cannot be read: No such file"),
        (["qwen3-32b", "--name", "a b", "-o", "x.yaml"], "name: 'a b' does not match"),
    ],
)
def test_mistakes(run, tmp_path, arguments, message):
    result = run("llm", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_ones(run):
    result = run("llms")
    assert [line.split()[0] for line in result.output.splitlines()] == ["name", *shipped_configs()]
    assert run("llm").output == result.output
    told = json.loads(run("llms", "--json").output)
    assert [each["name"] for each in told] == list(shipped_configs())

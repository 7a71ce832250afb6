"""helixsim import-operators: measured times of operators to machine files."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helixsim.cli import app
from helixsim.profiles.import_operators import memory_of_gpus
from helixsim.profiles.library import load_llm, load_machine_type
from helixsim.profiles.measured_grids import attention_grid, expert_grid

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
LLAMA_8B = LLAMA | {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
QWEN_32B = LLAMA | {
    "model_type": "qwen3",
    "num_hidden_layers": 64,
    "hidden_size": 5120,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 25600,
    "vocab_size": 151936,
}
QWEN_30B_A3B = QWEN_32B | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
FILES = {
    "dense": "layer,tokens,time_us\n"
    "qkv_proj,1,10\nqkv_proj,4,20.12345\nlayernorm,1,1\nlayernorm,4,2\n"
    "embedding,1,3\nembedding,4,3\nfinal_layernorm,1,2\nfinal_layernorm,4,2\n",
    "per_sequence": "layer,sequences,time_us\nlm_head,1,50\nsampler,1,5\n",
    "attention": "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"
    "0,0,1,16,5\n0,0,1,64,8\n4,0,0,0,7\n4,0,1,16,13\n",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Writes the files of a measurement, and imports them."""
    monkeypatch.chdir(tmp_path)

    def run(*options, config=LLAMA, **files):
        (tmp_path / "tables").mkdir()
        for name, text in (FILES | files).items():
            if text is not None:
                (tmp_path / "tables" / f"{name}.csv").write_text(text)
        (tmp_path / "config.json").write_text(
            config if isinstance(config, str) else json.dumps(config)
        )
        arguments = ["import-operators", "tables", "--llm", "config.json", "--memory", "1 MB"]
        arguments += ["-o", "machine.yaml", "--llm-file", "llm.yaml"]
        return CliRunner().invoke(app, [*arguments, *options])

    return run


def imported(folder):
    llm = load_llm(folder / "llm.yaml")
    return llm, load_machine_type(folder / "machine.yaml", llms=[llm]).profiles[llm.name]


def test_a_tiny_table(run, tmp_path):
    result = run("--name", "my-gpu")
    assert (result.exit_code, result.output) == (0, "written: llm.yaml, machine.yaml\n")
    llm, profile = imported(tmp_path)
    # Weights: q 8 x 8, k and v 8 x 4 each, o 8 x 8, feed-forward 3 x 8 x 16, norms 2 x 8.
    assert llm.layer_bytes == 2 * (64 + 32 + 32 + 64 + 384 + 16)
    assert llm.once_bytes == 2 * (2 * 800 + 8)
    assert (llm.name, llm.num_layers, llm.activation_bytes_per_token) == ("llm", 2, 16.0)
    assert llm.kv_bytes_per_token_layer == 2 * 2 * 2 * 2
    tables = profile.operators
    assert tables.kinds[0].dense.tokens == (1, 4)
    assert tables.kinds[0].dense.seconds == pytest.approx((12e-6, 24.12e-6))
    assert tables.head(1) == pytest.approx(55e-6)
    attention = tables.kinds[0].attention
    assert attention.axes == ((0, 4), (0,), (0, 1), (16, 64))
    # The last combination was not measured: 7 alone + 8 alone.
    assert attention.seconds == pytest.approx([s * 1e-6 for s in (0, 0, 5, 8, 7, 7, 13, 15)])
    assert (tables.decode_skew, tables.tensor_parallel, tables.all_reduce) == (0.06, 1, None)
    assert "(a typical value, unmeasured)" in (tmp_path / "machine.yaml").read_text()
    assert profile.max_layers == 2
    assert profile.capacities[2].max_prompt_tokens == 4
    assert profile.capacities[2].max_decode_context == 64
    assert load_machine_type(tmp_path / "machine.yaml", llms=[llm]).name == "my-gpu"


def test_tensor_parallelism_and_skew(run, tmp_path):
    skew = (
        "pc,kp_label,alpha,n_samples\n0,kp=0,0.1,1\n0,kp=0,0.3,5\n0,kp=0,0.2,3\n"
        "0,kp=1,0.9,99\n1,kp=0,0.9,99\n"
    )
    options = ("--tensor-parallel", "4", "--all-reduce-latency", "60 us")
    assert run(*options, skew_fit=skew).exit_code == 0
    tables = imported(tmp_path)[1].operators
    assert tables.decode_skew == 0.3
    assert (tables.tensor_parallel, tables.all_reduce.bytes_per_s) == (4, 20e9)
    assert tables.all_reduce.latency_s == pytest.approx(60e-6)


def test_an_llm_file_is_used_as_it_is(run, tmp_path):
    assert run().exit_code == 0
    arguments = ["import-operators", "tables", "--memory", "1 MB", "--llm", "llm.yaml"]
    result = CliRunner().invoke(app, [*arguments, "-o", "second.yaml"])
    assert (result.exit_code, result.output) == (0, "written: second.yaml\n")
    first, second = ((tmp_path / f"{name}.yaml").read_text() for name in ("machine", "second"))
    assert second == first.replace("name: machine", "name: second")


LINE = "line 3, column time_us"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"dense": None}, "tables: has no dense.csv (or dense.csv.gz)"),
        ({"dense": ""}, "dense.csv: line 1: has no column layer; it should have layer, tokens"),
        ({"dense": "layer,tokens\n"}, "dense.csv: line 1: has no column time_us"),
        ({"dense": "layer,tokens,time_us\n"}, "dense.csv: has no rows"),
        (
            {"dense": "layer,tokens,time_us\na,1,1\na,2,x\n"},
            f"dense.csv: {LINE}: must be a number, not 'x'",
        ),
        ({"dense": "layer,tokens,time_us\na,1,1\na,2,0\n"}, f"{LINE}: must be a time above zero"),
        ({"dense": "layer,tokens,time_us\na,1,1\na,2\n"}, f"{LINE}: there is no value"),
        (
            {"dense": "layer,tokens,time_us\na,1,1\na,-2,1\n"},
            "line 3, column tokens: must be a whole number of at least 0, not '-2'",
        ),
        (
            {"dense": "layer,tokens,time_us\na,1,1\na,1,1\n"},
            "line 3, column tokens: a at 1 stands here twice",
        ),
        ({"dense": "layer,tokens,time_us\na,1,1\n"}, "dense.csv: has no rows of embedding"),
        ({"per_sequence": "layer,sequences,time_us\na,1,1\n"}, "has no rows of lm_head"),
        (
            {"attention": FILES["attention"].replace("4,0,0,0,7\n", "")},
            "attention.csv: has no time of a chunk of 4 alone (with n_decode 0)",
        ),
        (
            {"attention": FILES["attention"].replace("0,0,1,16,5\n0,0,1,64,8\n", "")},
            "attention.csv: has no time of 1 decodes alone (with prefill_chunk 0)",
        ),
        ({"skew_fit": "pc,kp_label,alpha,n_samples\n1,kp=0,1,1\n"}, "has no rows of decodes"),
        (
            {"moe": "tokens,activated_experts,time_us\n1,2,3\n"},
            "tables: has times of experts (moe), but the LLM has none",
        ),
    ],
)
def test_errors_of_tables(run, tmp_path, files, message):
    result = run(**files)
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "tables"]


def test_damaged_files(run, tmp_path):
    assert run().exit_code == 0
    (tmp_path / "tables" / "dense.csv").unlink()
    for content in (b"no gzip", gzip.compress(b"text" * 100)[:-20], gzip.compress(b"\xff\xff")):
        (tmp_path / "tables" / "dense.csv.gz").write_bytes(content)
        arguments = ["import-operators", "tables", "--memory", "1 MB", "--llm", "llm.yaml"]
        result = CliRunner().invoke(app, [*arguments, "-o", "second.yaml"])
        assert result.exit_code == 2
        assert result.stderr.startswith("tables/dense.csv.gz: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--memory", "24"), "--memory: '24' is not a quantity"),
        (("--memory", "0 GB"), "--memory: must be above zero"),
        (("--memory", "1 kB"), "1e-06 GB x 0.1 are too small for a layer of llm and a KV cache"),
        (("--memory-share", "2"), "--memory-share: must be above 0, at most 1, not 2.0"),
        (("--all-reduce-latency", "1 m"), "--all-reduce-latency: '1 m' is not a time"),
        (("--all-reduce-bandwidth", "0 B/s"), "--all-reduce-bandwidth: must be above zero"),
        (("--llm-file", "machine.yaml"), "--llm-file: must not be the machine file"),
        (("--name", "a b"), "name: 'a b' does not match"),
        (("-o", "config.json"), "config.json: exists already"),
    ],
)
def test_errors_of_options(run, tmp_path, options, message):
    result = run(*options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "tables"]


def test_the_file_of_the_llm(run):
    run()
    arguments = ["import-operators", "tables", "--memory", "1 MB", "-o", "second.yaml"]
    result = CliRunner().invoke(app, [*arguments, "--llm", "config.json"])
    assert "--llm-file: give a file to write for the LLM of a config.json" in result.stderr
    options = ["--llm", "llm.yaml", "--llm-file", "other.yaml"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert "--llm-file: llm.yaml is an LLM file already; leave this option out" in result.stderr


# -- config.json


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[1, 2", "config.json: line 1, column 6: is not JSON"),
        ("[1, 2]", "config.json: must be a mapping"),
        (LLAMA | {"model_type": "bloom"}, 'config.json: model_type: "bloom" is not supported'),
        (LLAMA | {"hidden_size": "8"}, 'hidden_size: must be a whole number above zero, not "8"'),
        (LLAMA | {"hidden_size": None}, "hidden_size: this key is missing"),
        (LLAMA | {"torch_dtype": "int4"}, 'torch_dtype: "int4" is not supported, only bfloat16'),
        (LLAMA | {"tie_word_embeddings": 1}, "tie_word_embeddings: must be true or false, not 1"),
        (
            QWEN_30B_A3B | {"mlp_only_layers": [1]},
            "tables: has times of one kind of layers, but llm has several (experts, dense)",
        ),
        (QWEN_30B_A3B, "tables: has no moe.csv (or moe.csv.gz), but the LLM has experts"),
    ],
)
def test_errors_of_config_json(run, config, message):
    result = run("--memory", "100 GB", config=config)
    assert result.exit_code == 2
    assert message in result.stderr


# -- grids with gaps


def test_of_several_sweeps_the_powers_of_two_are_used():
    sweeps = {}
    for counts, contexts in (((16, 32, 64), (16, 32)), ((24, 36, 54), (48, 80))):
        for chunk in counts:
            for context in contexts:
                sweeps[chunk, context, 0, 0] = 1.0
                sweeps[0, 0, chunk, context] = 2.0
                for count in counts:
                    for other in contexts:
                        sweeps[chunk, context, count, other] = 4.0
    axes, times = attention_grid(sweeps)
    assert axes == ((0, 16, 32, 64), (16, 32), (0, 16, 32, 64), (16, 32))
    assert set(times) == {0.0, 1.0, 2.0, 4.0}


def test_contexts_alone_are_interpolated():
    cells = {(8, 0, 0, 0): 1.0, (8, 16, 0, 0): 3.0, (4, 8, 0, 0): 1.5}
    cells |= {(0, 0, 1, 16): 1.0, (8, 8, 1, 16): 9.0, (8, 0, 1, 16): 5.0, (8, 16, 1, 16): 7.0}
    axes, times = attention_grid(cells)
    assert axes == ((0, 4, 8), (0, 8, 16), (0, 1), (16,))
    assert times == (0, 1, 0, 1, 0, 1, 1.5, 2.5, 1.5, 2.5, 1.5, 2.5, 1, 5, 2, 9, 3, 7)


def test_experts_that_few_tokens_cannot_use():
    axes, times = expert_grid({(1, 2): 1.0, (4, 2): 2.0, (4, 4): 5.0})
    assert axes == ((1, 4), (2, 4))
    assert times == (1.0, 5.0, 2.0, 5.0)


# -- the measured profiles


def measured(folder, name, *keys):
    with gzip.open(folder / f"{name}.csv.gz", "rt") as stream:
        rows = list(csv.DictReader(stream))
    return {tuple(row[key] for key in keys): float(row["time_us"]) * 1e-6 for row in rows}


@pytest.mark.parametrize(
    ("folder", "num_gpus", "memory"),
    [
        ("RTX4090/llama/tp1", 1, "25.25 GB"),
        ("measured/rtx-pro-6000/tp2", 2, "204 GB"),
        ("h100/tp1", 1, None),  # of several variants
        ("somewhere/tp1", 1, None),
    ],
)
def test_memory_is_that_of_the_gpu_that_a_folder_is_named_after(folder, num_gpus, memory):
    assert memory_of_gpus(Path("/") / folder, num_gpus) == memory


@pytest.mark.reference
@pytest.mark.parametrize(
    ("path", "config", "memory", "skew"),
    [
        ("rtx4090/llama3.1-8b/tp1", LLAMA_8B, "25.25 GB", 0.0354),
        ("rtxpro6000/llama3.1-8b/tp1", LLAMA_8B, "96 GB", 0.0311),
        ("rtxpro6000/qwen3-32b/tp2", QWEN_32B, "192 GB", 0.0367),
        ("rtxpro6000/qwen3-30b-a3b/tp1", QWEN_30B_A3B, "96 GB", 0.0375),
    ],
)
def test_measured_profiles(reference, tmp_path, path, config, memory, skew):
    folder = reference / "operator_profiles" / path
    if not folder.is_dir():
        pytest.skip(f"no operator profiles in {reference}")
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(
        app,
        [
            *("import-operators", str(folder), "--llm", str(tmp_path / "config.json")),
            *("--tensor-parallel", path[-1], "--memory", memory),
            *("-o", str(tmp_path / "machine.yaml"), "--llm-file", str(tmp_path / "llm.yaml")),
        ],
    )
    assert result.exit_code == 0, result.output
    llm, profile = imported(tmp_path)
    tables = profile.operators
    assert (profile.max_layers, tables.decode_skew) == (llm.num_layers, skew)
    near = {"rel": 6e-4}  # four digits
    dense = measured(folder, "dense", "layer", "tokens")
    once = ("embedding", "final_layernorm")
    for tokens in (1, 7, 512, 2048):
        layer = sum(
            seconds * (2 if name == "layernorm" else 1)
            for (name, count), seconds in dense.items()
            if count == str(tokens) and name not in once
        )
        assert tables.kinds[0].dense(tokens) == pytest.approx(layer, **near)
        assert tables.embedding(tokens) == pytest.approx(dense["embedding", str(tokens)], **near)
    attention = measured(
        folder, "attention", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode"
    )
    for point in ((0, 0, 64, 1024), (512, 2048, 0, 0), (128, 0, 16, 4096), (2048, 0, 1, 16)):
        expected = attention[tuple(map(str, point))]
        assert tables.kinds[0].attention(*point) == pytest.approx(expected, **near)
    # Not measured: the sum of both alone.
    assert ("16", "0", "256", "1024") not in attention
    expected = attention["16", "0", "0", "0"] + attention["0", "0", "256", "1024"]
    assert tables.kinds[0].attention(16, 0, 256, 1024) == pytest.approx(expected, **near)
    if tables.kinds[0].experts is not None:
        moe = measured(folder, "moe", "tokens", "activated_experts")
        assert tables.kinds[0].experts(1) == pytest.approx(moe["1", "8"], **near)

"""Architectures of LLMs from their config.json; sizes reckoned by hand."""

from __future__ import annotations

import json

import pytest

from helixsim.errors import InputError
from helixsim.llms.architecture import Attention, Experts, Matrix
from helixsim.llms.catalogue import shipped_config, shipped_configs
from helixsim.llms.families import FAMILIES
from helixsim.llms.read import read_architecture

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
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_MOE = LLAMA | {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 6,
}
DEEPSEEK = LLAMA | {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 3,
    "q_lora_rank": 6,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 2,
    "v_head_dim": 7,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 10,
    "first_k_dense_replace": 1,
}
GPT_OSS = LLAMA | {
    "model_type": "gpt_oss",
    "num_hidden_layers": 4,
    "head_dim": 2,
    "sliding_window": 128,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "quantization_config": {"quant_method": "mxfp4"},
}


@pytest.fixture
def read(tmp_path):
    def read(config, **options):
        folder = tmp_path / "tiny-llm"
        folder.mkdir(exist_ok=True)
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
        return read_architecture(folder, **options)

    return read


# -- families


def test_llama(read):
    llm = read(LLAMA)
    assert (llm.name, llm.num_layers, llm.hidden_size, llm.vocab_size) == ("tiny-llm", 2, 8, 100)
    (kind,) = llm.kinds
    assert kind.name == "dense"
    assert kind.attention == Attention(num_heads=4, num_kv_heads=2, key_dim=2, value_dim=2)
    assert kind.matrices == (
        Matrix("qkv", 8, 16),
        Matrix("output", 8, 8, "inputs"),
        Matrix("gate and up", 8, 32),
        Matrix("down", 16, 8, "inputs"),
    )
    assert kind.other_values == 16  # two norms
    # Queries 8 x 8, keys and values 8 x 4 each, output 8 x 8, feed-forward 3 x 8 x 16, norms.
    assert kind.values == 64 + 32 + 32 + 64 + 384 + 16
    assert llm.parameters == 2 * 592 + 2 * 800 + 8
    assert llm.layer_bytes(kind) == 2 * 592
    assert llm.kv_bytes_per_token(kind) == 2 * (2 * 2 + 2 * 2)
    # Each of 576 weights of matrices twice; a query and an output value of each of 4 heads with a
    # context of 10 tokens; the head.
    assert llm.flop_per_token(10) == 2 * (2 * 576 + 2 * 4 * (2 + 2) * 10) + 2 * 800


def test_mixtral(read):
    llm = read(MIXTRAL)
    (kind,) = llm.kinds
    assert kind.name == "experts"
    assert kind.experts == Experts(
        4, 2, (Matrix("gate and up", 8, 32), Matrix("down", 16, 8, "inputs"))
    )
    # Attention and norms as above; a router; four experts, of which a token uses two.
    assert kind.values == 192 + 16 + 8 * 4 + 4 * 384
    assert kind.active_values == 192 + 16 + 8 * 4 + 2 * 384
    assert llm.flop_per_token(0) == 2 * (2 * (192 + 32 + 2 * 384)) + 2 * 800


def test_qwen_with_dense_layers_among_those_with_experts(read):
    llm = read(QWEN_MOE | {"num_hidden_layers": 4, "decoder_sparse_step": 2})
    assert [kind.name for kind in llm.kinds] == ["dense", "experts"]
    assert llm.kind_of_layer == (0, 1, 0, 1)
    llm = read(QWEN_MOE | {"num_hidden_layers": 4, "mlp_only_layers": [3]})
    assert llm.kind_of_layer == (0, 0, 0, 1)
    # Norms of queries and keys: 2 values each.
    assert llm.kinds[0].values == 192 + 16 + 2 * 2 + 8 * 4 + 4 * 3 * 8 * 6
    with_shared = read(
        QWEN_MOE | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 12}
    )
    # Biases of queries, keys and values; the shared expert and its gate.
    assert with_shared.kinds[0].values == (192 + 16 + 8 + 4 + 4 + 8 * 4 + 4 * 144 + 3 * 8 * 12 + 8)


def test_deepseek(read):
    llm = read(DEEPSEEK)
    assert [kind.name for kind in llm.kinds] == ["dense", "experts"]
    assert llm.kind_of_layer == (0, 1, 1)
    dense, experts = llm.kinds
    assert dense.attention == Attention(
        num_heads=4, num_kv_heads=4, key_dim=5, value_dim=7, latent_dim=7
    )
    # Query down and up, latent down and up, output; norms of both latents.
    attention = 8 * 6 + 6 * 4 * 5 + 8 * (5 + 2) + 5 * 4 * (3 + 7) + 4 * 7 * 8 + 6 + 5
    assert dense.values == attention + 3 * 8 * 16 + 16
    # Router with a bias for each expert, four experts, one shared.
    assert experts.values == attention + 8 * 4 + 4 + 4 * 240 + 240 + 16
    assert experts.active_values == attention + 8 * 4 + 4 + 2 * 240 + 240 + 16
    assert llm.kv_bytes_per_token(dense) == 2 * (5 + 2)
    assert [matrix.split for matrix in dense.matrices] == [
        "none", "outputs", "none", "outputs", "inputs", "outputs", "inputs"
    ]  # fmt: skip
    without = read(DEEPSEEK | {"q_lora_rank": None, "model_type": "deepseek_v2"})
    assert without.kinds[0].values == dense.values - (8 * 6 + 6 * 4 * 5 + 6) + 8 * 4 * 5
    assert without.kinds[1].other_values == experts.other_values - 6 - 4


def test_gpt_oss(read):
    llm = read(GPT_OSS)
    assert [kind.name for kind in llm.kinds] == ["experts, window of 128", "experts, all tokens"]
    assert llm.kind_of_layer == (0, 1, 0, 1)
    assert [kind.attention.window for kind in llm.kinds] == [128, None]
    kind = llm.kinds[0]
    # Biases of queries, keys, values, output; a sink for each head; the router's; norms.
    assert kind.other_values == 8 + 4 + 4 + 8 + 4 + 4 + 16
    assert kind.experts.expert_values == 384 + 2 * 16 + 8
    # Experts of 17 bytes for 32 values, all else of two bytes.
    assert llm.layer_bytes(kind) == 2 * (192 + 32 + 48) + 4 * (384 * 17 / 32 + 2 * 40)
    assert (llm.weights.name, llm.kv.name) == ("bf16", "bf16")
    dense = read(GPT_OSS, weights="fp8").kinds[0]
    assert {matrix.number_format for matrix in dense.experts.matrices} == {None}
    types = ["full_attention"] * 3 + ["sliding_attention"]
    assert read(GPT_OSS | {"layer_types": types}).kind_of_layer == (0, 0, 0, 1)


def test_gemma(read):
    text = LLAMA | {"model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 4}
    text |= {"sliding_window": 512, "tie_word_embeddings": None}
    llm = read({"model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16"})
    assert llm.kind_of_layer == (0, 0, 0, 0, 0, 1, 0)
    assert llm.tied_embedding
    # Four norms; norms of queries and keys.
    assert llm.kinds[0].other_values == 4 * 8 + 2 * 4
    assert llm.parameters == 7 * (8 * 16 + 2 * 8 * 8 + 16 * 8 + 384 + 40) + 800 + 8
    second = read(text | {"model_type": "gemma2"})
    assert second.kind_of_layer == (0, 1, 0, 1, 0, 1, 0)
    assert second.kinds[0].other_values == 4 * 8


def test_llama_4(read):
    config = LLAMA | {"model_type": "llama4_text", "num_hidden_layers": 4}
    config |= {"attention_chunk_size": 8192, "intermediate_size_mlp": 32}
    config |= {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}
    llm = read({"model_type": "llama4", "text_config": config})
    assert [kind.name for kind in llm.kinds] == [
        "dense, window of 8,192", "experts, window of 8,192", "experts, all tokens"
    ]  # fmt: skip
    assert llm.kind_of_layer == (0, 1, 0, 2)
    assert llm.kinds[0].values == 192 + 3 * 8 * 32 + 16
    # A router, four experts and a shared one of the same width.
    assert llm.kinds[1].values == 192 + 8 * 4 + 5 * 384 + 16


def test_copies_of_keys_and_values(read):
    # Two KV heads; a latent is whole on every GPU.
    assert [read(LLAMA).kv_copies(gpus) for gpus in (1, 2, 4)] == [1, 1, 2]
    assert read(DEEPSEEK).kv_copies(8) == 8


def test_windows(read):
    assert read(LLAMA | {"sliding_window": 9}).kinds[0].attention.window is None
    mistral = LLAMA | {"model_type": "mistral"}
    assert read(mistral).kinds[0].attention.window is None
    assert read(mistral | {"sliding_window": 9}).kinds[0].attention.window == 9
    qwen = LLAMA | {"model_type": "qwen2", "sliding_window": 9, "max_window_layers": 1}
    assert read(qwen).kind_of_layer == (0, 0)
    windowed = read(qwen | {"use_sliding_window": True})
    assert [kind.attention.window for kind in windowed.layers] == [None, 9]
    assert windowed.kv_bytes_per_token(windowed.kinds[1]) == 16
    assert windowed.kinds[1].attention.context(20) == 9


def test_biases(read):
    plain = read(LLAMA).kinds[0]
    biased = read(LLAMA | {"attention_bias": True, "mlp_bias": True}).kinds[0]
    # Queries 8, keys 4, values 4, output 8; gate and up 16 each, down 8.
    assert biased.values - plain.values == 24 + 40
    qwen = read(LLAMA | {"model_type": "qwen2"}).kinds[0]
    assert qwen.values - plain.values == 16
    code = read(LLAMA | {"model_type": "starcoder2"})
    # Two matrices of the feed-forward block; biases of all six matrices and of the norms.
    assert code.kinds[0].values == 192 + 2 * 8 * 16 + 24 + 16 + 8 + 4 * 8
    assert code.other_values == 16


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_reads_something(read, family):
    config = GPT_OSS | QWEN_MOE | DEEPSEEK | {"model_type": family, "num_local_experts": 4}
    config |= {"attention_chunk_size": 64, "intermediate_size_mlp": 32}
    llm = read(config | {"sliding_window": None if family == "mixtral" else 64})
    assert llm.num_layers == 3
    assert llm.parameters > llm.active_parameters - llm.table_values > 0


# -- number formats


@pytest.mark.parametrize(
    ("quantization", "weights", "bytes_per_value", "kv"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 1, "bf16"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "int4", 0.5 + 2 / 128, "bf16"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8", 1, "bf16"),
        ({"quant_method": "awq", "w_bit": 4, "group_size": -1}, "int4", 0.5, "bf16"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", 1, "bf16"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4", 0.5625, "bf16"),
        (
            {"quant_algo": "NVFP4", "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
            "nvfp4", 0.5625, "fp8",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
                "kv_cache_scheme": {"num_bits": 8, "type": "float"},
                "ignore": ["lm_head"],
            },
            "fp8", 1, "fp8",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 64}}
                },
            },
            "int4", 0.5 + 2 / 64, "bf16",
        ),
    ],
)  # fmt: skip
def test_quantized_weights(read, quantization, weights, bytes_per_value, kv):
    llm = read(LLAMA | {"quantization_config": quantization})
    assert (llm.weights.name, llm.kv.name, llm.activations.name) == (weights, kv, "bf16")
    assert llm.weights.bytes_per_value == bytes_per_value
    assert llm.layer_bytes(llm.kinds[0]) == 576 * bytes_per_value + 16 * 2
    assert llm.table_bytes == 2 * 800


def test_routers_and_ignored_attention_keep_the_activations_format(read):
    fp8 = {"quant_method": "fp8"}
    llm = read(MIXTRAL | {"quantization_config": fp8})
    assert llm.layer_bytes(llm.kinds[0]) == 192 + 4 * 384 + 2 * (32 + 16)
    skipped = fp8 | {"modules_to_not_convert": ["model.layers.*.self_attn"]}
    llm = read(MIXTRAL | {"quantization_config": skipped})
    assert llm.layer_bytes(llm.kinds[0]) == 4 * 384 + 2 * (192 + 32 + 16)


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["lm_head", "re:.*self_attn.*"], {"attention"}),
        (["re:.*shared_experts.*", r"re:.*mlp\.(gate|up|down)_proj.*"], {"shared", "dense"}),
        (["language_model.layers.*.self_attn*"], {"attention"}),
        ([f"model.layers.{layer}.self_attn" for layer in (0, 1, 2)], {"attention"}),
        (["model.layers.0.self_attn", "gate", "model.layers.0"], set()),
        (["model.layers.1", "model.layers.2"], {"attention", "shared", "dense"}),
    ],
)
def test_modules_that_keep_their_format(read, patterns, kept):
    quantization = {"quant_method": "fp8", "modules_to_not_convert": patterns}
    llm = read(DEEPSEEK | {"quantization_config": quantization})
    forms = {
        "attention": llm.kinds[0].matrices[4],
        "dense": llm.kinds[0].matrices[6],
        "shared": llm.kinds[1].matrices[7],
    }
    assert [matrix.name for matrix in forms.values()] == ["output", "down", "shared down"]
    assert {name for name, matrix in forms.items() if matrix.number_format is not None} == kept
    assert llm.kinds[1].experts.matrices[0].number_format is None


def test_formats_by_name(read):
    llm = read(LLAMA, weights="int4", kv="fp8", activations="fp16")
    assert [form.name for form in (llm.weights, llm.kv, llm.activations)] == [
        "int4", "fp8", "fp16"
    ]  # fmt: skip
    assert read(LLAMA, weights="float16").weights.name == "fp16"
    assert read(LLAMA | {"torch_dtype": None, "dtype": "float32"}).weights.bytes_per_value == 4
    with pytest.raises(InputError, match=r"^weights: no number format 'fp7'; did you mean 'fp8'"):
        read(LLAMA, weights="fp7")
    with pytest.raises(InputError, match=r"^kv: no number format 'x'; known are fp32, bf16"):
        read(LLAMA, kv="x")


# -- errors


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[1, 2", "config.json: line 1, column 6: is not JSON"),
        ("[1, 2]", "config.json: must be a mapping"),
        ("[" * 100_000, "config.json: is nested too deep"),
        ({}, "model_type: this key is missing; supported are deepseek_v2, "),
        (LLAMA | {"model_type": "mamba"}, 'model_type: "mamba" is not supported; supported are'),
        (LLAMA | {"model_type": 7}, "model_type: 7 is not supported"),
        (LLAMA | {"model_type": ["llama"]}, 'model_type: ["llama"] is not supported'),
        (LLAMA | {"layer_types": [[], {}]}, "layer_types[0]: [] is not supported, only full_"),
        (
            {"model_type": "seeing", "text_config": LLAMA | {"model_type": "mamba"}},
            'config.json: text_config.model_type: "mamba" is not supported',
        ),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
            "config.json: text_config.num_hidden_layers: this key is missing",
        ),
        (LLAMA | {"hidden_size": "8"}, 'hidden_size: must be a whole number above zero, not "8"'),
        (LLAMA | {"hidden_size": None}, "hidden_size: this key is missing"),
        (LLAMA | {"hidden_size": 9}, "head_dim: this key is missing, and 4 heads do not divide 9"),
        (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide 4 heads"),
        (LLAMA | {"num_hidden_layers": 1001}, "num_hidden_layers: must be at most 1,000"),
        (
            LLAMA | {"num_hidden_layers": 2**31, "quantization_config": {"quant_method": "fp8"}},
            "num_hidden_layers: must be at most 1,000",
        ),
        (LLAMA | {"torch_dtype": "int4"}, 'torch_dtype: "int4" is not supported, only bfloat16'),
        (LLAMA | {"tie_word_embeddings": 1}, "tie_word_embeddings: must be true or false, not 1"),
        (LLAMA | {"layer_types": 1}, "layer_types: must be a list, not 1"),
        (LLAMA | {"layer_types": []}, "layer_types: has 0 entries, but num_hidden_layers is 2"),
        (
            LLAMA | {"layer_types": ["full_attention", "linear_attention"]},
            'layer_types[1]: "linear_attention" is not supported, only full_attention, sliding_',
        ),
        (LLAMA | {"quantization_config": 1}, "quantization_config: must hold keys and values"),
        (LLAMA | {"quantization_config": {}}, "quant_method: this key is missing"),
        (
            LLAMA | {"quantization_config": {"quant_method": "eetq"}},
            'quantization_config.quant_method: "eetq" is not supported, only fp8',
        ),
        (
            LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 3}},
            "quantization_config.bits: must be 4 or 8, not 3",
        ),
        (
            LLAMA | {"quantization_config": {"quant_method": "fp8", "ignore": ["x", "re:("]}},
            'quantization_config.ignore[1]: "re:(" is no regular expression',
        ),
        (
            LLAMA | {"quantization_config": {"quant_method": "fp8", "ignore": [1]}},
            "quantization_config.ignore[0]: must be a text, not 1",
        ),
        (MIXTRAL | {"num_experts_per_tok": 5}, "num_experts_per_tok: must be at most num_local"),
        (QWEN_MOE | {"moe_intermediate_size": None}, "moe_intermediate_size: this key is missing"),
        (DEEPSEEK | {"v_head_dim": -1}, "v_head_dim: must be a whole number above zero, not -1"),
    ],
)
def test_errors(read, config, message):
    with pytest.raises(InputError) as caught:
        read(config)
    assert message in str(caught.value)
    assert "config.json: " in str(caught.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: cannot be read: No such file"):
        read_architecture(tmp_path)
    with pytest.raises(InputError, match=r"my\.json: cannot be read: No such file"):
        read_architecture("my.json", base_dir=tmp_path)
    with pytest.raises(InputError, match="no LLM 'qwen3-23b' ships with helixsim; did you mean"):
        read_architecture("qwen3-23b")


# -- shipped


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_have_the_published_parameters(name):
    shipped, llm = shipped_config(name), read_architecture(name)
    assert llm.name == shipped.name == name
    assert llm.parameters == pytest.approx(shipped.parameters, rel=0.0005)
    if shipped.source.startswith("hub: sizes of the tensors"):
        assert llm.parameters == shipped.parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [  # model cards and technical reports
        ("gpt-oss-120b", 5.13),
        ("gpt-oss-20b", 3.61),
        ("deepseek-v3", 37),
        ("deepseek-v2-lite", 2.4),
        ("qwen3-235b-a22b", 22),
        ("mixtral-8x7b", 12.9),
    ],
)
def test_active_parameters_are_the_published_ones(name, billions):
    assert read_architecture(name).active_parameters / 1e9 == pytest.approx(billions, rel=0.025)

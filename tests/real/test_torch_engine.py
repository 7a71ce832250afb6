"""The torch engine makes the tokens that Hugging Face's generate makes, however it is split."""

import json

import pytest
from engine_driver import DEVICE, Job, make_specs, prompts, serve

from helixreal.engines import make_engine
from helixreal.engines.engine import Row, Sampling
from helixsim.control.kv_cache import reserve
from helixsim.errors import InputError

pytestmark = pytest.mark.torch

LENGTHS = (1, 2, 17, 33, 64, 90)
NUM_OUTPUT = 16
WHOLE = ((0, 0, 8),)
STAGES = ((0, 3), (3, 6), (6, 8))
THROUGH_STAGES = ((0, 0, 3), (1, 3, 6), (2, 6, 8))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


def generate(model, all_prompts=None, num_output=NUM_OUTPUT):
    """What Hugging Face makes of each prompt alone."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().to(DEVICE)
    whole.generation_config.eos_token_id = None
    answers = []
    for prompt in all_prompts or prompts(LENGTHS):
        ids = torch.tensor([prompt], device=DEVICE)
        out = whole.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num_output,
            pad_token_id=0,
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


@pytest.fixture(scope="module")
def expected(model):
    answers = generate(model)
    assert all(len(set(answer)) > 4 for answer in answers), "answers that can be told apart"
    return answers


@pytest.fixture
def engines():
    """Make engines from specs; they are closed in the end."""
    made = []

    def make(specs):
        new = [make_engine("torch", spec) for spec in specs]
        made.extend(new)
        return new

    yield make
    for engine in made:
        engine.close()


def staggered(route=WHOLE, routes=None, **settings):
    """Six requests, one coming at every second step."""
    return [
        Job(prompt, NUM_OUTPUT, 2 * index, routes[index] if routes else route, **settings)
        for index, prompt in enumerate(prompts(LENGTHS))
    ]


def test_one_engine_makes_the_tokens_of_the_whole_model(model, expected, engines):
    assert serve(engines(make_specs(model, [(0, 8)])), staggered()) == expected


def test_three_stages_make_the_same_tokens(model, expected, engines):
    assert serve(engines(make_specs(model, STAGES)), staggered(THROUGH_STAGES)) == expected


def test_a_stage_may_be_entered_inside_its_range(model, expected, engines):
    held = engines(make_specs(model, [(0, 5), (3, 8)], entries=(5,)))
    assert serve(held, staggered(((0, 0, 5), (1, 5, 8)))) == expected


def test_requests_on_different_routes_share_engines(model, expected, engines):
    held = engines(make_specs(model, [(0, 5), (3, 8), (0, 8), (3, 6)], entries=(5, 6)))
    ways = [
        ((0, 0, 5), (1, 5, 8)),
        ((2, 0, 8),),
        ((0, 0, 5), (3, 5, 6), (1, 6, 8)),
        ((0, 0, 5), (2, 5, 8)),
        ((2, 0, 8),),
        ((0, 0, 5), (1, 5, 8)),
    ]
    assert serve(held, staggered(routes=ways)) == expected


@pytest.mark.parametrize("chunk", [7, 16, 40])
def test_prompts_may_come_in_parts(model, expected, engines, chunk):
    held = engines(make_specs(model, STAGES))
    assert serve(held, staggered(THROUGH_STAGES), chunk=chunk) == expected


def test_prompts_and_decodes_run_together(model, expected, engines):
    kinds = set()

    def watch(rows):
        if any(row.num_tokens == 1 for row in rows):
            kinds.update(
                "whole" if row.position == 0 else "part" for row in rows if row.num_tokens > 1
            )

    served = serve(engines(make_specs(model, [(0, 8)])), staggered(), chunk=32, watch=watch)
    assert kinds == {"whole", "part"}
    assert served == expected


def test_no_two_contexts_of_a_batch_mix(model, engines, monkeypatch):
    from helixreal.engines import paged_attention

    all_prompts = prompts([3, 5, 100, 40, 44, 9, 21])
    alone = generate(model, all_prompts, 12)
    for most in (1, 100, 10**6):
        for limit in ("_CPU_GROUP_TOKENS", "_GROUP_TOKENS"):
            monkeypatch.setattr(paged_attention, limit, most)
        jobs = [Job(prompt, 12, route=WHOLE) for prompt in all_prompts]
        assert serve(engines(make_specs(model, [(0, 8)])), jobs) == alone


def test_too_few_blocks_refuse_and_change_nothing(model, engines):
    # 8 layers x 16 tokens x (2 KV heads x 32 x 2 values of 4 bytes)
    block_bytes = 8 * 16 * 2 * 2 * 32 * 4
    (engine,) = engines(make_specs(model, [(0, 8)], kv_memory_bytes=5 * block_bytes + 1))
    assert (engine.kv_blocks, engine.block_tokens) == (5, 16)
    assert reserve(engine.kv, 1, 33)
    assert reserve(engine.kv, 2, 16)
    assert not reserve(engine.kv, 2, 33)
    assert not reserve(engine.kv, 3, 17)
    assert reserve(engine.kv, 3, 16)
    assert not reserve(engine.kv, 1, 49)
    engine.kv.release(1)
    engine.kv.release(1)
    engine.kv.release(99)
    assert reserve(engine.kv, 2, 64)
    assert not reserve(engine.kv, 4, 1)


def test_blocks_that_others_used_do_no_harm(model, expected, engines):
    import torch

    (engine,) = engines(make_specs(model, [(0, 8)], kv_memory_bytes=30 * 65536))
    with torch.inference_mode():
        engine._layers._cache.fill_(torch.nan)
    for _ in range(2):
        assert serve([engine], staggered()) == expected
    assert engine.kv.num_free == engine.kv_blocks


def test_stages_in_bfloat16_equal_one_engine(model, engines):
    settings = {"dtype": "bfloat16"}
    whole = serve(engines(make_specs(model, [(0, 8)], **settings)), staggered())
    split = serve(engines(make_specs(model, STAGES, **settings)), staggered(THROUGH_STAGES))
    assert split == whole
    assert all(len(set(answer)) > 4 for answer in whole)


def test_tied_embeddings(tmp_path, engines):
    from tiny_llama import write_tiny_llama

    tied = write_tiny_llama(tmp_path, seed=1, tie_word_embeddings=True)
    expected = generate(tied)
    assert serve(engines(make_specs(tied, STAGES)), staggered(THROUGH_STAGES)) == expected


def test_several_shards_of_which_only_the_needed_are_read(model, expected, tmp_path, engines):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    shards = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        layer = int(name.split(".")[2]) if ".layers." in name else 7 * ("embed" not in name)
        shards.setdefault(f"model-{layer // 3}.safetensors", {})[name] = tensor
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    index = {name: file for file, tensors in shards.items() for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    assert serve(engines(make_specs(tmp_path, STAGES)), staggered(THROUGH_STAGES)) == expected
    (tmp_path / "model-1.safetensors").unlink()
    engines(make_specs(tmp_path, [(0, 3)]))
    with pytest.raises(InputError, match=r"model-1\.safetensors: model\.layers\.3\."):
        engines(make_specs(tmp_path, [(0, 5)]))


def test_dummy_weights_need_no_weights_and_agree_between_engines(model, tmp_path, engines):
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    settings = {"dummy_weights": True}
    whole = serve(engines(make_specs(tmp_path, [(0, 8)], **settings)), staggered())
    split = serve(engines(make_specs(tmp_path, STAGES, **settings)), staggered(THROUGH_STAGES))
    assert whole == split
    assert len({token for answer in whole for token in answer}) > 4


def _hugging_face_model(folder, kind, **settings):
    import torch
    import transformers

    torch.manual_seed(5)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        **settings,
    )
    whole = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, values in whole.named_parameters():
            if name.endswith("bias"):
                values.normal_(std=0.3)
    whole.save_pretrained(folder)


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", {"rope_parameters": LLAMA3_ROPE}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen2", {"tie_word_embeddings": True}),
    ],
)
def test_what_else_a_config_may_say(tmp_path, engines, kind, settings):
    _hugging_face_model(tmp_path, kind, **settings)
    expected = generate(tmp_path)
    held = engines(make_specs(tmp_path, [(0, 2), (2, 4)], 4))
    assert serve(held, staggered(((0, 0, 2), (1, 2, 4)))) == expected
    assert all(len(set(answer)) > 4 for answer in expected)


def test_rope_scaling_as_older_files_write_it(tmp_path, engines):
    _hugging_face_model(tmp_path, "Llama", rope_parameters=LLAMA3_ROPE)
    expected = generate(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    file.write_text(json.dumps(config))
    held = engines(make_specs(tmp_path, [(0, 4)], 4))
    assert serve(held, staggered(((0, 0, 4),))) == expected


# -- sampling --------------------------------------------------------------------------------


def test_draws_with_a_seed_repeat_whatever_else_is_in_the_batch(model, engines):
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=7)
    together = serve(engines(make_specs(model, [(0, 8)])), staggered(sampling=sampling))
    apart = [
        serve(engines(make_specs(model, [(0, 8)])), [Job(p, NUM_OUTPUT, 0, WHOLE, sampling)])[0]
        for p in prompts(LENGTHS)
    ]
    assert together == apart
    other = Sampling(temperature=1.0, top_p=0.9, seed=8)
    assert together != serve(engines(make_specs(model, [(0, 8)])), staggered(sampling=other))


def test_greedy_rows_stay_greedy_beside_draws(model, expected, engines):
    jobs = staggered()
    for job in jobs[::2]:
        job.sampling = Sampling(temperature=2.0)
    served = serve(engines(make_specs(model, [(0, 8)])), jobs)
    assert served[1::2] == expected[1::2]
    assert served[::2] != expected[::2]


def draws(probabilities, sampling, count=4000):
    import torch

    from helixreal.engines.sampling import choose_tokens

    logits = torch.tensor(probabilities).log().expand(count, -1)
    return choose_tokens(logits, [sampling] * count, range(count))


def test_draws_follow_the_probabilities_within_top_p():
    chosen = draws([0.1, 0.4, 0.2, 0.3], Sampling(temperature=1, top_p=0.65, seed=0))
    assert set(chosen) == {1, 3}
    assert chosen.count(1) / len(chosen) == pytest.approx(4 / 7, abs=0.03)
    chosen = draws([0.1, 0.4, 0.2, 0.3], Sampling(temperature=1, seed=0))
    assert [chosen.count(token) / 4000 for token in range(4)] == pytest.approx(
        [0.1, 0.4, 0.2, 0.3], abs=0.03
    )


def test_temperature_sharpens_and_flattens():
    # Probabilities to the power 1 / temperature.
    chosen = draws([0.2, 0.8], Sampling(temperature=0.5, seed=1))
    assert chosen.count(0) / 4000 == pytest.approx(0.04 / 0.68, abs=0.02)
    assert set(draws([0.2, 0.8], Sampling(temperature=1e-30, seed=1))) == {1}


def test_the_least_top_p_keeps_the_most_probable():
    assert set(draws([0.2, 0.3, 0.5], Sampling(temperature=1, top_p=0.0, seed=1))) == {2}


def test_draws_without_a_seed_differ():
    sampling = Sampling(temperature=1)
    assert draws([0.5, 0.5], sampling, 200) != draws([0.5, 0.5], sampling, 200)


def test_greedy_takes_the_first_of_equals():
    assert draws([0.2, 0.4, 0.4], Sampling(), 2) == [1, 1]


# -- bytes on the wire, and mistakes ---------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_packing_keeps_every_bit(model, engines, dtype, kind):
    import torch

    (engine,) = engines(make_specs(model, STAGES[:1], dtype=dtype))
    rows = []
    for request, ids in enumerate(prompts([1, 5, 30])):
        assert reserve(engine.kv, request, len(ids))
        rows.append(Row(request, 0, len(ids), ids))
    sent = engine.run(rows, 0, 3)
    (buffer,) = engine.pack(sent)
    assert len(buffer) == 36 * engine.wire_bytes_per_token
    received = engine.unpack([kind(buffer)], [1, 5, 30])
    assert all(torch.equal(*pair) for pair in zip(sent, received, strict=True))
    assert bytes(engine.pack(received[1:])[0]) == bytes(buffer)[engine.wire_bytes_per_token :]


@pytest.mark.parametrize(
    ("sizes", "num_tokens"),
    [([], [1]), ([256, 256], [1, 1]), ([255], [1]), ([512], [1]), ([256], [2]), ([256], [2, -1])],
)
def test_unpack_refuses_other_sizes(model, engines, sizes, num_tokens):
    (engine,) = engines(make_specs(model, STAGES[:1]))
    assert engine.wire_bytes_per_token == 256
    with pytest.raises(ValueError, match="hidden states"):
        engine.unpack([bytes(size) for size in sizes], num_tokens)


def test_where_no_token_is_wanted_none_comes(model, engines):
    (engine,) = engines(make_specs(model, [(0, 8)]))
    ids = prompts([5])[0]
    for request in range(2):
        assert reserve(engine.kv, request, 5)
    rows = [Row(0, 0, 5, ids, wants_token=False), Row(1, 0, 5, ids)]
    nothing, token = engine.run(rows, 0, 8)
    assert nothing is None
    assert isinstance(token, int)
    assert engine.run([], 0, 8) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures: GPT2LMHeadModel is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act: gelu is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling: rope_type yarn is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: "),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide 4 heads"),
        ({"hidden_size": "64"}, "hidden_size: must be a whole number"),
        ({"num_hidden_layers": 9}, "the model has 9 layers, but the scenario's LLM has 8"),
        (None, "is not JSON"),
    ],
)
def test_a_model_that_is_not_supported_is_named(model, tmp_path, engines, changes, message):
    config = json.loads((model / "config.json").read_text())
    text = "{" if changes is None else json.dumps(config | changes)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        engines(make_specs(tmp_path, [(0, 8)]))
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_memory_bytes": 65535}, "65535 bytes for KV caches are less than one block"),
        ({"dtype": "int8"}, "there is no dtype 'int8'"),
        ({"device": "abacus"}, "torch cannot use the device 'abacus'"),
        ({"device": "cuda:99"}, "torch cannot use the device 'cuda:99'"),
    ],
)
def test_settings_that_cannot_be_used(model, engines, settings, message):
    with pytest.raises(InputError) as caught:
        engines(make_specs(model, [(0, 8)], **settings))
    assert message in str(caught.value)


def test_a_device_with_too_little_memory_is_named(model, engines, monkeypatch):
    import torch

    from helixreal.engines import layer_shard

    def refuse(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(layer_shard, "rotary_table", refuse)
    with pytest.raises(InputError, match=f"device '{DEVICE}' has too little free memory for 8 la"):
        engines(make_specs(model, [(0, 8)]))


def test_attention_makes_no_plan_for_every_shape(model, engines):
    import torch

    engines(make_specs(model, STAGES[:1]))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU has computed when a call returns")
def test_a_pass_has_been_computed_when_it_returns(model, engines):
    import torch

    (engine,) = engines(make_specs(model, STAGES[:1]))
    ids = prompts([64])[0]
    assert reserve(engine.kv, 0, len(ids))
    busy = torch.randn(4096, 4096, device=DEVICE)
    for _ in range(3):
        for _ in range(20):
            torch.mm(busy, busy)
        engine.run([Row(0, 0, len(ids), ids)], 0, 3)
        assert torch.cuda.current_stream(DEVICE).query()


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU computes in the order of the calls")
def test_messages_do_not_wait_for_a_pass(model, engines):
    import torch

    (engine,) = engines(make_specs(model, STAGES[:1]))
    ids = prompts([64])[0]
    assert reserve(engine.kv, 0, len(ids))
    sent = engine.run([Row(0, 0, len(ids), ids)], 0, 3)
    expected = bytes(engine.pack(sent)[0])
    busy = torch.randn(8192, 8192, device=DEVICE)
    torch.cuda.synchronize()
    for _ in range(20):
        torch.mm(busy, busy)
    (buffer,) = engine.pack(sent)
    (received,) = engine.unpack([bytes(buffer)], [64])
    assert not torch.cuda.current_stream(DEVICE).query(), "the pass is still being computed"
    assert bytes(buffer) == expected
    torch.cuda.synchronize()
    assert torch.equal(received, sent[0])


def test_weights_that_are_missing_or_of_another_shape(model, tmp_path, engines):
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="neither"):
        engines(make_specs(tmp_path, [(0, 8)]))
    (tmp_path / "model.safetensors").symlink_to(model / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}))
    with pytest.raises(InputError, match=r"gate_proj\.weight has the shape \(128, 64\)"):
        engines(make_specs(tmp_path, [(0, 8)]))
    with pytest.raises(InputError, match=r"config\.json: cannot be read"):
        engines(make_specs(tmp_path / "nothing", [(0, 8)]))


def test_an_unknown_engine(model):
    (spec,) = make_specs(model, [(0, 8)])
    with pytest.raises(InputError, match="no engine 'abacus'; there are emulated, torch, vllm"):
        make_engine("abacus", spec)

"""The vLLM engine makes the tokens of vLLM's own generate, however it is split."""

import gc
import json
import os
import subprocess
import sys
import textwrap
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine_driver import DEVICE, Job, make_specs, prompts, serve

from helixreal.engines import make_engine
from helixreal.engines.engine import Row, Sampling
from helixsim.control.kv_cache import reserve
from helixsim.errors import InputError

pytestmark = [pytest.mark.vllm, pytest.mark.long]

on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="the device under test is not a CPU")

LENGTHS = (1, 2, 17, 33, 64, 90)
NUM_OUTPUT = 16
WHOLE = ((0, 0, 8),)
STAGES = ((0, 3), (3, 6), (6, 8))
THROUGH_STAGES = ((0, 0, 3), (1, 3, 6), (2, 6, 8))


collect_garbage = gc.collect


@pytest.fixture(scope="module", autouse=True)
def _leave_garbage():
    """vLLM collects garbage many times at each start and end: most of these tests' time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: 0)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engines():
    """Make engines from specs; equal specs are given the engine that there is."""
    made = {}

    def make(specs):
        for spec in specs:
            if repr(spec) not in made:
                made[repr(spec)] = make_engine("vllm", spec)
        return [made[repr(spec)] for spec in specs]

    yield make
    for engine in made.values():
        engine.close()


@pytest.fixture(scope="module")
def generate():
    """What vLLM makes of each prompt, all at once, with a model of its own."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"

    def make(model, dtype="float32", all_prompts=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from vllm import LLM, SamplingParams

            whole = LLM(
                str(model),
                skip_tokenizer_init=True,
                dtype=dtype,
                enforce_eager=True,
                max_model_len=256,
                block_size=32,
                kv_cache_memory_bytes=16 << 20,
                enable_prefix_caching=False,
                use_tqdm_on_load=False,
                **({} if DEVICE == "cpu" else {"gpu_memory_utilization": 0.01}),
            )
            answers = whole.generate(
                [{"prompt_token_ids": prompt} for prompt in all_prompts or prompts(LENGTHS)],
                SamplingParams(
                    temperature=0, ignore_eos=True, detokenize=False, max_tokens=NUM_OUTPUT
                ),
                use_tqdm=False,
            )
        tokens = [list(answer.outputs[0].token_ids) for answer in answers]
        assert all(len(set(answer)) > 4 for answer in tokens), "answers that can be told apart"
        return tokens

    return make


@pytest.fixture(scope="module")
def expected(model, generate):
    return generate(model)


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


def test_newcomers_join_inside_a_range_without_a_wire_between(model, expected, engines):
    # Segments of one engine, one after the other, as a worker runs them.
    held = engines(make_specs(model, [(0, 8), (0, 3)], entries=(3, 5)))
    ways = [((0, 0, 3), (0, 3, 5), (0, 5, 8)), ((1, 0, 3), (0, 3, 5), (0, 5, 8))] * 3
    assert serve(held, staggered(routes=ways)) == expected


@pytest.mark.parametrize("chunk", [7, 32, 40])
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


def test_a_batch_of_more_requests_than_vllm_takes_goes_in_parts(model, expected, engines):
    held = engines(make_specs(model, [(0, 8)], options={"max_num_seqs": 2}))
    jobs = staggered()
    for job in jobs:
        job.arrival = 0
    assert serve(held, jobs) == expected


def test_too_few_blocks_refuse_and_change_nothing(model, engines):
    # 8 layers x 32 tokens x (2 KV heads x 32 x 2 values of 4 bytes); vLLM keeps one for padding
    block_bytes = 8 * 32 * 2 * 2 * 32 * 4
    (engine,) = engines(
        make_specs(
            model,
            [(0, 8)],
            kv_memory_bytes=6 * block_bytes,
            max_context_tokens=128,
            block_tokens=32,
        )
    )
    assert (engine.kv_blocks, engine.block_tokens) == (5, 32)
    assert reserve(engine.kv, 1, 65)
    assert reserve(engine.kv, 2, 32)
    assert not reserve(engine.kv, 2, 97)
    assert not reserve(engine.kv, 3, 33)
    assert reserve(engine.kv, 3, 32)
    assert not reserve(engine.kv, 1, 97)
    engine.kv.release(1)
    engine.kv.release(1)
    engine.kv.release(99)
    assert reserve(engine.kv, 2, 128)
    assert not reserve(engine.kv, 4, 1)
    for request in (2, 3):
        engine.kv.release(request)
    assert reserve(engine.kv, 4, 128)
    engine.kv.release(4)


def test_every_block_is_of_use(model, expected, engines):
    block_bytes = 8 * 32 * 2 * 2 * 32 * 4
    (engine,) = engines(
        make_specs(
            model,
            [(0, 8)],
            kv_memory_bytes=6 * block_bytes,
            max_context_tokens=128,
            block_tokens=32,
        )
    )
    jobs = staggered()
    for index in (0, 3, 5):
        assert serve([engine], jobs[index : index + 1]) == expected[index : index + 1]
    jobs = [Job(prompts(LENGTHS)[index], NUM_OUTPUT, route=WHOLE) for index in (0, 1, 2, 3)]
    assert serve([engine], jobs) == expected[:4]


def test_blocks_that_others_used_do_no_harm(model, expected, engines):
    import torch

    (engine,) = engines(make_specs(model, [(0, 8)]))
    for layer in engine._stage._attention.values():
        layer.kv_cache.fill_(torch.nan)
    for _ in range(2):
        assert serve([engine], staggered()) == expected
    assert engine.kv.num_free == engine.kv_blocks


def test_stages_in_bfloat16_that_send_both_tensors_are_exact(model, generate, engines):
    settings = {"dtype": "bfloat16"}
    whole = serve(engines(make_specs(model, [(0, 8)], **settings)), staggered())
    stages = engines(make_specs(model, STAGES, **settings))
    assert serve(stages, staggered(THROUGH_STAGES)) == whole
    assert whole == generate(model, "bfloat16")
    assert [stage.wire_bytes_per_token for stage in stages] == [2 * 2 * 64] * 3


def test_the_sum_takes_half_the_bytes(model, engines):
    specs = make_specs(model, STAGES[:1], dtype="bfloat16", options={"wire": "sum"})
    (engine,) = engines(specs)
    assert engine.wire_bytes_per_token == 2 * 64
    (sent,) = prefill(engine, prompts([5]), 0, 3)
    (received,) = engine.unpack(engine.pack([sent]), [5])
    assert (received[0] == 0).all()
    assert (received[1] == sent[0] + sent[1]).all()


def test_both_tensors_in_float32(model, expected, engines):
    held = engines(make_specs(model, STAGES, options={"wire": "both"}))
    assert held[0].wire_bytes_per_token == 2 * 4 * 64
    assert serve(held, staggered(THROUGH_STAGES)) == expected


def test_dummy_weights_need_no_weights(model, tmp_path, engines):
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    held = engines(make_specs(tmp_path, STAGES, dummy_weights=True))
    tokens = serve(held, staggered(THROUGH_STAGES))
    assert {len(answer) for answer in tokens} == {NUM_OUTPUT}


def test_tied_embeddings(tmp_path, generate, engines):
    from tiny_llama import write_tiny_llama

    tied = write_tiny_llama(tmp_path, seed=1, tie_word_embeddings=True)
    expected = generate(tied)
    assert serve(engines(make_specs(tied, STAGES)), staggered(THROUGH_STAGES)) == expected


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Qwen3"])
def test_other_architectures(tmp_path, generate, engines, kind):
    write_model(tmp_path, kind)
    expected = generate(tmp_path)
    held = engines(make_specs(tmp_path, [(0, 2), (2, 4)], 4))
    assert serve(held, staggered(((0, 0, 2), (1, 2, 4)))) == expected


def write_model(folder, kind):
    import torch
    import transformers

    torch.manual_seed(5)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.2,
        sliding_window=None,
    )
    whole = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, values in whole.named_parameters():
            if name.endswith("bias") or "_norm" in name:
                values.normal_(mean=float("_norm" in name), std=0.3)
    whole.save_pretrained(folder)


def test_draws_with_a_seed_repeat_however_the_model_is_split(model, engines):
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=7)
    whole = serve(engines(make_specs(model, [(0, 8)])), staggered(sampling=sampling))
    split = serve(engines(make_specs(model, STAGES)), staggered(THROUGH_STAGES, sampling=sampling))
    assert split == whole
    other = Sampling(temperature=1.0, top_p=0.9, seed=8)
    assert whole != serve(engines(make_specs(model, [(0, 8)])), staggered(sampling=other))


# -- bytes on the wire -----------------------------------------------------------------------


def prefill(engine, all_prompts, start, end):
    """Run whole prompts, and leave the engine as it was."""
    rows = [Row(request, 0, len(ids), ids) for request, ids in enumerate(all_prompts)]
    for row in rows:
        assert reserve(engine.kv, row.request, row.num_tokens)
    done = engine.run(rows, start, end)
    for row in rows:
        engine.kv.release(row.request)
    return done


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_packing_both_keeps_every_bit(model, engines, kind):
    import torch

    (engine,) = engines(make_specs(model, STAGES[:1], dtype="bfloat16"))
    sent = prefill(engine, prompts([1, 5, 30]), 0, 3)
    buffers = engine.pack(sent)
    assert sum(map(len, buffers)) == 36 * engine.wire_bytes_per_token
    received = engine.unpack([kind(buffer) for buffer in buffers], [1, 5, 30])
    for one, other in zip(sent, received, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    # A row can be split off and sent by itself.
    (later, _) = engine.pack(received[1:])
    assert bytes(later) == bytes(buffers[0])[len(buffers[0]) // 36 :]


@pytest.mark.parametrize(
    ("sizes", "num_tokens"),
    [
        ([], [1]),
        ([256], [1]),
        ([128, 128, 128], [1]),
        ([128, 127], [1]),
        ([128, 256], [1]),
        ([128, 128], [2]),
        ([128, 128], [2, -1]),
    ],
)
def test_unpack_refuses_other_sizes(model, engines, sizes, num_tokens):
    (engine,) = engines(make_specs(model, STAGES[:1], dtype="bfloat16"))
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
    assert engine.run(rows[:1], 0, 8) == [None]
    assert engine.run([], 0, 8) == []
    for request in range(2):
        engine.kv.release(request)


@pytest.mark.parametrize("count", [1, 2])
def test_a_pass_leaves_what_it_was_given(model, engines, count):
    import torch

    (engine,) = engines(make_specs(model, [(0, 8)], entries=(3,)))
    all_prompts = prompts([9, 4])[:count]
    for request, ids in enumerate(all_prompts):
        assert reserve(engine.kv, request, len(ids))
    rows = [Row(request, 0, len(ids), ids) for request, ids in enumerate(all_prompts)]
    for row, payload in zip(rows, engine.run(rows, 0, 3), strict=True):
        row.payload = payload
    before = [tuple(part.clone() for part in row.payload) for row in rows]
    assert engine.run(rows, 3, 8) == engine.run(rows, 3, 8)
    for row, payload in zip(rows, before, strict=True):
        assert all(torch.equal(*pair) for pair in zip(row.payload, payload, strict=True))
        engine.kv.release(row.request)


# -- starting and ending ---------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), STAGES)
def test_vllm_can_measure_the_memory_of_any_stage(model, engines, start, end):
    # What it does on a GPU before it sizes the KV cache; a CPU leaves it out.
    (engine,) = engines(make_specs(model, [(start, end)], max_batch_tokens=512))
    stage, shapes = engine._stage, {}

    def noting(name, call):
        def noted(*arguments, **named):
            found = call(*arguments, **named)
            shapes[name] = tuple(found.shape)
            return found

        return noted

    for name in ("forward", "compute_logits"):
        setattr(stage._model, name, noting(name, getattr(stage._model, name)))
    stage._llm.collective_rpc(lambda worker: worker.model_runner.profile_run())
    assert shapes["forward"] == (512, 64), "as many tokens as a batch may have"
    assert shapes["compute_logits"][1] == 256


@on_cpu
def test_blocks_are_as_large_as_the_cpu_needs(model, engines):
    assert [
        engines(make_specs(model, STAGES[:1], block_tokens=tokens))[0].block_tokens
        for tokens in (1, 16, 33)
    ] == [32, 32, 64]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_memory_bytes": 65535}, "larger than the available KV cache memory"),
        # On a CPU and on a GPU.
        ({"kv_memory_bytes": 1000}, "(No available|larger than the available KV cache) memory"),
        ({"max_context_tokens": 1024}, r"max_model_len \(1024\) is greater"),
        ({"device": "xpu"}, "device is 'xpu', but this vLLM runs on '(cpu|cuda)'"),
        ({"num_layers": 9}, "the model has 8 layers, but the scenario's LLM has 9"),
    ],
)
def test_settings_that_vllm_cannot_use(model, engines, settings, message):
    with pytest.raises(InputError, match=message):
        engines(make_specs(model, STAGES[:1], **settings))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a mapping"),
        ('{"architectures": ["GPT2LMHeadModel"]}', "architectures: GPT2LMHeadModel is not"),
        ("{}", "architectures: none is not supported"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_model_that_is_not_supported_is_named(tmp_path, engines, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        engines(make_specs(tmp_path, [(0, 8)]))
    assert str(tmp_path / "config.json") in str(caught.value)


def test_weights_that_are_missing_are_named(model, tmp_path, engines):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.3.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    engines(make_specs(tmp_path, [(0, 3)]))
    with pytest.raises(InputError, match=r"model\.layers\.3\.mlp\.down_proj\.weight"):
        engines(make_specs(tmp_path, [(3, 6)]))
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"missing: .*layers\.3\.mlp\.gate_up_proj\.weight"):
        engines(make_specs(tmp_path, [(3, 4)]))


def test_engines_of_several_threads_do_not_meet(model, expected, engines):
    held = engines(make_specs(model, [(0, 8)]) + make_specs(model, [(0, 8)], block_tokens=32))
    with ThreadPoolExecutor() as pool:
        served = [pool.submit(serve, [engine], staggered()) for engine in held]
        assert [one.result() for one in served] == [expected] * 2


def test_an_engine_goes_on_when_another_is_closed(model, expected, engines):
    (other,) = (make_engine("vllm", spec) for spec in make_specs(model, [(0, 3)]))
    other.close()
    assert serve(engines(make_specs(model, [(0, 8)])), staggered()) == expected


def test_what_engines_share_ends_with_the_last_of_them(model, engines, monkeypatch):
    engines(make_specs(model, [(0, 8)]))
    (other,) = (make_engine("vllm", spec) for spec in make_specs(model, [(0, 3)]))
    core = other._stage._llm.llm_engine.engine_core
    monkeypatch.setattr(core, "shutdown", lambda: pytest.fail("another engine is open"))
    other.close()


def test_the_memory_of_a_gpu_is_given_back_when_nothing_refers_to_it(model, monkeypatch):
    import torch

    (engine,) = (make_engine("vllm", spec) for spec in make_specs(model, [(0, 3)]))
    held = [weakref.ref(each) for each in engine._stage._attention.values()]
    held.append(weakref.ref(engine._stage._model))
    given_back = []
    monkeypatch.setattr(gc, "collect", collect_garbage)
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: given_back.append({each() for each in held})
    )
    engine._stage.device = torch.device("cuda")
    engine.close()
    assert given_back[-1:] == [{None}]


def test_a_process_that_does_not_close_its_engine_says_nothing_all_the_same(
    model, expected, tmp_path
):
    script = """
        import json, sys
        from engine_driver import DEVICE, Job, make_specs, serve
        from helixreal.engines import make_engine
        model, prompt = json.loads(sys.argv[1])
        [engine] = [make_engine("vllm", spec) for spec in make_specs(model, [(0, 8)])]
        tokens = serve([engine], [Job(prompt, 16, route=[(0, 0, 8)])])
        print(json.dumps(tokens))
    """
    tests = Path(__file__).parent
    names = ("PATH", "HOME", "HELIX_TEST_DEVICE")
    kept = {name: value for name, value in os.environ.items() if name in names}
    paths = [str(tests), str(tests.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(script),
            json.dumps([str(model), prompts(LENGTHS)[-1]]),
        ],
        env=kept | {"PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == expected[-1:]
    assert list(tmp_path.iterdir()) == []

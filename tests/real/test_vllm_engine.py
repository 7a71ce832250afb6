"""The vLLM engine gives the tokens of vLLM's own generate, however layers and prompts are cut."""

from __future__ import annotations

import os

import pytest
from engine_driver import Job, make_specs, prompts, serve

from helixsim.errors import InputError

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

LENGTHS = [1, 7, 90, 3, 33, 64]
NUM_OUTPUT = 16
WHOLE = ((0, 0, 8),)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("model"))


def reference(model, dtype):
    """What vLLM itself generates, greedily."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(model),
        skip_tokenizer_init=True,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=256,
        block_size=32,
        kv_cache_memory_bytes=64 << 20,
        enable_prefix_caching=False,
    )
    settings = SamplingParams(
        temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True, detokenize=False
    )
    asked = [{"prompt_token_ids": prompt} for prompt in prompts(LENGTHS)]
    found = [list(out.outputs[0].token_ids) for out in llm.generate(asked, settings)]
    llm.llm_engine.engine_core.shutdown()
    return found


@pytest.fixture(scope="module")
def expected(model):
    return reference(model, "float32")


def engines(model, layers, **settings):
    from helixreal.engines.vllm_engine import VllmEngine

    return [VllmEngine(spec) for spec in make_specs(model, layers, **settings)]


def answers(made, route_of, chunk=10**6):
    jobs = [
        Job(prompt, NUM_OUTPUT, arrival=2 * number, route=route_of(number))
        for number, prompt in enumerate(prompts(LENGTHS))
    ]
    serve(made, jobs, chunk=chunk)
    for engine in made:
        engine.close()
    return [job.tokens for job in jobs]


def test_one_engine(model, expected):
    assert answers(engines(model, [(0, 8)]), lambda _: WHOLE) == expected


def test_chunked_prompts(model, expected):
    assert answers(engines(model, [(0, 8)]), lambda _: WHOLE, chunk=16) == expected


def test_three_stages(model, expected):
    route = ((0, 0, 3), (1, 3, 6), (2, 6, 8))
    assert answers(engines(model, [(0, 3), (3, 6), (6, 8)]), lambda _: route) == expected


def test_partial_inference_and_mixed_routes(model, expected):
    made = engines(model, [(0, 5), (3, 8), (0, 3)], entries=(3, 5))
    routes = (((0, 0, 5), (1, 5, 8)), ((2, 0, 3), (1, 3, 8)))
    assert answers(made, lambda number: routes[number % 2]) == expected


def test_sixteen_bits_are_exact_with_both_tensors(model):
    made = engines(model, [(0, 5), (3, 8)], entries=(3, 5), dtype="bfloat16")
    route = ((0, 0, 5), (1, 5, 8))
    assert answers(made, lambda _: route) == reference(model, "bfloat16")


def test_room_is_what_vllm_allocated(model):
    (engine,) = engines(model, [(0, 4)], kv_memory_bytes=2 << 20)
    assert engine.block_tokens == 32
    # Keys and values of 32 tokens x 2 heads x 32 x 4 bytes, in 4 layers; block 0 is padding.
    assert engine.kv_blocks == (2 << 20) // (2 * 32 * 2 * 32 * 4 * 4) - 1
    assert engine.reserve(1, engine.kv_blocks * 32)
    assert not engine.reserve(2, 1)
    engine.release(1)
    assert engine.reserve(2, 1)
    engine.close()


def test_dummy_weights_and_wire_sizes(model):
    (engine,) = engines(model, [(0, 4)], dummy_weights=True, options={"wire": "both"})
    jobs = [Job([1, 2, 3], 1, route=((0, 0, 4),))]
    from helixreal.engines.engine import Row

    assert engine.reserve(1, 3)
    payloads = engine.run([Row(1, 0, 3, jobs[0].prompt)], 0, 4)
    buffers = engine.pack(payloads)
    assert sum(len(buffer) for buffer in buffers) == 3 * engine.wire_bytes_per_token
    again = engine.unpack(buffers, [3])
    assert all(bool((a == b).all()) for a, b in zip(again[0], payloads[0], strict=True))
    with pytest.raises(ValueError, match="were expected"):
        engine.unpack(buffers, [2])
    engine.close()


def test_clear_errors(model, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Mamba"]}')
    with pytest.raises(InputError, match="not supported"):
        engines(tmp_path, [(0, 8)])
    with pytest.raises(InputError, match="'both' or 'sum'"):
        engines(model, [(0, 8)], options={"wire": "half"})

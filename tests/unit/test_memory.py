import pytest
from architectures import measured_llm

from helixsim.hardware.catalogue import load_gpu
from helixsim.hardware.gpu import GpuMachine
from helixsim.profiles.memory import (
    TYPICAL_RESERVED_BYTES,
    kv_tokens,
    reserved_bytes,
    usable_share,
    weight_bytes,
)

LLAMA_8B = measured_llm("llama-3.1-8b")


def test_an_rtx_4090_holds_the_tokens_that_vllm_held():
    # vLLM 0.19, 0.9 of 25,250,627,584 bytes, steps of 2,048 tokens: 41,408 tokens.
    assert kv_tokens(LLAMA_8B, GpuMachine(load_gpu("RTX-4090"))) == pytest.approx(41_408, rel=0.01)


def test_memory_is_shared_out_by_hand():
    # Logits are the largest: 256 x 128,256 x 26 bytes, and 0.4 GB of CUDA.
    assert reserved_bytes(LLAMA_8B) == 256 * 128_256 * 26 + 0.4e9
    # 2,048 tokens of LLaMA-1 30B, whose vocabulary is small: the residual and the normed hidden
    # state, and gate and up beside their input, in 16 bits.
    llama_30b = measured_llm("llama1-30b")
    assert reserved_bytes(llama_30b, max_sequences=1) == (
        2048 * (2 * 6656 + 6656 + 2 * 17_920) * 2 + 0.4e9
    )
    assert usable_share(100e9, 4, reserved=1e9) == pytest.approx(0.86)
    assert usable_share(1e9) == 0.1  # never nothing


def test_the_rule_for_unknown_sizes_is_that_of_an_8b_llm():
    assert reserved_bytes(LLAMA_8B) == pytest.approx(TYPICAL_RESERVED_BYTES, rel=0.01)


def test_longer_steps_leave_fewer_tokens():
    machine = GpuMachine(load_gpu("H100-SXM"))
    mixtral = measured_llm("mixtral-8x7b", "fp8")
    short = kv_tokens(mixtral, machine, max_sequences=16)
    long = kv_tokens(mixtral, machine, batched_tokens=16_384, max_sequences=16)
    # Two experts a token: 2 x (4,096 + 2 x 14,336) values each, and twice the hidden state.
    per_token = 2 * (2 * 4096 + 2 * (4096 + 2 * 14_336))
    assert (short - long) * 131_072 == pytest.approx((16_384 - 2048) * per_token, rel=0.01)


def test_kv_heads_that_several_gpus_hold_count_for_each():
    gpu = load_gpu("B200")
    llama_70b = measured_llm("llama-3.1-70b")
    with_8, with_16 = (kv_tokens(llama_70b, GpuMachine(gpu, count)) for count in (8, 16))
    assert with_16 < 1.15 * with_8  # 8 KV heads: 16 GPUs hold each of them twice


def test_matrices_that_are_not_divided_are_whole_on_each_gpu():
    llm = measured_llm("deepseek-v3")
    assert weight_bytes(llm) == pytest.approx(671e9 + 2 * 7168 * 129_280, rel=2e-3)
    # 1,536 values of queries and 576 of the latent in fp8, 256 of the router in bf16.
    per_gpu = 61 * 7168 * (1536 + 576) + 58 * 7168 * 256 * 2
    assert weight_bytes(llm, 8) - weight_bytes(llm) == 7 * per_gpu


def test_an_llm_that_does_not_fit_leaves_nothing():
    assert kv_tokens(measured_llm("llama-3.1-70b"), GpuMachine(load_gpu("T4"))) == 0

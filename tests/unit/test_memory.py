import pytest
from architectures import measured_llm

from helixsim.hardware.catalogue import load_gpu
from helixsim.hardware.gpu import GpuMachine
from helixsim.profiles.llm_file import llm_of
from helixsim.profiles.machine_documents import facts_of, machine_type_of
from helixsim.profiles.memory import (
    TYPICAL_RESERVED_BYTES,
    reserved_bytes,
    usable_share,
)
from helixsim.profiles.roofline.source import RooflineSource

LLAMA_8B = measured_llm("llama-3.1-8b")


def kv_tokens(architecture, machine):
    """Tokens of KV cache beside all layers, as machine files and nodes with `gpu` have them."""
    llm, times = llm_of(architecture), RooflineSource()(architecture, machine)
    made = machine_type_of(llm, facts_of(machine, architecture), times)
    memory = made.profiles[llm.name].kv_memory
    assert memory is not None
    return memory.token_layers(0, architecture.num_layers) // architecture.num_layers


def test_an_rtx_4090_holds_the_tokens_that_vllm_held():
    # vLLM 0.19, 0.9 of 25,250,627,584 bytes, steps of 2,048 tokens: 41,408 tokens.
    found = kv_tokens(LLAMA_8B, GpuMachine(load_gpu("RTX-4090")))
    assert found == 41_264
    assert found == pytest.approx(41_408, rel=0.01)


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


def test_longer_steps_reserve_more():
    mixtral = measured_llm("mixtral-8x7b", "fp8")
    short = reserved_bytes(mixtral, max_sequences=16)
    long = reserved_bytes(mixtral, batched_tokens=16_384, max_sequences=16)
    # Two experts a token: 2 x (4,096 + 2 x 14,336) values each, and twice the hidden state.
    per_token = 2 * (2 * 4096 + 2 * (4096 + 2 * 14_336))
    assert long - short == (16_384 - 2048) * per_token


def test_kv_heads_that_several_gpus_hold_count_for_each():
    gpu = load_gpu("B200")
    llama_70b = measured_llm("llama-3.1-70b")
    with_8, with_16 = (kv_tokens(llama_70b, GpuMachine(gpu, count)) for count in (8, 16))
    assert with_16 < 1.15 * with_8  # 8 KV heads: 16 GPUs hold each of them twice


def test_an_llm_that_does_not_fit_leaves_nothing():
    assert kv_tokens(measured_llm("llama-3.1-70b"), GpuMachine(load_gpu("T4"))) == 0

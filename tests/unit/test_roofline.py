"""The roofline's formulas, reckoned by hand."""

from dataclasses import replace
from itertools import pairwise
from math import log, sqrt

import pytest
from architectures import measured_llm

from helixsim.errors import InputError, ScenarioError
from helixsim.hardware.catalogue import load_gpu, shipped_gpus
from helixsim.hardware.gpu import Gpu, GpuMachine
from helixsim.llms.architecture import NUMBER_FORMATS, Attention, Matrix
from helixsim.profiles.roofline import attention, matrices
from helixsim.profiles.roofline.collectives import all_reduce
from helixsim.profiles.roofline.constants import FILE, load_constants, shipped_constants
from helixsim.profiles.roofline.efficiency import (
    Efficiency,
    GenerationEfficiency,
    LinkEfficiency,
)
from helixsim.profiles.roofline.experts import experts_s
from helixsim.profiles.roofline.rates import Rates
from helixsim.profiles.roofline.source import RooflineSource

PERFECT = GenerationEfficiency(
    flop_per_joule=None,
    narrow_gain=2,
    weight_share=1,
    attention_share=1,
    attention_s=0,
    kv_share=1,
    kv_flop_share=1,
    expert_share=1,
    expert_weight_share=1,
)
IDEAL = Efficiency(
    peak_share=1,
    corner=1000,  # a sharp corner
    kernel_s=0,
    matrix_s=0,
    small_kernel_share=1,
    prefill_s=0,
    expert_s=0,
    expert_rows=0,
    expert_inner=0,
    sampler_s=0,
    sampler_passes=1,
    generations={"x": PERFECT},
    links={
        "pcie": LinkEfficiency(latency_s=5e-6, latency_per_gpu_s=3e-6, bandwidth_share=0.5),
    },
)
GPU = Gpu(
    name="ideal",
    title="ideal",
    generation="x",
    memory_bytes=80e9,
    memory_bytes_per_s=1e12,
    flop_per_s={"bf16": 100e12, "fp8": 200e12},
    interconnect_bytes_per_s=20e9,
    power_w=500,
)
RATES = Rates(GPU, IDEAL, PERFECT)
LLAMA_8B = measured_llm("llama-3.1-8b")
LAYER = LLAMA_8B.kinds[0]


def tables_of(llm, gpu="H100-SXM", num_gpus=1, **options):
    return RooflineSource()(llm, GpuMachine(load_gpu(gpu), num_gpus, **options)).tables


# -- matrices


def test_one_token_reads_a_matrix_and_many_compute():
    # 1,000 x 2,000 weights in 16 bits: 4 MB at 1 TB/s. 1,000 tokens: 4 GFLOP at 100 TFLOP/s.
    matrix = Matrix("m", 1000, 2000)
    assert matrices.matrix_s(RATES, LLAMA_8B, matrix, 1, 1) == pytest.approx(4e-6)
    assert matrices.matrix_s(RATES, LLAMA_8B, matrix, 1000, 1) == pytest.approx(40e-6)


def test_tensor_parallelism_divides_a_matrix_unless_each_gpu_holds_it():
    matrix = Matrix("m", 1000, 2000)
    whole = replace(matrix, split="none")
    assert matrices.matrix_s(RATES, LLAMA_8B, matrix, 1, 4) == pytest.approx(1e-6)
    assert matrices.matrix_s(RATES, LLAMA_8B, whole, 1, 4) == pytest.approx(4e-6)


@pytest.mark.parametrize(
    ("form", "one_us", "thousand_us"),
    [
        ("bf16", 4, 40),
        ("fp8", 2, 20),  # the GPU multiplies fp8
        ("int8", 2, 40),  # it has no peak for int8
        ("int4", 2 * (0.5 + 2 / 128), 40),  # only the size counts
        ("mxfp4", 2 * (0.5 + 1 / 32), 40),
    ],
)
def test_number_formats_of_weights(form, one_us, thousand_us):
    matrix = Matrix("m", 1000, 2000, number_format=NUMBER_FORMATS[form])
    assert matrices.matrix_s(RATES, LLAMA_8B, matrix, 1, 1) == pytest.approx(one_us * 1e-6)
    assert matrices.matrix_s(RATES, LLAMA_8B, matrix, 1000, 1) == pytest.approx(thousand_us * 1e-6)


def test_fp8_without_a_peak_for_it_saves_memory_only():
    matrix = Matrix("m", 1000, 2000, number_format=NUMBER_FORMATS["fp8"])
    rates = replace(RATES, gpu=replace(GPU, flop_per_s={"bf16": 100e12}))
    assert matrices.matrix_s(rates, LLAMA_8B, matrix, 1, 1) == pytest.approx(2e-6)
    assert matrices.matrix_s(rates, LLAMA_8B, matrix, 1000, 1) == pytest.approx(40e-6)


def test_a_board_computes_no_faster_than_its_power_allows():
    limited = replace(PERFECT, flop_per_joule=0.1e12)  # 500 W: 50 TFLOP/s
    assert replace(RATES, generation=limited).flop_per_s(NUMBER_FORMATS["bf16"]) == 50e12
    assert replace(RATES, generation=limited).flop_per_s(NUMBER_FORMATS["fp8"]) == 100e12


def test_the_corner_is_rounded():
    rates = replace(RATES, efficiency=replace(IDEAL, corner=2))
    assert rates.product_s(300, 4, 100, 1) == pytest.approx(5)  # sqrt(3^2 + 4^2)
    assert rates.product_s(0, 0, 100, 1) == 0


# -- attention


def test_a_decode_reads_the_keys_and_values_of_its_context():
    # 8 KV heads x 2 x 128 values in 16 bits are 4,096 bytes a token: 1,000 tokens, 4.096 us.
    seconds = attention.decode_s(RATES, LLAMA_8B, LAYER, 1, 1000, 1)
    assert seconds == pytest.approx(4.096e-6)
    assert attention.decode_s(RATES, LLAMA_8B, LAYER, 7, 1000, 1) == pytest.approx(7 * 4.096e-6)
    assert attention.decode_s(RATES, LLAMA_8B, LAYER, 1, 1000, 4) == pytest.approx(1.024e-6)


def test_gpus_that_hold_the_same_kv_head_read_it_each():
    # 32 query heads, 8 KV heads: 16 GPUs read as much as 8.
    eight, sixteen = (attention.decode_s(RATES, LLAMA_8B, LAYER, 1, 1000, n) for n in (8, 16))
    assert sixteen == pytest.approx(eight)


def test_a_latent_is_read_whole_by_each_gpu_and_computed_by_heads():
    latent = Attention(num_heads=128, num_kv_heads=128, key_dim=192, value_dim=128, latent_dim=576)
    kind = replace(LAYER, attention=latent)
    # 128 heads x 2 x 2 x 576 FLOP a token: 295 kFLOP at 100 TFLOP/s, more than 1,152 bytes take.
    one = attention.decode_s(RATES, LLAMA_8B, kind, 1, 1000, 1)
    assert one == pytest.approx(1000 * 128 * 4 * 576 / 100e12)
    # 128 GPUs: one head each, but the whole latent.
    many = attention.decode_s(RATES, LLAMA_8B, kind, 1, 1000, 128)
    assert many == pytest.approx(1000 * 1152 / 1e12)


@pytest.mark.parametrize("window", [None, 1, 4, 7, 100])
@pytest.mark.parametrize("before", [0, 2, 9])
def test_pairs_are_counted_as_one_by_one(window, before):
    one_by_one = sum(min(before + i, window or 1000) for i in range(1, 7))
    attended = replace(LAYER.attention, window=window)
    assert attention.attended_pairs(attended, 6, before) == one_by_one


def test_prefills_compute_the_causal_half():
    # 32 heads x 2 x (128 + 128) FLOP for each of 4,096 x 4,097 / 2 pairs.
    seconds = attention.prefill_s(RATES, LLAMA_8B, LAYER, 4096, 0, 1)
    assert seconds == pytest.approx(32 * 512 * 4096 * 4097 / 2 / 100e12)
    assert attention.prefill_s(RATES, LLAMA_8B, LAYER, 4096, 0, 2) == pytest.approx(seconds / 2)


# -- experts, all-reduces


def test_experts_in_use_are_read():
    mixtral = measured_llm("mixtral-8x7b")
    experts = mixtral.kinds[0].experts
    size = 2 * 3 * 4096 * 14_336  # of one expert, in bytes
    seconds = experts_s(RATES, mixtral, experts, 1, 2, 1)
    assert seconds == pytest.approx(2 * size / 1e12)
    assert experts_s(RATES, mixtral, experts, 1, 2, 2) == pytest.approx(seconds / 2)
    # 1,000 tokens, 2 experts each, 2 FLOP a weight.
    flop = 1000 * 2 * size
    assert experts_s(RATES, mixtral, experts, 1000, 8, 1) == pytest.approx(flop / 100e12)


def test_spread_experts_wait_for_the_gpu_with_the_most_tokens():
    mixtral = measured_llm("mixtral-8x7b")
    experts = mixtral.kinds[0].experts
    even = experts_s(RATES, mixtral, experts, 1000, 8, 2)
    spread = experts_s(RATES, mixtral, experts, 1000, 8, 2, spread=True)
    # 2,000 uses on two GPUs: 1,000 each, give or take sqrt(500); the larger is about
    # sqrt(2 ln 2) deviations above.
    assert spread / even == pytest.approx(1 + sqrt(500) * sqrt(2 * log(2)) / 1000)
    # With all experts in use, no GPU reads more than it holds.
    assert experts_s(RATES, mixtral, experts, 20, 8, 2, spread=True) == pytest.approx(
        experts_s(RATES, mixtral, experts, 20, 8, 2)
    )


def test_few_tokens_use_few_experts():
    llm = measured_llm("qwen3-30b-a3b")
    table = tables_of(llm).kinds[0].experts
    assert table.distinct_experts(1) == pytest.approx(8)
    one, many = table(1), table(512)
    assert many > 5 * one  # 16 times as many experts are read


def test_an_all_reduce_is_a_ring():
    each = all_reduce(GpuMachine(GPU, 4), IDEAL)
    assert each.latency_s == pytest.approx(11e-6)
    # 2 x 3/4 of a megabyte, at half of 20 GB/s
    assert each(1e6, 4) == pytest.approx(11e-6 + 1.5e6 / 10e9)


# -- whole tables


def test_a_decode_takes_about_the_time_to_read_all_weights():
    # Llama-3.1-8B on H100: 15.0 GB of layers and head at 3.35 TB/s are 4.5 ms.
    tables = tables_of(LLAMA_8B)
    stage = tables.stage(0, 32)
    layers_s = 32 * (stage.layer_s(1, 8192) + stage.attention_s(0, 0, 1, 1))
    read_s = (32 * LLAMA_8B.layer_bytes(LAYER) + LLAMA_8B.table_bytes) / 3.35e12
    assert read_s == pytest.approx(4.48e-3, rel=0.01)
    assert 1.1 * read_s < layers_s + tables.last_s(1, 1) < 1.5 * read_s


@pytest.mark.parametrize("gpu", ["T4", "L40S", "H100-SXM", "MI300X"])
@pytest.mark.parametrize("llm", ["llama-3.1-8b", "mixtral-8x7b", "gpt-oss-120b"])
def test_more_work_never_takes_less_time(gpu, llm):
    stage = tables_of(measured_llm(llm), gpu, 2).stage(0, 4)
    counts = (1, 7, 16, 100, 129, 500, 2048, 9000, 20_000)
    for fewer, more in pairwise(counts):
        assert stage.layer_s(fewer, 8192) < stage.layer_s(more, 8192)
        assert stage.attention_s(fewer, 0, 0, 0) < stage.attention_s(more, 0, 0, 0)
        assert stage.attention_s(fewer, 100, 0, 0) <= stage.attention_s(fewer, 5000, 0, 0)
        assert stage.attention_s(0, 0, fewer, 1000) < stage.attention_s(0, 0, more, 1000)
        assert stage.attention_s(0, 0, fewer, 1000) < stage.attention_s(0, 0, fewer, 5000)
        assert stage.attention_s(512, 0, fewer, 1000) > stage.attention_s(512, 0, 0, 0)


def test_tables_are_near_the_formulas_between_their_points():
    constants = shipped_constants()
    gpu = load_gpu("H100-SXM")
    rates = Rates(gpu, constants.efficiency, constants.efficiency.generations["hopper"])
    layer = tables_of(LLAMA_8B).kinds[0]
    for tokens in (3, 50, 100, 150, 300, 700, 1500, 3000, 7000):
        exact = matrices.matrices_s(rates, LLAMA_8B, LAYER, tokens, 1)
        exact += matrices.small_kernels_s(rates, LLAMA_8B, LAYER, tokens, 1)
        assert layer.dense(tokens) == pytest.approx(exact, rel=0.03)
        prefill = attention.prefill_s(rates, LLAMA_8B, LAYER, tokens, 3000, 1)
        assert layer.attention(tokens, 3000, 0, 0) == pytest.approx(prefill, rel=0.06)
        decode = attention.decode_s(rates, LLAMA_8B, LAYER, tokens, 777, 1)
        assert layer.attention(0, 0, tokens, 777) == pytest.approx(decode, rel=1e-6)


def test_a_sliding_window_bounds_the_attention():
    tables = tables_of(measured_llm("gpt-oss-120b"))
    window, full = (kind.attention for kind in tables.kinds)
    assert tables.kind_of_layer[:3] == (0, 1, 0)
    assert window(0, 0, 64, 8192) == pytest.approx(window(0, 0, 64, 128))
    assert full(0, 0, 64, 8192) > 3 * full(0, 0, 64, 128)


def test_tensor_parallelism_divides_a_layer_and_adds_all_reduces():
    llm = measured_llm("llama-3.1-70b")
    one, four = tables_of(llm), tables_of(llm, num_gpus=4)
    assert four.all_reduce is not None
    assert one.all_reduce is None
    assert one.kinds[0].dense(4096) / four.kinds[0].dense(4096) == pytest.approx(4, rel=0.1)


def test_heads_that_gpus_cannot_share_are_refused():
    with pytest.raises(InputError, match="32 attention heads, which 3 GPUs cannot share"):
        tables_of(LLAMA_8B, num_gpus=3)


@pytest.mark.parametrize("gpu", shipped_gpus(), ids=lambda gpu: gpu.name)
def test_every_gpu_of_the_catalogue_has_times(gpu):
    found = RooflineSource()(LLAMA_8B, GpuMachine(gpu, 2))
    assert found.kind == "roofline"
    layer_s = found.tables.stage(0, 32).layer_s(1, 8192)
    # Half of a layer's weights, at 40 to 100 % of the bandwidth, with less than 0.2 ms beside.
    read_s = LLAMA_8B.layer_bytes(LAYER) / 2 / gpu.memory_bytes_per_s
    assert read_s < layer_s < 2.5 * read_s + 0.2e-3


# -- constants


def test_the_source_says_how_far_off_its_figures_were():
    source = RooflineSource()(LLAMA_8B, GpuMachine(load_gpu("h100-sxm"))).source
    judged = shipped_constants().file.judged
    assert source == (
        "roofline from the data sheet of H100-SXM; such figures were off by "
        f"{100 * judged.median:.0f} % (median) and up to {100 * judged.p90:.0f} % (90 % of points) "
        "on GPUs where they could be checked"
    )


def test_generations_without_constants_take_the_middle():
    constants = shipped_constants()
    assert constants.generation_of(load_gpu("T4")) == "volta"
    assert constants.generation_of(load_gpu("H200")) == "hopper"
    assert constants.generation_of(load_gpu("MI300X")) == "unmeasured"
    assert constants.generation_of(GPU) == "unmeasured"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("turing: volta", "turing: vulta"), "roofline.yaml: generations: has no vulta"),
        (("  pcie:", "  pci:"), "roofline.yaml: links: has no pcie"),
        (("kv_share: 0.683", "kv_share: 1.683"), "generations.volta.kv_share"),
    ],
)
def test_a_file_of_constants_with_mistakes_is_refused(tmp_path, change, message):
    text = FILE.read_text("utf-8")
    assert change[0] in text
    file = tmp_path / "roofline.yaml"
    file.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(ScenarioError, match=message):
        load_constants(file)

"""Operator tables from Vidur's CSV files."""

from __future__ import annotations

import llm_architectures as llms
import pytest

from helixsim.errors import InputError
from helixsim.hardware.gpu import Gpu, GpuMachine
from helixsim.profiles.sources.operator_folder import TablesSource

OPERATORS = (
    *("emb", "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj"),
    *("post_attention_layernorm", "mlp_up_proj", "mlp_act", "mlp_down_proj", "add"),
)


def mlp(*rows, operators=OPERATORS):
    """Rows of (workers, tokens, milliseconds of each operator)."""
    header = [f"time_stats.{name}.{kind}" for name in operators for kind in ("mean", "median")]
    lines = [",".join([*header, "num_tokens", "num_tensor_parallel_workers"])]
    for workers, tokens, ms in rows:
        times = [text for _ in operators for text in ("0", str(ms))]
        lines.append(",".join([*times, str(tokens), str(workers)]))
    return "\n".join(lines) + "\n"


ATTENTION = (
    "num_tensor_parallel_workers,batch_size,prefill_chunk_size,kv_cache_size,is_prefill,"
    "time_stats.attn_prefill.median,time_stats.attn_decode.median\n"
    "1,1,64,0,True,0.1,\n"
    "1,1,64,1024,True,0.3,\n"
    "1,1,128,0,True,0.2,\n"
    "1,1,128,1024,True,0.5,\n"
    "1,4,128,0,True,9.0,\n"  # several chunks at once: left out
    "1,1,0,512,False,,0.01\n"
    "1,1,0,512,False,,0.03\n"  # measured twice: the mean
    "1,8,0,512,False,,0.06\n"
    "1,8,0,2048,False,,0.18\n"
    "2,1,64,0,True,0.07,\n"
    "2,1,0,512,False,,0.01\n"
)
ALL_REDUCE = (
    ",time_stats.all_reduce.median,num_workers,size\n"
    "0,0.02,2,10000\n1,0.12,2,1010000\n2,0.07,2,500000\n3,9,4,10000\n"
)
FILES = {
    "mlp": mlp((1, 1, 0.01), (1, 1000, 0.02), (2, 1, 0.005), (2, 1000, 0.01)),
    "attention": ATTENTION,
    "all_reduce": ALL_REDUCE,
}


@pytest.fixture
def tables(tmp_path):
    """Reads the tables of files."""

    def tables(num_gpus=1, architecture=None, **files):
        for name, text in (FILES | files).items():
            (tmp_path / f"{name}.csv").write_text(text)
        sheet = Gpu(name="A100", title="", generation="", memory_bytes=1, memory_bytes_per_s=1)
        source = TablesSource(tmp_path)
        return source(architecture or llms.llama_8b(), GpuMachine(sheet, num_gpus))

    return tables


def test_one_gpu(tables, tmp_path):
    sourced = tables()
    assert (sourced.kind, sourced.source) == ("tables", f"operator times in {tmp_path}")
    found = sourced.tables
    (layers,) = found.kinds
    # Nine operators of a layer, of which `add` counts twice.
    assert layers.dense(1) == pytest.approx(10 * 0.01e-3)
    assert layers.dense(1000) == pytest.approx(10 * 0.02e-3)
    assert found.embedding(1) == found.final_norm(1) == pytest.approx(0.01e-3)
    # The head has 128,256 x 4,096 weights, the block's first matrix 2 x 14,336 x 4,096.
    assert found.head(1) == pytest.approx(0.01e-3 * 128256 / 28672)
    attention = layers.attention
    assert attention(64, 0, 0, 0) == pytest.approx(0.1e-3)
    assert attention(128, 512, 0, 0) == pytest.approx(0.35e-3)
    assert attention(0, 0, 1, 512) == pytest.approx(0.02e-3)
    assert attention(0, 0, 8, 1280) == pytest.approx(0.12e-3)
    assert attention(64, 1024, 8, 2048) == pytest.approx(0.48e-3)
    assert (found.tensor_parallel, found.all_reduce) == (1, None)


def test_two_gpus(tables):
    found = tables(num_gpus=2).tables
    assert found.kinds[0].dense(1000) == pytest.approx(10 * 0.01e-3)
    # Of two GPUs, each sends as much as there is: 1 MB more in 0.1 ms more.
    assert found.all_reduce.bytes_per_s == pytest.approx(1e10)
    assert found.all_reduce.latency_s == pytest.approx(0.019e-3)


def test_many_sizes_are_thinned(tables):
    rows = "".join(
        f"1,1,{chunk},0,True,{chunk / 1000},\n1,{chunk},0,64,False,,{chunk / 1000}\n"
        for chunk in range(1, 301)
    )
    attention = tables(attention=ATTENTION.splitlines()[0] + "\n" + rows).tables.kinds[0].attention
    for axis in (attention.chunk, attention.decodes):
        assert axis[:2] == (0, 1)
        assert axis[-1] == 300
        assert len(axis) < 25
    assert attention(200, 0, 0, 0) == pytest.approx(0.2e-3)
    assert attention(0, 0, 77, 64) == pytest.approx(0.077e-3)


def test_rows_of_other_llms_are_left_out(tables):
    def of_llm(text, *sizes):
        first, *rest = text.splitlines()
        return [f"{first},n_embd,n_q_head,n_kv_head"] + [f"{row},{','.join(sizes)}" for row in rest]

    ours = of_llm(ATTENTION, "4096", "32", "8")
    others = of_llm(ATTENTION.replace("0.1,", "7,"), "4096", "32", "32")
    found = tables(attention="\n".join([*ours, *others[1:]])).tables
    assert found.kinds[0].attention(64, 0, 0, 0) == pytest.approx(0.1e-3)
    with pytest.raises(InputError) as error:
        tables(attention="\n".join(others))
    assert "has no rows of an LLM with n_embd 4096, n_q_head 32, n_kv_head 8" in str(error.value)


def test_times_that_are_rounded_to_zero(tables):
    found = tables(mlp=mlp((1, 1, 0.0), (1, 1000, 0.02))).tables
    assert found.kinds[0].dense(1) == pytest.approx(10 * 0.5e-6)


@pytest.mark.parametrize(
    ("num_gpus", "files", "message"),
    [
        (1, {"attention": ""}, "attention.csv: line 1: has no column num_tensor_parallel_workers"),
        (
            1,
            {"mlp": mlp((1, 1, 0.1), operators=OPERATORS[:-1])},
            "mlp.csv: line 1: has no column time_stats.add.median; it should have",
        ),
        (
            4,
            {},
            "mlp.csv: has no rows of 4 GPUs, only of 1, 2 (num_tensor_parallel_workers)",
        ),
        (
            1,
            {"mlp": mlp((1, 1, -1))},
            "mlp.csv: line 2, column time_stats.emb.median: must be a time above zero, not -1",
        ),
        (
            1,
            {"attention": ATTENTION.replace("1,1,64,0,True", "1,1,64,0,yes")},
            "attention.csv: line 2, column is_prefill: must be True or False, not 'yes'",
        ),
        (
            1,
            {"attention": "".join(ATTENTION.splitlines(keepends=True)[:6])},
            "attention.csv: has no rows of decodes",
        ),
        (
            1,
            {"attention": ATTENTION.replace("False,,0.06", "False,,")},
            "column time_stats.attn_decode.median: must be a number, not ''",
        ),
        (
            2,
            {"all_reduce": ALL_REDUCE.replace(",2,", ",8,")},
            "all_reduce.csv: has not two sizes of 2 workers",
        ),
        (
            2,
            {"all_reduce": ALL_REDUCE.replace("0.12", "0.01")},
            "all_reduce.csv: the time of 2 workers does not rise with the size",
        ),
    ],
)
def test_errors(tables, num_gpus, files, message):
    with pytest.raises(InputError) as error:
        tables(num_gpus, **files)
    assert message in str(error.value)


def test_llms_with_experts(tables):
    with pytest.raises(InputError) as error:
        tables(architecture=llms.mixtral_8x7b())
    assert "has times of equal layers without experts, but mixtral-8x7b has others" in str(
        error.value
    )


def test_several_gpus_without_all_reduces(tables, tmp_path):
    tables(num_gpus=2)
    (tmp_path / "all_reduce.csv").unlink()
    for name in ("mlp", "attention"):
        (tmp_path / f"{name}.csv").write_text(FILES[name])
    sheet = Gpu(name="A100", title="", generation="", memory_bytes=1, memory_bytes_per_s=1)
    with pytest.raises(InputError) as error:
        TablesSource(tmp_path)(llms.llama_8b(), GpuMachine(sheet, 2))
    assert str(error.value).endswith("has no all_reduce.csv (or all_reduce.csv.gz)")

"""Profiles from measured kernels: a library with times by formulas, in place of the package."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import llm_architectures as llms
import pytest

from helixsim.errors import InputError
from helixsim.hardware.gpu import Gpu, GpuMachine
from helixsim.llms.architecture import NUMBER_FORMATS
from helixsim.profiles.sources.cache import ProfileCache, cache_folder
from helixsim.profiles.sources.choice import FirstKnown, profile_source
from helixsim.profiles.sources.kernel_library import Aiconfigurator, library_names
from helixsim.profiles.sources.measured import MeasuredSource
from helixsim.profiles.sources.operator_folder import TablesSource
from helixsim.profiles.sources.source import SourcedTables, UnknownPairError

DENSE = ("embedding", "add_norm_1", "qkv_gemm", "attention", "add_norm_2", "ffn2_gemm")
ONCE = ("logits_gemm", "embedding_ar", "p2p")
EXPERTS = ("embedding", "add_norm_1", "add_norm_2", "attention", "router_gemm", "moe")

COSTS_US = {  # a fixed part of an operator in a layer, and one for each token
    "embedding": (1, 0.5),
    "add_norm_1": (2, 0),
    "add_norm_2": (4, 0),
    "qkv_gemm": (10, 1),
    "ffn2_gemm": (20, 2),
    "router_gemm": (3, 0),
    "moe": (100, 5),
    "moe_overlap": (60, 5),
    "ar_1": (7, 0.25),
    "ar_2": (7, 0.25),
    "logits_gemm": (50, 1),
    "embedding_ar": (6, 0),
    "teleport": (1, 0),
}


class Kernels:
    """Two layers of an LLM. Attention: 1 us for each chunk token x (tokens before + half of the
    chunk), 2 us for each decode x context; a tenth with a window."""

    def __init__(self, names, windows=(1.0,), decode_names=None):
        self.names = {"context": names, "generation": decode_names or names}
        self.windows = list(windows)

    def evaluate_context_ops(self, indices, *, batch_size, s, prefix=0):
        assert batch_size == 1
        attention_us = s * (prefix + s / 2)
        return self._found("context", indices, s, attention_us)

    def evaluate_generation_ops(self, indices, *, batch_size, s):
        return self._found("generation", indices, batch_size, 2 * batch_size * s)

    def _found(self, phase, indices, tokens, attention_us):
        (place,) = indices
        names = self.names[phase]
        if place >= len(names):
            raise ValueError(f"index {place} out of range ({len(names)} ops)")
        name = names[place]
        if name == "attention":
            nth = names[:place].count("attention")
            us = self.windows[nth] * attention_us * 2 / len(self.windows)
        elif name == "p2p":
            us = 0.0
        else:
            fixed, each = COSTS_US[name]
            count = 1 if name in ("embedding", *ONCE) else 2
            us = count * (fixed + each * tokens)
        return [(f"{phase}_{name}", us * 1e-3, 0.0, "silicon")]


class Library:
    """Counts what it is asked."""

    def __init__(self, kernels=None, refused=()):
        self.kernels = kernels or Kernels((*DENSE, *ONCE))
        self.refused = refused
        self.queries = []

    def version(self):
        return "9.9"

    def engine_version(self, system):
        return "1.0"

    def compile(self, query):
        self.queries.append(query)
        if query.matrices in self.refused or query.experts in self.refused:
            raise InputError(f"no data of {query.matrices}")
        return self.kernels


def machine(gpu="H100-SXM", num_gpus=1, **keys):
    sheet = Gpu(name=gpu, title=gpu, generation="", memory_bytes=80e9, memory_bytes_per_s=1e12)
    return GpuMachine(sheet, num_gpus, **keys)


def test_a_dense_llm_on_one_gpu():
    library = Library()
    sourced = MeasuredSource(library=library)(llms.llama_8b(), machine())
    assert sourced.kind == "measured"
    assert sourced.source == "kernel times of aiconfigurator-core 9.9 (h100_sxm, vllm 1.0)"
    tables = sourced.tables
    (layers,) = tables.kinds
    # Norms 2 + 4, projections 10 + 1 a token, block 20 + 2 a token.
    for tokens in (1, 100, 256, 257, 3000, 16384):
        assert layers.dense(tokens) == pytest.approx((36 + 3 * tokens) * 1e-6, rel=0.011)
        assert tables.embedding(tokens) == pytest.approx((7 + 0.5 * tokens) * 1e-6, rel=0.011)
        assert tables.final_norm(tokens) == pytest.approx(3e-6)
    assert tables.head(32) == pytest.approx(82e-6, rel=0.011)
    # 512 x (1,024 + 256) us, and 64 decodes at 2,048 beside it.
    chunk_s, decodes_s = 512 * 1280e-6, 2 * 64 * 2048e-6
    assert layers.attention(512, 1024, 0, 0) == pytest.approx(chunk_s, rel=1e-3)
    assert layers.attention(0, 0, 64, 2048) == pytest.approx(decodes_s, rel=1e-3)
    assert layers.attention(512, 1024, 64, 2048) == pytest.approx(chunk_s + decodes_s, rel=1e-3)
    assert layers.experts is None
    assert (tables.tensor_parallel, tables.all_reduce) == (1, None)
    (query,) = library.queries
    assert (query.system, query.num_gpus, query.spread_experts) == ("h100_sxm", 1, None)
    assert (query.matrices, query.experts, query.kv) == ("bfloat16", None, "bfloat16")
    assert query.config == {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 4096,
        "vocab_size": 128256,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    }


def test_all_reduces_are_a_line_and_the_rest_is_in_dense():
    library = Library(Kernels((*DENSE, "ar_1", "ar_2", *ONCE)))
    architecture = llms.llama_8b()
    tables = MeasuredSource(library=library)(architecture, machine(num_gpus=2)).tables
    # Each is 7 us + 0.25 us a token; a token has 8,192 bytes, of which each of 2 GPUs sends all.
    assert tables.all_reduce.latency_s == pytest.approx(7e-6, rel=0.05)
    assert tables.all_reduce.bytes_per_s == pytest.approx(8192 / 0.25e-6, rel=0.05)
    stage = tables.stage(0, 32)
    for tokens in (1, 300, 8192):
        expected_s = (36 + 3 * tokens + 2 * (7 + 0.25 * tokens)) * 1e-6
        assert stage.layer_s(tokens, 8192) == pytest.approx(expected_s, rel=0.011)


@pytest.mark.parametrize("spread", [False, True])
def test_experts_and_windows(spread):
    kernels = Kernels(("attention", *EXPERTS, *ONCE), windows=(0.1, 1.0))
    library = Library(kernels)
    pair = (llms.gpt_oss_120b(), machine(spread_experts=spread))
    tables = MeasuredSource(library=library)(*pair).tables
    assert tables.kind_of_layer == (0, 1) * 18
    window, full = tables.kinds
    assert full.attention(0, 0, 8, 1024) == pytest.approx(16 * 1024e-6, rel=1e-3)
    assert window.attention(0, 0, 8, 1024) == pytest.approx(0.1 * 16 * 1024e-6, rel=1e-3)
    assert full.dense(10) == pytest.approx(9e-6)
    assert (full.experts.num_experts, full.experts.experts_per_token) == (128, 4)
    assert full.experts(1000) == pytest.approx(5100e-6, rel=0.011)
    query = library.queries[0]
    assert query.config["architectures"] == ["GptOssForCausalLM"]
    assert query.config["intermediate_size"] == 2880
    assert (query.experts, query.spread_experts) == ("w4a16_mxfp4", spread)


def test_the_dense_layers_of_deepseek():
    """Their block is that of a dense LLM, their attention that of the layers with experts."""
    kernels = {
        "DeepseekV3ForCausalLM": Kernels((*EXPERTS, *ONCE)),
        "LlamaForCausalLM": Kernels((*DENSE, *ONCE)),
    }

    class Both(Library):
        def compile(self, query):
            super().compile(query)
            return kernels[query.config["architectures"][0]]

    library = Both()
    tables = MeasuredSource(library=library)(llms.deepseek_v3(), machine("H200")).tables
    dense, experts = tables.kinds
    assert tables.kind_of_layer == (0,) * 3 + (1,) * 58
    # Norms of 6 us, no projections (the library has them in the attention), block 20 + 2 a token.
    assert dense.dense(10) == pytest.approx(46e-6, rel=0.011)
    assert dense.experts is None
    assert experts.dense(10) == pytest.approx(9e-6)
    by_class = {query.config["architectures"][0]: query for query in library.queries}
    dense_query, latent = by_class["LlamaForCausalLM"], by_class["DeepseekV3ForCausalLM"]
    assert dense_query.config["intermediate_size"] == 18432
    assert latent.config["moe_intermediate_size"] == 2048
    assert (latent.config["n_shared_experts"], latent.config["n_routed_experts"]) == (1, 256)
    assert (latent.matrices, latent.experts, latent.kv) == ("fp8_block", "fp8_block", "fp8")
    assert dense_query.matrices == "fp8_block"


def test_what_only_decodes_run_side_by_side():
    """Experts of 60 us + 5 us a token in decodes; router 3 us and experts 100 us in prefills."""
    overlapped = ("embedding", "add_norm_1", "add_norm_2", "attention", "moe_overlap")
    kernels = Kernels((*EXPERTS, *ONCE), decode_names=(*overlapped, *ONCE))
    tables = MeasuredSource(library=Library(kernels))(llms.mixtral_8x7b(), machine()).tables
    (layers,) = tables.kinds
    assert layers(10) == pytest.approx(116e-6, rel=0.011)
    # A chunk of 128 tokens takes 43 us more than 128 decodes, beside its attention.
    assert layers.attention(128, 0, 0, 0) == pytest.approx(128 * 64e-6 + 43e-6, rel=1e-3)
    assert layers.attention(0, 0, 8, 1024) == pytest.approx(16 * 1024e-6, rel=1e-3)


def test_the_next_number_format_if_one_was_not_measured():
    library = Library(refused=("fp8",))
    MeasuredSource(library=library)(llms.llama_8b(weights="fp8"), machine())
    assert [query.matrices for query in library.queries] == ["fp8", "fp8_block"]


def test_norms_of_queries_and_keys():
    library = Library()
    MeasuredSource(library=library)(llms.qwen3_32b(), machine())
    assert library.queries[0].config["architectures"] == ["Qwen3ForCausalLM"]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            (llms.llama_8b(), machine("RTX-4090")),
            "aiconfigurator-core 9.9 has no measured times of RTX-4090, only of a100_sxm, ",
        ),
        (
            (llms.llama_8b(weights="mxfp4"), machine()),
            "of llama-3.1-8b on H100-SXM: matrices in mxfp4 are not measured; use the roofline",
        ),
        (
            (llms.llama_8b(kv="int8"), machine()),
            "of llama-3.1-8b on H100-SXM: kv in int8 are not measured; use the roofline",
        ),
        (
            (llms.llama_8b(windows=(4096,)), machine()),
            "sliding windows of 4096 tokens are not measured; use the roofline",
        ),
    ],
)
def test_pairs_that_it_does_not_know(pair, message):
    with pytest.raises(UnknownPairError) as error:
        MeasuredSource(library=Library())(*pair)
    assert message in str(error.value)


def test_operators_that_are_new():
    with pytest.raises(UnknownPairError) as error:
        MeasuredSource(library=Library(Kernels(("embedding", "teleport"))))(
            llms.llama_8b(), machine()
        )
    assert "operator 'teleport' is unknown to this version of helixsim" in str(error.value)


# -- without the package


class Absent(Library):
    def version(self):
        return None


def test_without_the_package():
    with pytest.raises(UnknownPairError) as error:
        MeasuredSource(library=Absent())(llms.llama_8b(), machine())
    assert str(error.value) == (
        "measured times need the package aiconfigurator-core (pip install 'helixsim[profiles]'); "
        "use the roofline instead (--source roofline)"
    )


def test_the_other_source_says_why():
    measured = MeasuredSource(library=Library())(llms.llama_8b(), machine())
    reckoned = SourcedTables(measured.tables, "roofline", "a roofline")
    first = FirstKnown(MeasuredSource(library=Absent()), lambda *_: reckoned)
    found = first(llms.llama_8b(), machine())
    assert (found.kind, found.source) == ("roofline", "a roofline")
    assert found.note == (
        "measured times need the package aiconfigurator-core (pip install 'helixsim[profiles]')"
    )
    known = FirstKnown(MeasuredSource(library=Library()), lambda *_: reckoned)
    assert known(llms.llama_8b(), machine()).note == ""


def test_sources_by_name():
    assert isinstance(profile_source("measured"), MeasuredSource)
    assert isinstance(profile_source("tables:folder"), TablesSource)
    for name in ("guess", "tables:"):
        with pytest.raises(InputError) as error:
            profile_source(name)
        assert f"no source '{name}'; there are auto, measured, roofline, tables:DIR" in str(
            error.value
        )


def test_importing_sources_imports_no_library():
    code = (
        "import sys, helixsim.profiles.sources.measured\n"
        "assert not any(name.startswith('aiconfigurator') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- the cache


def test_tables_are_asked_for_once(tmp_path):
    library = Library()
    first = MeasuredSource(ProfileCache(tmp_path / "new"), library)(llms.llama_8b(), machine())
    asked = len(library.queries)
    again = MeasuredSource(ProfileCache(tmp_path / "new"), library)(llms.llama_8b(), machine())
    assert again == first
    assert len(library.queries) == asked
    MeasuredSource(ProfileCache(tmp_path / "new"), library)(llms.llama_8b(kv="fp8"), machine())
    assert len(library.queries) > asked


def test_a_newer_library_is_asked_again(tmp_path):
    library = Library()
    MeasuredSource(ProfileCache(tmp_path), library)(llms.llama_8b(), machine())
    asked = len(library.queries)
    library.version = lambda: "10.0"
    found = MeasuredSource(ProfileCache(tmp_path), library)(llms.llama_8b(), machine())
    assert "aiconfigurator-core 10.0" in found.source
    assert len(library.queries) > asked


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', "\udcff"])
def test_damaged_files_are_written_again(tmp_path, damage):
    library = Library()
    pair = (llms.llama_8b(), machine())
    first = MeasuredSource(ProfileCache(tmp_path), library)(*pair)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage.encode(errors="surrogateescape"))
    assert MeasuredSource(ProfileCache(tmp_path), library)(*pair) == first
    assert file.read_bytes() == whole


def test_damaged_tables_are_asked_for_again(tmp_path):
    library = Library()
    pair = (llms.llama_8b(), machine())
    first = MeasuredSource(ProfileCache(tmp_path), library)(*pair)
    (file,) = tmp_path.iterdir()
    document = json.loads(file.read_text())
    document["operators"]["dense"]["ms"][0] = -1
    file.write_text(json.dumps(document))
    assert MeasuredSource(ProfileCache(tmp_path), library)(*pair) == first


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ProfileCache(tmp_path / "file" / "profiles")
    found = MeasuredSource(cache, Library())(llms.llama_8b(), machine())
    assert found.kind == "measured"


def test_the_folder_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "helixsim" / "profiles"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the standard says to ignore it
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "helixsim" / "profiles"


# -- names


def test_names_of_gpus_and_formats():
    names = library_names()
    assert names.system_of("h100 sxm") == names.system_of("H100-SXM") == "h100_sxm"
    assert names.system_of("L4") is None
    known = {name for use in names.formats.values() for name in use}
    assert known <= set(NUMBER_FORMATS)


# -- the package itself


@pytest.mark.skipif(
    find_spec("aiconfigurator_core") is None,
    reason="aiconfigurator-core is not installed (pip install 'helixsim[profiles]')",
)
def test_the_package_reproduces_its_own_steps(tmp_path):
    from aiconfigurator_core.sdk.engine import EngineHandle

    from helixsim.profiles.whole_steps import WholeStep, kernels_s

    architecture = llms.qwen3_30b_a3b()
    tables = MeasuredSource()(architecture, machine("H100-SXM", 2)).tables
    handle = EngineHandle.compile(
        "Qwen/Qwen3-30B-A3B", "h100_sxm", "vllm", tp_size=2, moe_tp_size=2
    )
    assert Aiconfigurator().version() is not None

    def ms(**step):
        return 1000 * kernels_s(tables, 48, 4096, WholeStep(**step))

    near = {"rel": 0.03}
    assert ms(chunk=1000) == pytest.approx(handle.predict_prefill_latency(1, 1000), **near)
    assert ms(chunk=512, chunk_context=4096) == pytest.approx(
        handle.predict_prefill_latency(1, 4608, 4096), **near
    )
    assert ms(decodes=100, decode_context=3001) == pytest.approx(
        handle.predict_decode_latency(100, 3000), **near
    )
    assert ms(chunk=1024, decodes=32, decode_context=1025) == pytest.approx(
        handle.mixed_step_latency(1024, 32, 1024, 2), **near
    )

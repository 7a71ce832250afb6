"""What the vLLM engine finds wrong before it needs vLLM."""

import os
import sys

import pytest

from helixreal.engines.engine import EngineSpec
from helixreal.engines.vllm_engine import VllmEngine, _arguments
from helixsim.errors import InputError

SPEC = {"start_layer": 0, "end_layer": 8, "num_layers": 8, "entry_layers": (0,)}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs the folder of a model"),
        ({"dtype": "int8"}, "there is no dtype 'int8'; there are float32, bfloat16, float16"),
        ({"options": {"wires": "sum"}}, "has no option 'wires'; it has gpu_memory_utilization"),
        ({"options": {"wire": "all"}}, "wire is both or sum, not 'all'"),
        ({"options": {"max_num_seqs": 0}}, "max_num_seqs must be a whole number above zero"),
        ({"options": {"max_num_seqs": "2"}}, "max_num_seqs must be a whole number above zero"),
    ],
)
def test_settings_that_no_engine_has(settings, message):
    with pytest.raises(InputError, match=message):
        VllmEngine(EngineSpec(**SPEC, **settings))


@pytest.mark.parametrize(
    ("device_type", "settings", "share"),
    [
        ("cuda", {"kv_memory_bytes": 1 << 30}, 0.01),
        ("cuda", {"kv_memory_bytes": 1 << 30, "options": {"gpu_memory_utilization": 0.5}}, 0.5),
        ("cuda", {}, None),
        ("cpu", {"kv_memory_bytes": 1 << 30}, None),
    ],
)
def test_workers_with_a_given_memory_can_share_a_gpu(device_type, settings, share):
    spec = EngineSpec(**SPEC, device=device_type, **settings)
    assert _arguments(spec, device_type, 8).get("gpu_memory_utilization") == share


def test_vllm_must_run_in_this_process():
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    with pytest.raises(InputError, match="VLLM_ENABLE_V1_MULTIPROCESSING=0"):
        VllmEngine(EngineSpec(**SPEC, model="model"))


def test_vllm_does_not_need_flashinfer_for_a_sampler_that_is_not_used(monkeypatch):
    monkeypatch.delitem(os.environ, "VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    with pytest.raises(InputError):
        VllmEngine(EngineSpec(**SPEC, model="nowhere"))
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_without_vllm_the_extra_is_named(monkeypatch):
    for name in ("vllm_model", "vllm_stage"):
        monkeypatch.delitem(sys.modules, f"helixreal.engines.{name}", raising=False)
        monkeypatch.delattr(f"helixreal.engines.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needs torch: pip install 'helixsim\[vllm\]'"):
        VllmEngine(EngineSpec(**SPEC, model="model"))

"""How well measured profiles reproduce the library's own times of whole steps.

Run it with a Python that has `aiconfigurator-core`:

    PYTHONPATH=.:tests python tests/tools/check_measured.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import aiconfigurator_core
import llm_architectures as architectures
from aiconfigurator_core.sdk.engine import EngineHandle

from helixsim.errors import InputError
from helixsim.hardware.gpu import Gpu, GpuMachine
from helixsim.profiles.sources.measured import MeasuredSource

CONFIGS = Path(aiconfigurator_core.__file__).parent / "model_configs"
GPUS = {
    "H100-SXM": "h100_sxm",
    "A100-80-SXM": "a100_sxm",
    "H200": "h200_sxm",
    "L40S": "l40s",
    "B200": "b200_sxm",
    "RTX-PRO-6000": "rtx_pro_6000_server",
}
LLMS = (
    (architectures.llama_8b(), "meta-llama--Meta-Llama-3.1-8B", 1),
    (architectures.llama_8b(weights="fp8", kv="fp8"), "meta-llama--Meta-Llama-3.1-8B", 1),
    (architectures.llama_70b(), "meta-llama--Meta-Llama-3.1-70B", 4),
    (architectures.qwen3_32b(), "Qwen--Qwen3-32B", 2),
    (architectures.mixtral_8x7b(), "mistralai--Mixtral-8x7B-v0.1", 2),
    (architectures.qwen3_30b_a3b(), "Qwen--Qwen3-30B-A3B", 1),
    (architectures.gpt_oss_120b(), "openai--gpt-oss-120b", 4),
    (architectures.deepseek_v3_without_dense_layers(), "deepseek-ai--DeepSeek-V3", 8),
)
PREFILLS = ((100, 0), (512, 0), (1000, 0), (2048, 0), (6000, 0), (512, 4096), (1500, 3000))
DECODES = ((1, 1024), (8, 700), (32, 1024), (100, 3000), (128, 1024), (256, 4096), (200, 400))
MIXED = ((512, 32, 512), (2048, 100, 2048))


def compiled(name: str, system: str, num_gpus: int, **modes: str) -> EngineHandle:
    with tempfile.TemporaryDirectory() as folder:
        text = (CONFIGS / f"{name}_config.json").read_text()
        (Path(folder) / "config.json").write_text(text)
        is_mixture = "experts" in text
        return EngineHandle.compile(
            *(folder, system, "vllm"),
            tp_size=num_gpus,
            moe_tp_size=num_gpus if is_mixture else 1,
            **modes,
        )


def step_ms(tables, architecture, chunk: int, before: int, decodes: int, context: int) -> float:
    """Milliseconds of a step without the gap before it."""
    tokens, sequences = chunk + decodes, decodes + (chunk > 0)
    stage = tables.stage(0, architecture.num_layers)
    layer = stage.layer_s(tokens, architecture.activation_bytes_per_token)
    layer += stage.attention_s(chunk, before, decodes, context)
    head_s = tables.head(sequences if decodes else 1)
    return 1000 * (architecture.num_layers * layer + tables.embedding(tokens) + head_s)


def main() -> None:
    print(
        "| LLM | GPUs | prefill | decode | mixed | worst |\n| --- | --- | --- | --- | --- | --- |"
    )
    for architecture, name, num_gpus in LLMS:
        for gpu, system in GPUS.items():
            title = f"{architecture.name} {architecture.weights.name}"
            sheet = Gpu(
                name=gpu, title=gpu, generation="", memory_bytes=1.0, memory_bytes_per_s=1.0
            )
            start = time.perf_counter()
            try:
                sourced = MeasuredSource()(architecture, GpuMachine(sheet, num_gpus))
            except InputError as error:
                print(f"| {title} | {gpu} x {num_gpus} | {error.message[:90]} |")
                continue
            seconds = time.perf_counter() - start
            modes = {"kvcache_quant_mode": "fp8"} if architecture.kv.name == "fp8" else {}
            if architecture.weights.name == "fp8" and "DeepSeek" not in name:
                modes["gemm_quant_mode"] = "fp8"
            handle = compiled(name, system, num_gpus, **modes)
            of_ours = partial(step_ms, sourced.tables, architecture)
            errors = {
                "prefill": [
                    of_ours(chunk, before, 0, 0)
                    / handle.predict_prefill_latency(1, chunk + before, before)
                    - 1
                    for chunk, before in PREFILLS
                ],
                "decode": [
                    of_ours(0, 0, count, context)
                    / handle.predict_decode_latency(count, context - 1)
                    - 1
                    for count, context in DECODES
                ],
                "mixed": [
                    of_ours(chunk, 0, count, isl + 1)
                    / handle.mixed_step_latency(chunk, count, isl, 2)
                    - 1
                    for chunk, count, isl in MIXED
                ],
            }
            cells = [
                f"{100 * sum(found) / len(found):+.1f} % ({100 * min(found):+.1f} to "
                f"{100 * max(found):+.1f})"
                for found in errors.values()
            ]
            worst = max(abs(error) for found in errors.values() for error in found)
            print(
                f"| {title} | {gpu} x {num_gpus} | {' | '.join(cells)} | {100 * worst:.1f} % | "
                f"{seconds:.2f} s | {sourced.source}",
                flush=True,
            )
            if "-v" in sys.argv:
                print({key: [f"{100 * e:.1f}" for e in found] for key, found in errors.items()})


if __name__ == "__main__":
    main()

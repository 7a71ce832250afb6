"""Write tests/measured/kernel_times.csv: step times that aiconfigurator-core measured.

Run it with a Python that has `aiconfigurator-core` (Apache-2.0); 0.12.0 gave the file that is kept.
Each row is one step of a whole LLM, in microseconds for each group of operators:

    python tests/tools/collect_kernel_times.py > tests/measured/kernel_times.csv
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

GPUS = {
    "A100-80-SXM": "a100_sxm",
    "H100-SXM": "h100_sxm",
    "H200": "h200_sxm",
    "B200": "b200_sxm",
    "L40S": "l40s",
    "RTX-PRO-6000": "rtx_pro_6000_server",
}
PAIRS = (
    ("llama-3.1-8b", "meta-llama--Meta-Llama-3.1-8B", (1, 2), ("bf16", "fp8")),
    ("llama-3.1-70b", "meta-llama--Meta-Llama-3.1-70B", (4, 8), ("bf16", "fp8")),
    ("qwen3-32b", "Qwen--Qwen3-32B", (2, 4), ("bf16",)),
    ("mixtral-8x7b", "mistralai--Mixtral-8x7B-v0.1", (2, 4), ("bf16",)),
    ("qwen3-30b-a3b", "Qwen--Qwen3-30B-A3B", (1, 2), ("bf16",)),
    ("gpt-oss-120b", "openai--gpt-oss-120b", (2, 4), ("mxfp4",)),
    ("deepseek-v3", "deepseek-ai--DeepSeek-V3", (8,), ("fp8",)),
)
"""LLM, its packaged configuration, tensor parallel degrees, formats of weights."""

LARGE = {"deepseek-v3": ("H200", "B200")}
"""GPUs eight of which hold the LLM."""

PREFILLS = ((128, 0), (512, 0), (1024, 0), (2048, 0), (4096, 0), (512, 4096))
DECODES = tuple((count, at) for count in (1, 8, 32, 128, 256) for at in (512, 2048, 8192))
GROUPS = ("matrices", "attention", "experts", "all_reduce", "elementwise", "embedding", "head")


PATTERNS = (
    (r"^ar_|_ar$|dispatch|allreduce", "all_reduce"),
    (r"^moe(_overlap)?$", "experts"),  # with the shared experts beside them,
    (r"^logits_gemm$", "head"),
    (r"_gemm$", "matrices"),
    (r"^(attention|mla_block)$", "attention"),  # with its projections,
    (r"^embedding$", "embedding"),
    (r"norm|act|^p2p$", "elementwise"),
)
"""What stands in an operator's name, and its group; the first that fits counts."""


def group_of(operator: str) -> str:
    """The group of an operator by its name."""
    name = operator.split("_", 1)[1]
    return next((group for pattern, group in PATTERNS if re.search(pattern, name)), "unknown")


def row(values: Iterable[Any]) -> list[str]:
    """Microseconds of each group, and the share of the time that was not modelled."""
    times: Counter[str] = Counter()
    measured = total = 0.0
    for operator, ms, _, source in values:
        times[group_of(operator)] += 1000 * ms
        total += ms
        measured += ms if source != "empirical" else 0.0
    if times["unknown"]:
        sys.exit("an operator of unknown kind")
    return [f"{times[group]:.4g}" for group in GROUPS] + [f"{measured / total:.2f}"]


def main() -> None:
    """Print the table."""
    logging.disable(logging.CRITICAL)
    import aiconfigurator_core
    from aiconfigurator_core.sdk.engine import EngineHandle

    packaged = Path(aiconfigurator_core.__file__).parent / "model_configs"
    print("# Step times of aiconfigurator-core 0.12.0 (Apache-2.0, NVIDIA), backend vllm, in us")
    print("gpu,llm,weights,num_gpus,phase,number,context," + ",".join(GROUPS) + ",measured")
    for gpu, system in GPUS.items():
        for llm, stem, degrees, formats in PAIRS:
            if gpu not in LARGE.get(llm, GPUS):
                continue
            for weights in formats:
                for degree in degrees:
                    with tempfile.TemporaryDirectory() as folder:
                        shutil.copy(packaged / f"{stem}_config.json", f"{folder}/config.json")
                        options: dict[str, Any] = {}
                        if weights == "fp8" and llm not in LARGE:
                            options["gemm_quant_mode"] = "fp8"
                        if llm[:4] in ("mixt", "gpt-", "deep") or "a3b" in llm:
                            options |= {"moe_tp_size": degree, "moe_ep_size": 1}
                        start = [gpu, llm, weights, f"{degree}"]
                        try:
                            engine = EngineHandle.compile(
                                folder, system, "vllm", tp_size=degree, **options
                            )
                            rows(engine, start)
                        except Exception as error:
                            print(*start, str(error)[:150], file=sys.stderr)


def rows(engine: Any, start: list[str]) -> None:
    """Print the rows of one LLM on one machine."""
    for tokens, before in PREFILLS:
        values, _ = engine.run_static_per_op(
            batch_size=1, isl=tokens + before, osl=1, prefix=before
        )
        print(*start, "prefill", tokens, before, *row(values), sep=",")
    for count, context in DECODES:
        # A request with `isl` tokens in the KV cache decodes its second token.
        _, values = engine.run_static_per_op(batch_size=count, isl=context - 1, osl=2)
        print(*start, "decode", count, context, *row(values), sep=",")


if __name__ == "__main__":
    main()

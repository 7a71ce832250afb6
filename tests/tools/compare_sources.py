"""Write tests/measured/tables_and_kernels.csv: two sources of measured times on the same pairs.

Operator tables of vLLM 0.19 on RTX PRO 6000 against kernels that aiconfigurator-core has of it.
Needs the reference data and that package:

    PYTHONPATH=.:tests python tests/tools/compare_sources.py > tests/measured/tables_and_kernels.csv
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import llm_architectures as llms

from helixsim.hardware.gpu import Gpu, GpuMachine
from helixsim.llms.architecture import Architecture
from helixsim.profiles.operators import OperatorTables
from helixsim.profiles.sources.measured import MeasuredSource
from helixsim.profiles.sources.operator_folder import TablesSource
from helixsim.profiles.whole_steps import WholeStep, kernels_s

PAIRS = (
    (llms.llama_8b(), "llama3.1-8b", 1),
    (llms.qwen3_32b(), "qwen3-32b", 1),
    (llms.qwen3_32b(), "qwen3-32b", 2),
    (llms.qwen3_30b_a3b(), "qwen3-30b-a3b", 1),
)
STEPS = (
    *(WholeStep(chunk=tokens) for tokens in (128, 512, 1024, 2048)),
    WholeStep(chunk=512, chunk_context=4096),
    *(
        WholeStep(decodes=count, decode_context=context)
        for count in (1, 8, 32, 128, 256)
        for context in (512, 1024, 4096)
    ),
    WholeStep(chunk=512, decodes=32, decode_context=1024),
    WholeStep(chunk=1024, decodes=64, decode_context=2048),
)
SHEET = Gpu(
    name="RTX-PRO-6000",
    title="RTX PRO 6000",
    generation="blackwell-rtx",
    memory_bytes=102e9,
    memory_bytes_per_s=1.8e12,
)


def without_exchange(tables: OperatorTables) -> OperatorTables:
    """The tables without all-reduces: the folders have none, so both sides go without."""
    return replace(tables, all_reduce=None, tensor_parallel=1)


def step_ms(tables: OperatorTables, architecture: Architecture, step: WholeStep) -> float:
    """Milliseconds of all layers."""
    size = architecture.activation_bytes_per_token
    return 1000 * kernels_s(tables, architecture.num_layers, size, step)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, default=Path("../shared/reference"))
    folder = parser.parse_args().reference / "operator_profiles" / "rtxpro6000"
    print("llm,gpus,chunk,chunk_context,decodes,decode_context,tables_ms,kernels_ms")
    for architecture, name, num_gpus in PAIRS:
        machine = GpuMachine(SHEET, num_gpus)
        sources = (TablesSource(folder / name / f"tp{num_gpus}"), MeasuredSource())
        found = [without_exchange(source(architecture, machine).tables) for source in sources]
        for step in STEPS:
            tables_ms, kernels_ms = (step_ms(tables, architecture, step) for tables in found)
            sizes = (step.chunk, step.chunk_context, step.decodes, step.decode_context)
            print(f"{name},{num_gpus},{','.join(map(str, sizes))},{tables_ms:.2f},{kernels_ms:.2f}")


if __name__ == "__main__":
    main()

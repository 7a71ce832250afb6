"""How far off each source of profiles is on the recorded runs of vLLM, as a table in Markdown.

Needs the reference data and, for measured times, `aiconfigurator-core`:

    PYTHONPATH=.:tests:tests/golden python tests/tools/replay_sources.py [--reference FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import llm_architectures as llms
from test_vllm_runs import RUNS, scenario_of

from helixsim.errors import InputError
from helixsim.hardware.catalogue import load_gpu
from helixsim.hardware.gpu import GpuMachine
from helixsim.profiles.library import load_llm
from helixsim.profiles.machine_documents import facts_of, machine_document
from helixsim.profiles.sources.all_reduce import with_all_reduce
from helixsim.profiles.sources.choice import profile_source
from helixsim.recorded.log_replay import replay_log
from helixsim.scenario.load import load_scenario
from helixsim.yaml_files import yaml_text

PAIRS = {
    "rtx4090-llama3.1-8b": (llms.llama_8b(), "RTX-4090"),
    "rtxpro6000x2-qwen3-32b": (llms.qwen3_32b(), "RTX-PRO-6000"),
}
LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
OWN_ALL_REDUCE = ("62 us", "20 GB/s")
"""Of the recorded machine with two GPUs, fitted with operator tables."""


def errors_of(reference: Path, run: str, source: str, *, own_all_reduce: bool) -> str:
    """A row of the table."""
    tables, _, num_gpus = RUNS[run]
    architecture, gpu = PAIRS[run]
    machine = GpuMachine(load_gpu(gpu), num_gpus)
    if source == "tables":
        source = f"tables:{reference / 'operator_profiles' / tables}"
    sourced = profile_source(source)(architecture, machine)
    if own_all_reduce:
        sourced = with_all_reduce(sourced, *OWN_ALL_REDUCE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenario_of(reference, run, folder)
        # The recording's KV capacity is in the engine file; here, it only has to fit.
        facts = facts_of(machine, architecture, name="machine", memory=f"{100 * num_gpus} GB")
        document = machine_document(load_llm(folder / "llm.yaml"), facts, sourced)
        (folder / "machine.yaml").write_text(yaml_text(document))
        result = replay_log(reference / "vllm_runs" / run, load_scenario(folder / "scenario.yaml"))
    means = " | ".join(f"{100 * result.error[each]['mean']:+.1f} %" for each in LATENCIES)
    p95 = " | ".join(f"{100 * result.error[each]['p95']:+.1f} %" for each in LATENCIES)
    return f"{means} | {p95}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, default=Path("../shared/reference"))
    reference = parser.parse_args().reference
    print("| run | source | TTFT | TPOT | end to end | TTFT p95 | TPOT p95 | end to end p95 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for run, (_, _, num_gpus) in RUNS.items():
        for source in ("tables", "measured", "roofline"):
            for own in (False, True):
                if own and (num_gpus == 1 or source == "tables"):
                    continue
                title = f"{source}, all-reduces of this machine" if own else source
                try:
                    row = errors_of(reference, run, source, own_all_reduce=own)
                except InputError as error:
                    row = error.message
                print(f"| {run} | {title} | {row} |", flush=True)


if __name__ == "__main__":
    main()

"""Simulated tokens per CPU second under the node scheduler `vllm`.

10,000 requests of 512 / 128 tokens at 6 a second, Llama-3.1-8B on RTX PRO 6000: one machine, or 4
with a quarter of the layers each. Step times come from the operator tables of the reference data.

    python tests/bench/today.py [--stages 1 4] [--repeats 5] [--reference ../shared/reference]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from helixsim import load_scenario, simulate
from helixsim.profiles.import_operators import ImportSettings, import_operators
from helixsim.yaml_files import yaml_text

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
NUM_REQUESTS, PER_S, PROMPT, OUTPUT = 10_000, 6, 512, 128


def scenario(reference: Path, folder: Path, num_stages: int):
    """The scenario, with its files in a folder."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    imported = import_operators(
        reference / "operator_profiles/rtxpro6000/llama3.1-8b/tp1",
        folder / "config.json",
        ImportSettings(name="PRO6000", memory="102 GB"),
        llm_name="llama8b",
    )
    assert imported.llm is not None
    (folder / "machine.yaml").write_text(imported.machine)
    (folder / "llm.yaml").write_text(imported.llm)
    (folder / "lengths.csv").write_text(f"input_tokens,output_tokens\n{PROMPT},{OUTPUT}\n")
    each = 32 // num_stages
    document = {
        "schema": 1,
        "name": "today",
        "llm": "llm.yaml",
        "machine_types": ["machine.yaml"],
        "cluster": {
            "coordinator": {"nic": "100 Gbit/s"},
            "nodes": [{"type": "PRO6000", "name": f"n{s}"} for s in range(num_stages)],
            "network": {"within": {"bandwidth": "10 Gbit/s", "latency": "0.1 ms"}},
        },
        "placement": {
            "layers": {f"n{s}": [s * each, (s + 1) * each] for s in range(num_stages)},
            "allow_overcommitted_layers": True,
        },
        "workload": {
            "mode": "online",
            "arrivals": "poisson",
            "lengths": "lengths.csv",
            "mean_tokens_per_s": PER_S * (PROMPT + OUTPUT),
            "mean_prompt_tokens": PROMPT,
            "mean_output_tokens": OUTPUT,
        },
        "physics": "calibrated",
        "run": {"duration": f"{NUM_REQUESTS / PER_S:.0f} s", "sample_interval": "10 s"},
    }
    (folder / "scenario.yaml").write_text(yaml_text(document))
    return load_scenario(folder / "scenario.yaml")


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reference", type=Path, default=Path("../shared/reference"))
    arguments = parser.parse_args()
    for num_stages in arguments.stages:
        rates = []
        with tempfile.TemporaryDirectory() as folder:
            made = scenario(arguments.reference, Path(folder), num_stages)
            for _ in range(arguments.repeats):
                began = time.process_time()
                requests = simulate(made).requests
                seconds = time.process_time() - began
                tokens = int(requests.prompt_tokens.sum() + requests.output_tokens.sum())
                rates.append(tokens / seconds / 1e6)
        print(
            f"{num_stages} stage(s): {len(requests)} requests, {tokens / 1e6:.2f} million tokens, "
            f"{statistics.median(rates):.2f} million per CPU second "
            f"({min(rates):.2f} to {max(rates):.2f})"
        )


if __name__ == "__main__":
    main()

"""Write the shipped LLM and machine files from the published figures.

    python tests/tools/restate_profiles.py <reference folder> [<folder to write to>]

What is not in the reference folder's tables stands at the head of this file.
"""

from __future__ import annotations

import csv
import sys
import textwrap
from pathlib import Path

SOURCE = "Helix (ASPLOS'25, arXiv 2406.01566), open artifact, Apache-2.0"

LLMS = {
    "llama1-30b": """\
num_layers: 60
hidden_size: 6656     # one token's activation: 6656 values of 2 bytes
bytes_per_value: 2
token_size: 2 B
layer_size: 1.0 GB
kv_size: 26624 B      # per token and layer: 52 heads x 128 values x 2 bytes, keys and values
""",
    "llama2-70b": """\
num_layers: 80
hidden_size: 8192     # one token's activation: 8192 values of 2 bytes
bytes_per_value: 2
token_size: 2 B
layer_size: 1.53 GB
kv_size: 4096 B       # per token and layer: 8 KV heads x 128 values x 2 bytes, keys and values
""",
}

MEMORY_GB = {"A100": 40, "V100": 16, "L4": 24, "L4x2": 48, "T4": 16, "T4x2": 32, "T4x4": 64}

# (typical layers, typical layers where machines are scarce, start performance)
PLANNER = {
    "llama1-30b": {
        "A100": (12, 18, 48),
        "V100": (4, 7, 25),
        "L4": (8, 11, 9),
        "L4x2": (14, 22, 15),
        "T4": (4, 7, 8),
        "T4x2": (10, 15, 15),
        "T4x4": (20, 30, 23),
    },
    "llama2-70b": {
        "A100": (8, 12, 80),
        "V100": (3, 4, 40),
        "L4": (4, 7, 20),
        "L4x2": (9, 14, 30),
        "T4": (3, 4, 12.5),
        "T4x2": (6, 9, 20),
        "T4x4": (12, 18, 30),
    },
}

# KV token-layers of the separate pipelines, which hold more layers than the planner allows.
OVERCOMMITTED = {
    ("llama2-70b", "A100"): {20: 491900},
    ("llama2-70b", "L4"): {10: 593600},
    ("llama2-70b", "T4"): {6: 216960, 7: 44800},
}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def flow(key: str, values: list[str], indent: int) -> str:
    """A list in flow style, wrapped, the entries aligned below the first."""
    head = f"{' ' * indent}{key}: ["
    return textwrap.fill(
        f"{head}{', '.join(values)}]",
        width=100,
        subsequent_indent=" " * len(head),
        break_long_words=False,
    )


def curve(name: str, rows: list[dict[str, str]]) -> str:
    """One latency profile."""
    tokens = [row["batch_tokens"] for row in rows]
    times = [row["layer_time_ms"].removesuffix(".0") for row in rows]
    return f"    {name}:\n{flow('tokens', tokens, 6)}\n{flow('ms', times, 6)}\n"


def limit(key: str, values: list[str]) -> str:
    """A batch limit: one number if it does not depend on the number of layers."""
    if len(set(values)) == 1:
        return f"      {key}: {values[0]}"
    return flow(key, values, 6)


def serving(reference: Path, llm: str, machine: str) -> str:
    """How a machine serves one LLM."""
    points = read_rows(reference / "profiles" / llm / f"{machine}.csv")
    prefill = [row for row in points if row["phase"] == "prompt"]
    decode = [row for row in points if row["phase"] == "decode"]
    rows = [
        row
        for row in read_rows(reference / "capacity.csv")
        if (row["model"], row["machine"]) == (llm, machine)
    ]
    overcommitted = OVERCOMMITTED.get((llm, machine), {})
    max_layers = rows[0]["max_layers"]
    layers = [row["layers"] for row in rows] + [str(count) for count in overcommitted]
    token_layers = [row["kv_token_layers"] for row in rows] + [
        str(value) for value in overcommitted.values()
    ]
    last = [rows[-1]] * len(overcommitted)
    columns = {
        key: [row[published] for row in rows + last]
        for key, published in {
            "max_prompts": "prompt_max_requests",
            "max_prompt_tokens": "prompt_max_tokens",
            "max_decode_tokens": "decode_max_tokens",
        }.items()
    }
    note = (
        f"    # Beyond {max_layers} layers: the published separate pipelines. Their batch limits\n"
        f"    # are not published; the limits of {max_layers} layers are used.\n"
        if overcommitted
        else ""
    )
    typical, crowded, performance = PLANNER[llm][machine]
    return (
        f"  {llm}:\n"
        + curve("prefill", prefill)
        + curve("decode", decode)
        + f"    max_layers: {max_layers}\n"
        + note
        + f"    kv:\n{flow('layers', layers, 6)}\n{flow('token_layers', token_layers, 6)}\n"
        + "    batch_limits:\n"
        + "".join(f"{limit(key, values)}\n" for key, values in columns.items())
        + "    planner:\n"
        + f"      typical_layers: {typical}\n"
        + f"      crowded_typical_layers: {crowded}\n"
        + f"      start_performance: {performance}\n"
    )


def head(kind: str, name: str) -> str:
    return f"schema: 1\nkind: {kind}\nname: {name}\nsource: {SOURCE}\n"


def hardware(machine: str) -> str:
    """The keys of its GPUs, for price and power."""
    kind, _, count = machine.partition("x")
    gpu = {"A100": "A100-40-SXM", "V100": "V100-16-SXM"}.get(kind, kind)
    return f"gpu: {gpu}\n" + (f"gpus: {count}\n" if count else "")


def machine_file(reference: Path, machine: str) -> str:
    """The text of a machine file."""
    return (
        head("machine", machine)
        + f"memory: {MEMORY_GB[machine]} GB\n"
        + "nic: 10 GB/s\n"
        + "disk: 1 GB/s\n"
        + hardware(machine)
        + "llms:\n"
        + "  # prefill, decode: measured ms of ONE layer against the tokens batched together;\n"
        + "  #   linear in between.\n"
        + "  # kv: for each number of layers held, the KV capacity in tokens x layers.\n"
        + "  # batch_limits: a number, or a list with one entry for each of kv.layers.\n"
        + "".join(serving(reference, llm, machine) for llm in LLMS)
    )


def restate(reference: Path, target: Path) -> None:
    """Write all files below `target`."""
    files = {f"llms/{name}.yaml": head("llm", name) + text for name, text in LLMS.items()}
    files |= {f"machines/{name}.yaml": machine_file(reference, name) for name in MEMORY_GB}
    for name, text in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    data = Path(__file__).parents[2] / "helixsim" / "profiles" / "data"
    restate(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else data)

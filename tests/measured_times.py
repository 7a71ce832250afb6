"""Step times that others measured, for comparison with the roofline.

Which GPUs the constants are fitted on was chosen before the first fit: one of each generation that
has measurements, so that most of the judged GPUs have a fitted relative. B200 has none:
RTX-PRO-6000 has its generation's name, but other tensor cores.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from architectures import measured_llm

from helixsim.llms.architecture import Architecture
from helixsim.profiles.import_operators import ImportSettings
from helixsim.profiles.operator_csv import OperatorFolder
from helixsim.profiles.operators import AllReduce, AttentionTable, ExpertTable
from helixsim.units import bytes_per_s, seconds

FITTED = ("V100-16-SXM", "A100-40-SXM", "A100-80-SXM", "L40S", "H100-SXM", "RTX-PRO-6000")
JUDGED = ("T4", "L4", "RTX-4090", "H200", "B200")

KERNELS = "aiconfigurator-core"
OPERATORS = "operator tables"

KERNEL_TIMES = Path(__file__).parent / "measured" / "kernel_times.csv"
PROMPT_TOKENS = 1000
"""Of each request in the published profiles; their decodes have as much context."""

MIN_WHOLE_MS = 5
"""Times of the published profiles in whole milliseconds are left out below this: rounding alone is
an error of more than 10 %."""

_HELIX_GPUS = {
    "A100": ("A100-40-SXM", 1),
    "V100": ("V100-16-SXM", 1),
    "L4": ("L4", 1),
    "L4x2": ("L4", 2),
    "T4": ("T4", 1),
    "T4x2": ("T4", 2),
    "T4x4": ("T4", 4),
}
_FOLDERS = {
    "rtx4090/llama3.1-8b/tp1": ("RTX-4090", "llama-3.1-8b", 1),
    "rtxpro6000/llama3.1-8b/tp1": ("RTX-PRO-6000", "llama-3.1-8b", 1),
    "rtxpro6000/qwen3-32b/tp1": ("RTX-PRO-6000", "qwen3-32b", 1),
    "rtxpro6000/qwen3-32b/tp2": ("RTX-PRO-6000", "qwen3-32b", 2),
    "rtxpro6000/qwen3-30b-a3b/tp1": ("RTX-PRO-6000", "qwen3-30b-a3b", 1),
}
_PREFILLS = (128, 512, 1024, 2048)
_DECODES = tuple((count, at) for count in (1, 8, 32, 128, 256) for at in (512, 2048, 8192))


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """One step that was measured.

    Attributes
    ----------
    source, gpu, llm, weights, num_gpus
        Where, and what ran.
    phase, number, context
        ``prefill``: tokens of one chunk, and those before it. ``decode``: requests, and the context
        of each.
    seconds
        Its time.
    groups
        Of its operators, where they are known apart.
    prompts
        Prompts that make up the tokens of a prefill.
    is_layer
        Whether it is the time of one layer, rather than of the whole LLM.
    has_sampler
        Whether the time contains the sampler.
    """

    source: str
    gpu: str
    llm: str
    weights: str
    num_gpus: int
    phase: str
    number: int
    context: int
    seconds: float
    groups: dict[str, float] = field(default_factory=dict)
    prompts: int = 1
    is_layer: bool = False
    has_sampler: bool = True

    @property
    def set(self) -> str:
        """Whether the constants may be fitted on it."""
        return "fitted" if self.gpu in FITTED else "judged"

    @property
    def architecture(self) -> Architecture:
        """The LLM."""
        return measured_llm(self.llm, self.weights)


def kernel_steps() -> Iterator[MeasuredStep]:
    """Steps of aiconfigurator-core; see tests/tools/collect_kernel_times.py."""
    with KERNEL_TIMES.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        for row in rows:
            times = {name: 1e-6 * float(row[name]) for name in _GROUPS}
            yield MeasuredStep(
                source=KERNELS,
                gpu=row["gpu"],
                llm=row["llm"],
                weights=row["weights"],
                num_gpus=int(row["num_gpus"]),
                phase=row["phase"],
                number=int(row["number"]),
                context=int(row["context"]),
                seconds=sum(times.values()),
                groups=times,
                has_sampler=False,
            )


_GROUPS = ("matrices", "attention", "experts", "all_reduce", "elementwise", "embedding", "head")


def helix_steps(reference: Path) -> Iterator[MeasuredStep]:
    """Layers of the published profiles (vLLM 0.4, 2024)."""
    for file in sorted((reference / "profiles").glob("*/*.csv")):
        gpu, num_gpus = _HELIX_GPUS[file.stem]
        with file.open(encoding="utf-8", newline="") as opened:
            for row in csv.DictReader(opened):
                number, ms = int(row["batch_tokens"]), float(row["layer_time_ms"])
                prefill = row["phase"] == "prompt"
                wanted = 128 <= number <= 4096 if prefill else 1 <= number <= 256
                if not wanted or (ms == int(ms) and ms < MIN_WHOLE_MS):
                    continue
                yield MeasuredStep(
                    source="Helix profiles",
                    gpu=gpu,
                    llm=file.parent.name,
                    weights="bf16",
                    num_gpus=num_gpus,
                    phase="prefill" if prefill else "decode",
                    number=number,
                    context=0 if prefill else PROMPT_TOKENS,
                    seconds=ms / 1000,
                    prompts=-(-number // PROMPT_TOKENS) if prefill else 1,
                    is_layer=True,
                )


def operator_steps(reference: Path) -> Iterator[MeasuredStep]:
    """Steps that operator tables (vLLM 0.19) add up to.

    The all-reduces of two GPUs are those of a recorded run on the same GPUs, from which
    `import-operators` has its defaults.
    """
    settings = ImportSettings(name="", memory="")
    all_reduce = AllReduce(
        seconds(settings.all_reduce_latency), bytes_per_s(settings.all_reduce_bandwidth)
    )
    for name, (gpu, llm, num_gpus) in _FOLDERS.items():
        measured = OperatorFolder(reference / "operator_profiles" / name)
        architecture = measured_llm(llm)
        dense, embedding, final_norm = measured.dense()
        head = measured.head()
        (chunk, before, decodes, contexts), times = measured.attention()
        attention = AttentionTable(chunk, before, decodes, contexts, times)
        experts = None
        if architecture.kinds[0].experts is not None:
            (tokens, used), expert_times = measured.experts()
            kind = architecture.kinds[0].experts
            experts = ExpertTable(
                kind.num_experts, kind.experts_per_token, tokens, used, expert_times
            )
        points = [("prefill", tokens, 0) for tokens in _PREFILLS]
        points += [("decode", *point) for point in _DECODES]
        for phase, number, context in points:
            if number > (chunk[-1] if phase == "prefill" else decodes[-1]):
                continue
            cell = (number, 0, 0, 0) if phase == "prefill" else (0, 0, number, context)
            layer_s = dense(number) + attention(*cell)
            layer_s += experts(number) if experts else 0.0
            size = number * architecture.activation_bytes_per_token
            reduce_s = 2 * all_reduce(size, num_gpus) if num_gpus > 1 else 0.0
            once_s = embedding(number) + final_norm(number)
            yield MeasuredStep(
                source=OPERATORS,
                gpu=gpu,
                llm=llm,
                weights="bf16",
                num_gpus=num_gpus,
                phase=phase,
                number=number,
                context=context,
                seconds=architecture.num_layers * (layer_s + reduce_s)
                + once_s
                + head(1 if phase == "prefill" else number),
                groups={"all_reduce": architecture.num_layers * reduce_s},
            )


def all_steps(reference: Path) -> list[MeasuredStep]:
    """All measurements."""
    return [*kernel_steps(), *helix_steps(reference), *operator_steps(reference)]

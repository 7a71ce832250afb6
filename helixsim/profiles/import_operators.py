"""Machine files and LLM files from a folder of operator measurements."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helixsim.errors import InputError, ScenarioError
from helixsim.hardware.catalogue import load_gpu
from helixsim.profiles.library import load_llm
from helixsim.profiles.machine import LLM
from helixsim.profiles.memory import usable_share
from helixsim.profiles.model_config import ModelSizes, read_model_config
from helixsim.profiles.operator_csv import DEFAULT_SKEW, OperatorFolder
from helixsim.profiles.operators import OperatorCurve
from helixsim.profiles.spec import KvSpec, LLMSpec, MachineSpec
from helixsim.units import num_bytes
from helixsim.yaml_files import parse_yaml, validate, yaml_text

DEFAULT_GAP = "100 us"
"""With it, a simulated run of vLLM 0.19 on an RTX 4090 keeps pace with the recorded one as long as
both run the same requests (27 s, 900 steps). Without it, it gains 0.4 % of the time."""


def memory_of_gpus(folder: Path, num_gpus: int) -> str | None:
    """The memory of a machine, if a folder on the way to its measurements is named after a GPU."""
    for part in reversed(folder.absolute().parts):
        with suppress(ScenarioError):  # no GPU, or several variants of one
            return f"{load_gpu(part).memory_bytes / 1e9 * num_gpus:g} GB"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """What the measurements do not say.

    Attributes
    ----------
    name
        Name of the machine type.
    memory, nic, disk
        Of the whole machine, with units.
    tensor_parallel
        GPUs that share each layer.
    all_reduce_latency, all_reduce_bandwidth
        Costs of an all-reduce among them, with units.
    step_gap
        Time between two steps in which the GPU waits, with a unit.
    memory_share
        Usable share of the memory, for weights and KV caches. None for what vLLM takes by default:
        0.9, less what it keeps for activations and CUDA graphs (:func:`.memory.usable_share`).
    source
        Source of the figures; empty for the folder.
    """

    name: str
    memory: str
    nic: str = "10 Gbit/s"
    disk: str = "2 GB/s"
    tensor_parallel: int = 1
    all_reduce_latency: str = "62 us"
    all_reduce_bandwidth: str = "20 GB/s"
    step_gap: str = DEFAULT_GAP
    memory_share: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class ImportedOperators:
    """Texts of the files.

    Attributes
    ----------
    machine
        The machine file.
    llm
        The LLM file; None if the LLM was a file already.
    """

    machine: str
    llm: str | None


def import_operators(
    folder: str | Path, llm: str | Path, settings: ImportSettings, *, llm_name: str = ""
) -> ImportedOperators:
    """Turn a folder of operator measurements into files.

    Parameters
    ----------
    folder
        Measurements, as :mod:`helixsim.profiles.operator_csv` describes them.
    llm
        A ``config.json`` or its folder; or an LLM file, or the name of a shipped LLM.
    settings
        What the measurements do not say.
    llm_name
        Name of the LLM, if it is a ``config.json``.

    Raises
    ------
    InputError
        If a file cannot be used; with its place.
    """
    measured = OperatorFolder(folder)
    degree = re.fullmatch(r"tp([0-9]+)", measured.folder.resolve().name)
    if degree is not None and int(degree[1]) != settings.tensor_parallel:
        raise InputError(
            f"these were measured with a tensor parallel degree of {degree[1]} by the folder's "
            f"name, not {settings.tensor_parallel}",
            file=measured.folder,
        )
    sizes = read_model_config(llm) if _is_config(llm) else None
    if sizes is None:
        value, text = load_llm(llm), None
    else:
        text = _llm_text(sizes, llm_name, f"{llm}")
        value = validate(LLMSpec, parse_yaml(text, "LLM file"), None).to_llm()
    machine = _machine_text(measured, value, sizes, settings)
    return ImportedOperators(machine, text)


def _is_config(llm: str | Path) -> bool:
    return Path(llm).suffix == ".json" or Path(llm).is_dir()


def _llm_text(sizes: ModelSizes, name: str, source: str) -> str:
    value_bytes = sizes.bytes_per_value
    document = {
        "schema": 1,
        "kind": "llm",
        "name": name,
        "source": f"sizes from {source}",
        "num_layers": sizes.num_layers,
        "hidden_size": sizes.hidden_size,
        "bytes_per_value": value_bytes,
        "layer_size": f"{sizes.layer_values * value_bytes} B",
        "kv_size": f"{sizes.kv_values * value_bytes} B",
        "once_size": f"{sizes.once_values * value_bytes} B",
    }
    # One key a line; YAML reads JSON values.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in document.items()]
    return "\n".join(lines) + "\n"


def _machine_text(
    measured: OperatorFolder, llm: LLM, sizes: ModelSizes | None, settings: ImportSettings
) -> str:
    operators, limits = _operators(measured, sizes, settings)
    serving: dict[str, Any] = {"operators": operators}
    memory_bytes = num_bytes(settings.memory)
    share = settings.memory_share
    if share is None:
        share = usable_share(memory_bytes, settings.tensor_parallel)
    kv = KvSpec(from_memory=_rounded(share))
    if by_count := kv.token_layers_by_count(memory_bytes, llm):
        serving["max_layers"] = max(by_count)
    serving |= {"kv": {"from_memory": _rounded(share)}, "batch_limits": limits}
    document = {
        "schema": 1,
        "kind": "machine",
        "name": settings.name,
        "source": settings.source or f"operator times in {measured.folder}",
        "memory": settings.memory,
        "nic": settings.nic,
        "disk": settings.disk,
        "llms": {llm.name: serving},
    }
    text = yaml_text(document)
    validate(MachineSpec, parse_yaml(text, "machine file"), None).to_machine_type({llm.name: llm})
    return _with_comments(text, measured)


def _operators(
    measured: OperatorFolder, sizes: ModelSizes | None, settings: ImportSettings
) -> tuple[dict[str, Any], dict[str, int]]:
    """The block of operators, and the batch limits of what was measured."""
    dense, embedding, final_norm = measured.dense()
    axes, times = measured.attention()
    skew = measured.decode_skew()
    document: dict[str, Any] = {
        "dense": _curve(dense),
        "embedding": _curve(embedding),
        "final_norm": _curve(final_norm),
        "head": _curve(measured.head()),
        "attention": {
            **dict(zip(_ATTENTION_AXES, map(list, axes), strict=True)),
            "ms": _ms(times),
        },
        "decode_skew": _rounded(DEFAULT_SKEW if skew is None else skew),
        "tensor_parallel": settings.tensor_parallel,
        "step_gap": settings.step_gap,
    }
    if settings.tensor_parallel > 1:
        document["all_reduce"] = {
            "latency": settings.all_reduce_latency,
            "bandwidth": settings.all_reduce_bandwidth,
        }
    experts = _experts(measured, sizes)
    if experts:
        document["experts"] = experts
    limits = {
        "max_prompts": axes[2][-1],
        "max_prompt_tokens": dense.tokens[-1],
        "max_decode_tokens": axes[2][-1],
        "max_decode_context": axes[2][-1] * axes[3][-1],
    }
    return document, limits


_ATTENTION_AXES = ("chunk", "chunk_context", "decodes", "decode_context")


def _experts(measured: OperatorFolder, sizes: ModelSizes | None) -> dict[str, Any] | None:
    if not measured.has("moe"):
        if sizes is not None and sizes.num_experts:
            message = "has no moe.csv (or moe.csv.gz), but the LLM has experts"
            raise InputError(message, file=measured.folder)
        return None
    if sizes is None or not sizes.num_experts:
        raise InputError(
            "has times of experts (moe), but the LLM has none; give the config.json of an LLM with "
            "experts",
            file=measured.folder,
        )
    (tokens, experts), times = measured.experts()
    return {
        "num_experts": sizes.num_experts,
        "experts_per_token": sizes.experts_per_token,
        "tokens": list(tokens),
        "experts": list(experts),
        "ms": _ms(times),
    }


def _with_comments(text: str, measured: OperatorFolder) -> str:
    """The text with a comment above the skew, which says what it is."""
    origin = (
        "median of the measured ones" if measured.has("skew_fit") else "a typical value, unmeasured"
    )
    comment = (
        r"\1# Decodes with uneven contexts take t(mean) + decode_skew x (t(longest) - t(mean))"
        f"\n\\1# ({origin}).\n\\1decode_skew:"
    )
    return re.sub(r"^( +)decode_skew:", comment, text, count=1, flags=re.MULTILINE)


def _curve(curve: OperatorCurve) -> dict[str, Any]:
    return {"tokens": list(curve.tokens), "ms": _ms(curve.seconds)}


def _ms(seconds: Sequence[float]) -> list[float]:
    return [_rounded(1000 * value) for value in seconds]


def _rounded(value: float) -> float:
    """To four significant digits: measurements scatter more."""
    return float(f"{value:.4g}")

"""Machine files, and machine types, from operator tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helixsim.hardware.gpu import GpuMachine
from helixsim.llms.architecture import Architecture
from helixsim.profiles.machine import LLM, MachineType
from helixsim.profiles.memory import reserved_bytes, usable_share
from helixsim.profiles.operator_documents import operators_document, rounded
from helixsim.profiles.operators import OperatorTables
from helixsim.profiles.sources.source import SourcedTables
from helixsim.profiles.spec import KvSpec, MachineSpec
from helixsim.units import num_bytes
from helixsim.yaml_files import validate


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What a machine file says besides times.

    Attributes
    ----------
    name
        Name of the machine type.
    memory, nic, disk
        Of the whole machine, with units.
    memory_share
        Usable share of the memory, for weights and KV caches; None for what vLLM takes by default:
        0.9, less what it keeps for activations and CUDA graphs (:func:`.memory.usable_share`).
    kv_copies
        How many times the machine stores each token's keys and values.
    dollars_per_hour, watts
        Price and power of the whole machine; None if they are not known.
    """

    name: str
    memory: str
    nic: str = "10 Gbit/s"
    disk: str = "2 GB/s"
    memory_share: float | None = None
    kv_copies: float = 1.0
    dollars_per_hour: float | None = None
    watts: float | None = None


def facts_of(machine: GpuMachine, architecture: Architecture, **facts: Any) -> MachineFacts:  # noqa: ANN401 (of MachineFacts)
    """The facts of a machine with these GPUs, for an LLM.

    Parameters
    ----------
    machine, architecture
        The pair.
    facts
        Other attributes of :class:`MachineFacts`, instead of the defaults.
    """
    own: dict[str, Any] = {
        "name": machine.name,
        "memory": f"{machine.memory_bytes / 1e9:g} GB",
        "memory_share": usable_share(
            machine.memory_bytes,
            machine.num_gpus,
            reserved=reserved_bytes(architecture, machine.num_gpus),
        ),
        "kv_copies": kv_copies(architecture, machine.num_gpus),
        "dollars_per_hour": _times(machine.num_gpus, machine.gpu.dollars_per_hour),
        "watts": _times(machine.num_gpus, machine.gpu.power_w),
    }
    return MachineFacts(**(own | facts))


def _times(num_gpus: int, each: float | None) -> float | None:
    return None if each is None else num_gpus * each


def kv_copies(architecture: Architecture, num_gpus: int) -> float:
    """How many times tensor parallelism stores each token's keys and values: the mean by size."""
    sizes = [architecture.kv_bytes_per_token(layer) for layer in architecture.layers]
    copies = [layer.attention.kv_copies(num_gpus) for layer in architecture.layers]
    stored = sum(size * copy for size, copy in zip(sizes, copies, strict=True))
    return stored / sum(sizes)


def machine_document(
    llm: LLM,
    facts: MachineFacts,
    sourced: SourcedTables,
    *,
    operators: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A machine file.

    Parameters
    ----------
    llm
        The LLM that the machine serves.
    facts
        What is known of the machine.
    sourced
        Times of its operators.
    operators
        The block `operators` of these times, if it is to have other units or comments.

    Raises
    ------
    InputError
        If the memory is no size.
    """
    tables = sourced.tables
    serving: dict[str, Any] = {
        "figures": sourced.kind,
        "operators": operators or operators_document(tables),
    }
    memory_bytes = num_bytes(facts.memory)
    share = facts.memory_share
    if share is None:
        share = usable_share(memory_bytes, tables.tensor_parallel)
    kv: dict[str, Any] = {"from_memory": rounded(share)}
    if facts.kv_copies != 1:
        kv["copies"] = rounded(facts.kv_copies)
    spec = KvSpec(**kv)
    if by_count := spec.token_layers_by_count(spec.memory(memory_bytes, llm)):
        serving["max_layers"] = max(by_count)
    serving |= {"kv": kv, "batch_limits": _batch_limits(tables)}
    return {
        "schema": 1,
        "kind": "machine",
        "name": facts.name,
        "source": sourced.source,
        "memory": facts.memory,
        "nic": facts.nic,
        "disk": facts.disk,
        **{
            key: value
            for key in ("dollars_per_hour", "watts")
            if (value := getattr(facts, key)) is not None
        },
        "llms": {llm.name: serving},
    }


def machine_type_of(llm: LLM, facts: MachineFacts, sourced: SourcedTables) -> MachineType:
    """The machine type of such a file, without the file.

    Raises
    ------
    InputError
        If the memory is too small for a layer and a KV cache.
    """
    document = machine_document(llm, facts, sourced)
    return validate(MachineSpec, document, None).to_machine_type({llm.name: llm})


def _batch_limits(tables: OperatorTables) -> dict[str, int]:
    """What was measured."""
    kinds = tables.kinds
    decodes = min(kind.attention.decodes[-1] for kind in kinds)
    context = min(kind.attention.decode_context[-1] for kind in kinds)
    return {
        "max_prompts": decodes,
        "max_prompt_tokens": min(kind.dense.tokens[-1] for kind in kinds),
        "max_decode_tokens": decodes,
        "max_decode_context": decodes * context,
    }

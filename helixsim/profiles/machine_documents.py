"""Machine files, and machine types, from operator tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helixsim.hardware.gpu import GpuMachine
from helixsim.llms.architecture import Architecture
from helixsim.profiles.machine import LLM, MachineType
from helixsim.profiles.operator_documents import operators_document, rounded
from helixsim.profiles.operators import OperatorTables
from helixsim.profiles.sources.source import SourcedTables
from helixsim.profiles.spec import KvSpec, MachineSpec
from helixsim.units import num_bytes
from helixsim.yaml_files import validate

USABLE_SHARE = 0.9
"""Share of a GPU's memory that vLLM takes by default."""

RESERVED_BYTES = 1.25e9
"""What vLLM keeps of each GPU beside weights and KV cache, with steps of 2,048 tokens: vLLM 0.19
left room for 41,408 tokens of Llama-3.1-8B in 0.9 x 25.25 GB of an RTX 4090."""

_LEAST_SHARE = 0.1


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
        :data:`USABLE_SHARE`, less what it keeps for activations and CUDA graphs
        (:data:`RESERVED_BYTES`).
    kv_copies
        How many times the machine stores each token's keys and values.
    """

    name: str
    memory: str
    nic: str = "10 Gbit/s"
    disk: str = "2 GB/s"
    memory_share: float | None = None
    kv_copies: float = 1.0


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
        "kv_copies": kv_copies(architecture, machine.num_gpus),
    }
    return MachineFacts(**(own | facts))


def kv_copies(architecture: Architecture, num_gpus: int) -> float:
    """How many times tensor parallelism stores each token's keys and values: the mean by size."""
    sizes = [architecture.kv_bytes_per_token(layer) for layer in architecture.layers]
    copies = [layer.attention.kv_copies(num_gpus) for layer in architecture.layers]
    stored = sum(size * copy for size, copy in zip(sizes, copies, strict=True))
    return stored / sum(sizes)


def usable_share(memory_bytes: float, num_gpus: int) -> float:
    """Share of a machine's memory for weights and KV caches, as vLLM has it by default."""
    return max(USABLE_SHARE - RESERVED_BYTES * num_gpus / memory_bytes, _LEAST_SHARE)


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
    if by_count := KvSpec(**kv).token_layers_by_count(memory_bytes, llm):
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

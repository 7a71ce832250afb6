"""Costs of a serving engine in addition to its kernels, and engine files.

One class is both the file and the value: :class:`EngineCosts` has the parameters of the
``calibrated`` performance model, each with its key in an engine file; :class:`EngineFile` adds the
source of the figures and the errors of their fit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from helixsim.profiles.library import load_named, shipped_names
from helixsim.profiles.spec import Count, Name
from helixsim.yaml_files import (
    BytesPerSecond,
    FileModel,
    Seconds,
)

PROTOTYPE_ENGINE = "helix-prototype"
VLLM_ENGINE = "vllm"
DATA = Path(__file__).parent / "data"

Batching = Literal["separate", "mixed"]
Cost = Annotated[Seconds, Field(ge=0, le=10)]
Rate = Annotated[BytesPerSecond, Field(gt=0)]

_OLD_KEYS = {
    "per_further_request": "per_sequence_overhead",
    "several_decodes": "multi_sequence_overhead",
    "max_batched_tokens": "max_num_batched_tokens",
}


def _with_new_keys(data: Any) -> Any:  # noqa: ANN401 - any content of a file
    """Accept the old keys, for one version."""
    if not isinstance(data, Mapping):
        return data
    for old, new in _OLD_KEYS.items():
        if old in data and new not in data:
            warnings.warn(
                f"engine files: '{old}' is now called '{new}'; the old key goes in version 0.3",
                FutureWarning,
                stacklevel=2,
            )
            data = {new if key == old else key: value for key, value in data.items()}
    return data


class _Costs(FileModel):
    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _accept_old_keys(cls, data: Any) -> Any:  # noqa: ANN401
        return _with_new_keys(data)


class GpuCosts(_Costs):
    """Costs that differ between machine types."""

    prefill_scale: Annotated[float, Field(ge=0.05, le=20)] = Field(
        default=1.0, description="Time of a prefill, as a multiple of the machine's profile."
    )
    layer_pass_s: Cost = Field(
        default=0.0,
        alias="per_layer_and_pass",
        description="Host time for each layer of each pass, in addition to the kernels.",
    )
    prefill_pass_s: Cost = Field(
        default=0.0,
        alias="per_prefill_pass",
        description="Additional host time for each layer of a pass with prefills.",
    )
    multi_sequence_overhead_s: Cost = Field(
        default=0.0,
        alias="multi_sequence_overhead",
        description="Additional time per layer of a pass of two or more decodes; a single "
        "decode does not have it.",
    )
    kv_read_bytes_per_s: Rate | None = Field(
        default=None,
        alias="kv_read_bandwidth",
        description="Bandwidth at which attention reads the KV cache: of the GPU's memory. "
        "Default: context costs no time.",
    )
    output_pass_s: Cost = Field(
        default=0.0,
        alias="per_output_pass",
        description="Time of a pass after the LLM's last layer: LM head, sampler, results.",
    )


class KnownRange(FileModel):
    """The range of the recordings; outside this range the engine extrapolates."""

    machine_types: Annotated[tuple[str, ...], Field(strict=False)]
    llms: Annotated[tuple[str, ...], Field(strict=False)]
    max_in_flight: Count = Field(description="The most requests in flight at once.")
    max_prompt_tokens: Count
    max_context_tokens: Count
    max_decode_tokens_per_s: Annotated[float, Field(ge=0)] = Field(
        description="The highest decode throughput over a minute."
    )


class RecordedFit(FileModel):
    """Errors of the engine for a recorded run, as shares of the recorded figures."""

    run: str
    scenario: str
    held_out: bool = Field(default=False, description="Whether the run was held out from the fit.")
    decode_tokens_per_s: float | None
    decode_latency_mean: float | None
    decode_latency_p50: float | None
    decode_latency_p95: float | None
    prompt_latency_mean: float | None


class EngineCosts(_Costs):
    """A serving engine: batching, limits and host costs.

    Costs are in seconds, rates in bytes per second. A worker receives the messages that have
    arrived, runs one step, and sends the finished requests. Between the kernels, its host launches
    work, copies hidden states and handles messages.
    """

    name: Name = "ideal"
    scheduler: Annotated[str, Field(min_length=1)] = Field(
        default="vllm",
        description="Node scheduler that makes up the steps: `vllm`, `prototype`, or one of your "
        "own ([recipes](recipes.md)). A scenario's `scheduler.node` goes first.",
    )
    max_num_seqs: Count = Field(
        default=256, description="`vllm`: the most requests that a node runs at once."
    )
    max_num_batched_tokens: Count = Field(
        default=4096,
        description="`vllm`: the most tokens in a step; longer prefills are split. `prototype`: "
        "the most prompt tokens in a pass; with mixed batching, prompt tokens and decodes. A "
        "longer prompt runs in a pass of its own.",
    )
    enable_prefix_caching: bool = Field(
        default=True,
        description="`vllm`: whether KV blocks are found again by other requests with the same "
        "first tokens, and by a request that was preempted. On nodes that hold all layers.",
    )
    async_scheduling: bool = Field(
        default=True,
        description="`vllm`: whether the host composes a step, and pays its cost, while the step "
        "before it runs.",
    )
    scheduling: Literal["fcfs", "priority"] = Field(
        default="fcfs",
        description="`vllm`: whether requests are admitted in order of arrival, or by priority.",
    )
    kv_tokens: Count | None = Field(
        default=None,
        description="`vllm`: measured KV capacity of every node, in tokens on all of its layers, "
        "instead of what the machine type says.",
    )
    step_host_s: Cost = Field(
        default=0.0,
        alias="per_step",
        description="Host time of a step: hidden behind the GPU with async scheduling, added to "
        "each step without.",
    )
    all_reduce_latency_s: Cost | None = Field(
        default=None,
        alias="all_reduce_latency",
        description="Latency of an all-reduce, instead of what the machine type says.",
    )
    batching: Batching = Field(
        default="separate",
        description="`prototype`: with `separate`, a step runs its prefills in one pass, its "
        "decodes in a second; with `mixed`, one pass runs both.",
    )
    per_sequence_overhead_s: Cost = Field(
        default=0.0,
        alias="per_sequence_overhead",
        description="Host time per layer for each decode of a pass except the first.",
    )
    prompt_s: Cost = Field(
        default=0.0,
        alias="per_prompt",
        description="Host time per layer for each prompt of a pass.",
    )
    kv_block_s: Cost = Field(
        default=0.0,
        alias="per_kv_block",
        description="Host time per layer for each KV block of a decode, to build the table of "
        "blocks.",
    )
    profile_context_tokens: Count = Field(
        default=1000, description="Context per request in the measurement of decode profiles."
    )
    copy_bytes_per_s: Rate = Field(
        default=1e12,
        alias="copy_bandwidth",
        description="Bandwidth of copies of hidden states to and from the GPU.",
    )
    send_bytes_per_s: Rate = Field(
        default=1e12,
        alias="send_bandwidth",
        description="Bandwidth at which a machine sends messages.",
    )
    message_s: Cost = Field(
        default=0.0, alias="per_message", description="Time to send one message."
    )
    poll_layer_s: Cost = Field(
        default=0.0,
        alias="poll_per_layer",
        description="Time per layer of one polling round. An idle worker polls continuously, "
        "one round after another.",
    )
    delivery_jitter_s: Cost = Field(
        default=0.0,
        alias="delivery_jitter",
        description="Mean of the exponential delay between arrival and receipt of a message.",
    )
    gpus: dict[Name, GpuCosts] = Field(default_factory=dict, alias="machine_types")
    other_gpus: GpuCosts = Field(default=GpuCosts(), alias="other_machine_types")
    known: KnownRange | None = Field(default=None, alias="valid_for")

    def for_machine(self, machine_type: str) -> GpuCosts:
        """The costs of a machine type."""
        return self.gpus.get(machine_type, self.other_gpus)


IDEAL_ENGINE = EngineCosts()
"""An engine without costs in addition to its kernels."""


class EngineFile(EngineCosts):
    """An engine file."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["engine"]
    name: Name
    source: str = Field(default="", description="Source of the figures.")
    fit: Annotated[tuple[RecordedFit, ...], Field(strict=False)] = ()


def shipped_engines() -> tuple[str, ...]:
    """Names of the engines that ship with helixsim, sorted."""
    return shipped_names(DATA)


def load_engine(name_or_path: str | Path, base_dir: str | Path = ".") -> EngineFile:
    """Load an engine.

    Parameters
    ----------
    name_or_path
        The name of a shipped engine, or the path of a file (it ends in ``.yaml`` or ``.yml``).
    base_dir
        Folder to which a relative path refers.

    Raises
    ------
    ScenarioError
        If there is no such engine, or its file has errors.
    """
    return load_named(EngineFile, DATA, "engine", name_or_path, base_dir)[0]

"""Engine files: costs of a serving engine, errors of their fit, and range of validity."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from helixsim.errors import ScenarioError
from helixsim.physics.engine import Batching, EngineCosts, GpuCosts, KnownRange
from helixsim.profiles.spec import Count, Name
from helixsim.yaml_files import (
    BytesPerSecond,
    FileModel,
    Seconds,
    did_you_mean,
    read_yaml,
    validate,
)

DEFAULT_ENGINE = "helix-prototype"
DATA = Path(__file__).parent / "data"

Cost = Annotated[Seconds, Field(ge=0, le=10)]
Rate = Annotated[BytesPerSecond, Field(gt=0)]


class GpuSection(FileModel):
    """Costs that differ between machine types."""

    prefill_scale: Annotated[float, Field(ge=0.05, le=20)] = Field(
        default=1.0, description="Time of a prefill, as a multiple of the machine's profile."
    )
    per_layer_and_pass: Cost = Field(
        default=0.0,
        description="Host time for each layer of each pass, in addition to the kernels.",
    )
    several_decodes: Cost = Field(
        default=0.0,
        description="Additional time per layer of a pass of two or more decodes.",
    )
    kv_read_bandwidth: Rate | None = Field(
        default=None,
        description="Bandwidth at which attention reads the KV cache: of the GPU's memory. "
        "Default: context costs no time.",
    )

    def to_costs(self) -> GpuCosts:
        """Turn it into a value."""
        return GpuCosts(
            prefill_scale=self.prefill_scale,
            layer_pass_s=self.per_layer_and_pass,
            several_decodes_s=self.several_decodes,
            kv_read_bytes_per_s=self.kv_read_bandwidth or inf,
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


class Validity(FileModel):
    """The range of the recordings; outside this range the engine extrapolates."""

    machine_types: Annotated[tuple[str, ...], Field(strict=False)]
    llms: Annotated[tuple[str, ...], Field(strict=False)]
    max_in_flight: Count
    max_prompt_tokens: Count
    max_context_tokens: Count
    max_decode_tokens_per_s: Annotated[float, Field(ge=0)]

    def to_range(self) -> KnownRange:
        """Turn it into a value."""
        return KnownRange(**self.model_dump())


class EngineFile(FileModel):
    """An engine file."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["engine"]
    name: Name
    source: str = Field(default="", description="Source of the figures.")
    batching: Batching = Field(
        default="separate",
        description="`separate`: a step runs its prefills in one pass, its decodes in a second. "
        "`mixed`: one pass runs both, as engines with chunked prefill do.",
    )
    max_batched_tokens: Count = Field(
        default=4096,
        description="The most prompt tokens in a pass; with mixed batching, prompt tokens and "
        "decodes. A longer prompt runs in a pass of its own.",
    )
    per_further_request: Cost = Field(
        default=0.0, description="Host time per layer for each decode of a pass except the first."
    )
    per_prompt: Cost = Field(
        default=0.0, description="Host time per layer for each prompt of a pass."
    )
    profile_context_tokens: Count = Field(
        default=1000, description="Context per request in the measurement of decode profiles."
    )
    copy_bandwidth: Rate = Field(
        default=1e12, description="Bandwidth of copies of hidden states to and from the GPU."
    )
    send_bandwidth: Rate = Field(
        default=1e12, description="Bandwidth at which a machine sends messages."
    )
    per_message: Cost = Field(default=0.0, description="Time to send one message.")
    poll_per_layer: Cost = Field(
        default=0.0, description="Time per layer of one polling round of an idle worker."
    )
    delivery_jitter: Cost = Field(
        default=0.0,
        description="Mean of the exponential delay between arrival and receipt of a message.",
    )
    machine_types: dict[Name, GpuSection] = Field(default_factory=dict)
    other_machine_types: GpuSection = GpuSection()
    valid_for: Validity | None = None
    fit: Annotated[tuple[RecordedFit, ...], Field(strict=False)] = ()

    def to_costs(self) -> EngineCosts:
        """Turn it into a value."""
        return EngineCosts(
            name=self.name,
            batching=self.batching,
            max_batched_tokens=self.max_batched_tokens,
            further_request_s=self.per_further_request,
            prompt_s=self.per_prompt,
            profile_context_tokens=self.profile_context_tokens,
            copy_bytes_per_s=self.copy_bandwidth,
            send_bytes_per_s=self.send_bandwidth,
            message_s=self.per_message,
            poll_layer_s=self.poll_per_layer,
            delivery_jitter_s=self.delivery_jitter,
            gpus={name: section.to_costs() for name, section in self.machine_types.items()},
            other_gpus=self.other_machine_types.to_costs(),
            known=None if self.valid_for is None else self.valid_for.to_range(),
        )


def shipped_engines() -> tuple[str, ...]:
    """Names of the engines that ship with helixsim, sorted."""
    return tuple(sorted(path.stem for path in DATA.glob("*.yaml")))


def load_engine(name_or_path: str | Path, base_dir: str | Path = ".") -> EngineCosts:
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
    return load_engine_file(name_or_path, base_dir).to_costs()


def load_engine_file(name_or_path: str | Path, base_dir: str | Path = ".") -> EngineFile:
    """Load an engine file with all its contents; as :func:`load_engine`."""
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        file = Path(base_dir) / name_or_path
    elif str(name_or_path) in shipped_engines():
        file = DATA / f"{name_or_path}.yaml"
    else:
        raise ScenarioError(
            f"no engine '{name_or_path}' ships with helixsim; "
            f"{did_you_mean(str(name_or_path), shipped_engines())} "
            "(for your own file, give its path, ending in .yaml)"
        )
    return validate(EngineFile, read_yaml(file), file)

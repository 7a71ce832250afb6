"""The keys of a scenario file, and their conversion to values."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from helixsim.control.lateness import LateRequests
from helixsim.control.node_schedulers.composition import AUTO, Auto, StepLimits
from helixsim.profiles.spec import Count, Name
from helixsim.scenario.cluster_spec import ClusterSpec
from helixsim.scenario.generator_spec import GeneratorSpec
from helixsim.scenario.resolved import (
    HIGH_WATER_MARKS,
    PRESETS,
    FlowSplit,
    KvAdmission,
    KvSettings,
    Mode,
    Preset,
    RunSettings,
    SchedulerSettings,
)
from helixsim.scenario.section_specs import FaultsSpec, PlacementSpec, Price, SloSpec
from helixsim.traces.arrivals import SLOT_S
from helixsim.yaml_files import FileModel, Seconds, located_error

DEFAULT_LENGTHS = "azure-conversation"
DEFAULT_ARRIVALS = "azure-conversation"

FileName = Annotated[str, Field(min_length=1, max_length=4096)]
"""Path of a file, relative to the folder of the scenario file."""

Share = Annotated[float, Field(gt=0, le=1)]
Duration = Annotated[Seconds, Field(gt=0, le=1e7)]
Interval = Annotated[Seconds, Field(ge=0.001)]


# -- cluster and placement: in the scenario, or in separate files -----------------------------
# Tags of unions are in angle brackets so that none is the name of a key in the file.


class ClusterInFile(FileModel):
    """A cluster in a file of its own."""

    file: FileName


class GeneratedCluster(FileModel):
    """A cluster that is generated."""

    generate: Annotated[
        Annotated[FileName, Tag("<file>")] | Annotated[GeneratorSpec, Tag("<inline>")],
        Discriminator(lambda value: "<file>" if isinstance(value, str) else "<inline>"),
    ] = Field(description="The generator's settings, or a generator file.")


class PlacementInFile(FileModel):
    """A placement in a file of its own."""

    file: FileName
    allow_overcommitted_layers: bool | None = Field(
        default=None, description="In place of the value in the file."
    )


def _section_shape(value: object) -> str:
    if isinstance(value, ClusterInFile | PlacementInFile):
        return "<file>"
    if isinstance(value, GeneratedCluster):
        return "<generate>"
    keys = value if isinstance(value, dict) else {}
    return next((f"<{key}>" for key in ("file", "generate") if key in keys), "<inline>")


ClusterSection = Annotated[
    Annotated[ClusterInFile, Tag("<file>")]
    | Annotated[GeneratedCluster, Tag("<generate>")]
    | Annotated[ClusterSpec, Tag("<inline>")],
    Discriminator(_section_shape),
]
PlacementSection = Annotated[
    Annotated[PlacementInFile, Tag("<file>")] | Annotated[PlacementSpec, Tag("<inline>")],
    Discriminator(_section_shape),
]


# -- scheduler -------------------------------------------------------------------------------


class KvSpec(FileModel):
    """Admission by the use of the KV caches (`maxflow`, `adaptive`)."""

    admission: KvAdmission | None = Field(
        default=None,
        description="`expected`: a request counts with its prompt and an expected answer, from "
        "admission to its end. `exact`: with the tokens that it holds, and a margin that follows "
        "the growth; where they run out nevertheless, the last request is preempted. `published`: "
        "`expected`; `tuned`: `exact`.",
    )
    high_water_mark: Share | None = Field(
        default=None,
        description="Admission limit: the largest share of a node's KV cache that may be in use, "
        "or be expected to be. With `expected`: 0.85; with `exact`: 0.97.",
    )
    expected_output_ratio: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0,
        description="Expected output tokens of a request, as a multiple of "
        "`workload.mean_output_tokens`.",
    )


class StepSpec(FileModel):
    """What one step of a node may take, beside the limits of its batches."""

    max_prefill_tokens: Count | Literal["auto", "all"] | None = Field(
        default=None,
        description="The most prefill tokens; more where many chunks wait. `auto`: the tokens of a "
        "chunk, no limit with whole prefills; `all`: no limit. `published`: `all`; `tuned`: "
        "`auto`.",
    )
    max_decodes: Count | Literal["auto", "all"] | None = Field(
        default=None,
        description="The most decodes; `auto`: a quarter of the requests that live on the node; "
        "`all`: no limit. `published`: `all`; `tuned`: `auto`.",
    )
    max_wait: Annotated[Seconds, Field(ge=0, le=10)] | Literal["auto"] | None = Field(
        default=None,
        description="How long a step of decodes waits for others that follow at once; `auto`: up "
        "to a quarter of the usual step; `0 s`: it does not. `published`: `0 s`; `tuned`: `auto`.",
    )

    def to_limits(self, preset: StepLimits) -> StepLimits:
        """Turn it into a value, with the preset's where nothing is said."""
        limits = preset
        if self.max_prefill_tokens is not None:
            limits = replace(limits, max_prefill_tokens=_number(self.max_prefill_tokens))
        if self.max_decodes is not None:
            limits = replace(limits, max_decodes=_number(self.max_decodes))
        if self.max_wait is not None:
            limits = replace(limits, max_wait_s=self.max_wait)
        return limits


def _number(value: int | str) -> int | Auto | None:
    """A number of tokens or requests, `auto`, or None for a word that stands for no limit."""
    if isinstance(value, int):
        return value
    return AUTO if value == AUTO else None


ExtensionName = Annotated[str, Field(min_length=1, max_length=200)]
"""Name of an extension; the registries say whether there is one."""


class SchedulerSpec(FileModel):
    """Settings of the scheduler."""

    preset: Preset = Field(
        default="tuned",
        description="Settings for all keys that are not given: `published`, as the Helix paper has "
        "them, or `tuned`; see [scheduling](scheduling.md).",
    )
    policy: ExtensionName | None = Field(
        default=None,
        description="Routing policy: `maxflow`, `adaptive`, `swarm`, `random`, `shortest_queue`, "
        "`least_kv`, `prefix_aware`, or one of your own ([recipes](recipes.md)); see "
        "[physics](physics.md#scheduling). `published`: `maxflow`; `tuned`: `adaptive`.",
    )
    node: ExtensionName | None = Field(
        default=None,
        description="Node scheduler, which composes the steps of a node: `paper`, `prototype`, or "
        "one of your own ([recipes](recipes.md)). Default: the physics profile's scheduler.",
    )
    kv: KvSpec = Field(default=KvSpec(), description="Admission by the use of the KV caches.")
    step: StepSpec = Field(default=StepSpec(), description="What a step of a node may take.")
    feed_high_water_mark: Share | None = Field(
        default=None,
        description="Offline, `maxflow`: the load generator sends more requests while the KV cache "
        "use of the fullest layer, as admission counts it, is at most this share; 0.8 if not "
        "given.",
    )
    min_flow_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05,
        description="`maxflow`: successors with less than this share of a node's flow are ignored.",
    )
    flow_split: FlowSplit | None = Field(
        default=None,
        description="`maxflow`, `adaptive`: which of all maximum flows to follow: `published`, the "
        "one that the published algorithm finds, or `balanced`, which spreads requests evenly and "
        "avoids slow links. With the preset `published`: the first; with `tuned`: the second.",
    )
    prefill_chunk_tokens: Count | Literal["auto", "whole"] | None = Field(
        default=None,
        description="The most tokens of a prefill in one pass; a longer prefill takes several "
        "passes. `auto`: a number that suits the machines; `whole`: a single pass. `published`: "
        "`whole`; `tuned`: `auto`.",
    )
    stream_chunks: bool | None = Field(
        default=None,
        description="Whether the chunks of a prefill leave back to back; otherwise each leaves "
        "when the one before has returned. `published`: false; `tuned`: true.",
    )
    max_waiting: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        default=None,
        description="The most requests that wait for room in the KV caches; further ones are "
        "rejected. If not given: no request waits with the paper's physics, all wait with the "
        "calibrated.",
    )

    late_requests: LateRequests = Field(
        default="serve",
        description="A request whose first token would come later than the strictest `ttft` of "
        "`slo`: `serve` it in its turn, let it `wait` until no other waits, or `refuse` it.",
    )

    def to_settings(self) -> SchedulerSettings:
        """Turn it into a value."""
        preset = PRESETS[self.preset]
        admission = self.kv.admission or preset.kv.admission
        chunk_tokens = preset.prefill_chunk_tokens
        if self.prefill_chunk_tokens is not None:
            chunk_tokens = _number(self.prefill_chunk_tokens)
        streams = preset.stream_chunks if self.stream_chunks is None else self.stream_chunks
        return SchedulerSettings(
            preset=self.preset,
            policy=self.policy or preset.policy,
            node=self.node,
            kv=KvSettings(
                admission=admission,
                high_water_mark=self.kv.high_water_mark or HIGH_WATER_MARKS[admission],
                expected_output_ratio=self.kv.expected_output_ratio,
            ),
            step=self.step.to_limits(preset.step),
            feed_high_water_mark=self.feed_high_water_mark or preset.feed_high_water_mark,
            min_flow_share=self.min_flow_share,
            flow_split=self.flow_split or preset.flow_split,
            prefill_chunk_tokens=chunk_tokens,
            stream_chunks=streams and chunk_tokens is not None,
            late_requests=self.late_requests,
            max_waiting=preset.max_waiting if self.max_waiting is None else self.max_waiting,
        )


# -- workload --------------------------------------------------------------------------------


class GammaSpec(FileModel):
    """Gamma-distributed gaps between arrivals."""

    cv: Annotated[float, Field(ge=0.01, le=20)] = Field(
        description="Standard deviation of the gaps over their mean: 1 is Poisson, more is bursty."
    )


class GammaArrivalsSpec(FileModel):
    """Arrivals with gamma-distributed gaps."""

    gamma: GammaSpec


class SlotsSpec(FileModel):
    """A file that counts arrivals in slots of time."""

    file: FileName
    length: Duration = SLOT_S


class SlotArrivalsSpec(FileModel):
    """Arrivals by counts in slots of time."""

    slots: SlotsSpec


def _arrivals_shape(value: object) -> str:
    if isinstance(value, str):
        return "<name>"
    slots = "slots" in value if isinstance(value, dict) else isinstance(value, SlotArrivalsSpec)
    return "<slots>" if slots else "<gamma>"


ArrivalsEntry = Annotated[
    Annotated[FileName, Tag("<name>")]
    | Annotated[GammaArrivalsSpec, Tag("<gamma>")]
    | Annotated[SlotArrivalsSpec, Tag("<slots>")],
    Discriminator(_arrivals_shape),
]


class SharedPrefixSpec(FileModel):
    """Prompts begin with one of several texts."""

    tokens: Count = Field(
        description="Length of each text. It is part of the prompt, whose length stays the same; a "
        "shorter prompt is the beginning of a text."
    )
    prompts: Count = Field(description="Number of texts; each is equally likely.")


class ConversationsSpec(FileModel):
    """Requests are turns of conversations."""

    turns: Annotated[int, Field(ge=1, le=1000)] = Field(
        description="Turns of each conversation. The prompt of a turn is the whole conversation so "
        "far and a new prompt; `lengths` are of the new prompt and of the answer."
    )
    think_time: Seconds = Field(
        default=20.0, description="Time from the last token of an answer to the next turn."
    )


class WorkloadSpec(FileModel):
    """The requests of users and their arrivals."""

    mode: Mode
    initial_requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=20, description="Offline: number of requests that start the closed loop."
    )
    spacing: Seconds = Field(
        default=0.1,
        description="Offline: time between two of the initial requests, and between the end of a "
        "request and the next arrival.",
    )
    lengths: FileName | None = Field(
        default=None,
        description=f"Lengths of requests: a built-in name or a file; {DEFAULT_LENGTHS} if "
        "neither this nor a trace is given.",
    )
    max_prompt_tokens: Count | None = Field(
        default=None, description="Requests with longer prompts are excluded."
    )
    max_output_tokens: Count | None = Field(
        default=None, description="Requests with longer answers are excluded."
    )
    arrivals: ArrivalsEntry | None = Field(
        default=None,
        description="Online: poisson, gamma, a built-in pattern, or a file of counts in slots of "
        f"3 s; {DEFAULT_ARRIVALS} if neither this nor a trace is given.",
    )
    mean_tokens_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None, description="Online: requested prompt and output tokens per second."
    )
    trace: FileName | None = Field(
        default=None, description="Online: a file of requests with arrival times."
    )
    trace_format: ExtensionName | None = Field(
        default=None,
        description="Format of the trace: `azure`, `mooncake`, `bailian`, `burstgpt`, `vidur`, or "
        "one of your own ([recipes](recipes.md)). If not given, its columns tell.",
    )
    rate_scale: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=1.0, description="Online: factor on the arrival rate of a trace."
    )
    shared_prefix: SharedPrefixSpec | None = Field(
        default=None,
        description="What prompts begin with, for [prefix caches](traces.md#shared-prefixes); for "
        "the requests of a trace, where its columns do not tell it.",
    )
    conversations: ConversationsSpec | None = Field(
        default=None,
        description="Online, without a trace: conversations instead of single requests. "
        "`arrivals` are the arrivals of first turns.",
    )
    mean_prompt_tokens: Count = Field(
        default=750, description="Prompt tokens of the mean request, for the throughput estimate."
    )
    mean_output_tokens: Count = Field(
        default=240, description="Output tokens of the mean request, for the throughput estimate."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.trace is not None:
            self._check_trace()
        elif self.mode == "online":
            if self.mean_tokens_per_s is None:
                raise located_error(
                    "mean_tokens_per_s",
                    "this key is missing: an online workload needs it, or a trace",
                )
            if self.rate_scale != 1:
                raise located_error(
                    "rate_scale", "is for a trace; set mean_tokens_per_s for other arrivals"
                )
        if self.conversations is not None and self.mode == "offline":
            raise located_error("conversations", "are for an online workload; this one is offline")
        if self.trace is None and self.trace_format is not None:
            raise located_error("trace_format", "is for a trace; there is none")
        return self

    def _check_trace(self) -> None:
        if self.mode == "offline":
            raise located_error(
                "trace",
                "an offline workload is a closed loop without arrival times; set mode to "
                "online, or give the trace as lengths",
            )
        for key in ("lengths", "arrivals", "mean_tokens_per_s", "conversations"):
            if getattr(self, key) is not None:
                raise located_error(key, "conflicts with the trace; give one of the two")


# -- run and the whole -----------------------------------------------------------------------


class RunSpec(FileModel):
    """Length of the run and sampling."""

    seed: Annotated[int, Field(ge=0, le=2**63)] = 0
    warmup: Seconds = Field(default=0.0, description="Left out of the metrics.")
    duration: Duration = Field(description="Time during which requests are sent, warm-up included.")
    drain: bool = Field(default=False, description="Go on until every request has ended.")
    sample_interval: Interval = Field(default=10.0, description="Between samples of gauges.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup >= self.duration:
            raise located_error(
                "warmup",
                f"must be below the duration of {self.duration:g} s, which it is a part of, but "
                f"is {self.warmup:g} s",
            )
        return self

    def to_settings(self) -> RunSettings:
        """Turn it into a value."""
        return RunSettings(
            seed=self.seed,
            warmup_s=self.warmup,
            duration_s=self.duration,
            drain=self.drain,
            sample_interval_s=self.sample_interval,
        )


class ScenarioSpec(FileModel):
    """A scenario file."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Name
    description: str = ""
    llm: FileName = Field(description="Name of a shipped LLM, or a file ending in .yaml.")
    machine_types: Annotated[tuple[FileName, ...], Field(strict=False)] = Field(
        default=(), description="Files of machine types besides the shipped ones."
    )
    cluster: ClusterSection
    placement: PlacementSection | None = Field(
        default=None, description="The layers of each node; required to run, not to plan."
    )
    scheduler: SchedulerSpec = SchedulerSpec()
    workload: WorkloadSpec
    faults: FaultsSpec = FaultsSpec()
    physics: ExtensionName = Field(
        default="paper",
        description="Performance model: `paper`, `calibrated`, or one of your own "
        "([recipes](recipes.md)).",
    )
    engine: FileName | None = Field(
        default=None,
        description="The serving engine, for the calibrated physics: the name of a shipped "
        "engine, or a file ending in .yaml, such as `helixsim calibrate` writes. Default: "
        "`helix-prototype` if all machine types are from the Helix paper, otherwise `vllm`.",
    )
    run: RunSpec
    slo: dict[Name, SloSpec] = Field(
        default={}, description="Service-level objectives: class -> limits."
    )
    dollars_per_hour: dict[Name, Price] = Field(
        default={},
        description="Machine type -> price of one machine; for all types of the cluster, or none.",
    )

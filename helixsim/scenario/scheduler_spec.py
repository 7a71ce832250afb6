"""The keys of the section `scheduler` of a scenario, and their conversion."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from helixsim.control.lateness import LateRequests
from helixsim.control.node_schedulers.composition import AUTO, Auto, StepLimits
from helixsim.profiles.spec import Count
from helixsim.scenario.keys import ExtensionName, Share
from helixsim.scenario.scheduler_settings import (
    HIGH_WATER_MARKS,
    PRESETS,
    FlowSplit,
    KvAdmission,
    KvSettings,
    Preset,
    SchedulerSettings,
)
from helixsim.yaml_files import FileModel, Seconds


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
        description="`maxflow`, `adaptive`: successors with less than this share of a node's flow "
        "are ignored. With the calibrated physics, half of an equal share is enough in any case, "
        "and nodes that hold the whole LLM are never ignored.",
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
        "the objectives for it: `serve` it in its turn, let it `wait` until no other waits, or "
        "`refuse` it.",
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

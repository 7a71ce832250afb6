"""The settings of the scheduler of a scenario, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from helixsim.control.lateness import LateRequests
from helixsim.control.node_schedulers.composition import AUTO, NO_LIMITS, Auto, StepLimits

Preset = Literal["published", "tuned"]
KvAdmission = Literal["expected", "exact"]
FlowSplit = Literal["published", "balanced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSettings:
    """Admission by the use of the KV caches.

    Attributes
    ----------
    admission
        ``expected``: a request counts with its prompt and an expected answer from admission to its
        end. ``exact``: with the tokens that it holds, and a margin for growth.
    high_water_mark
        Share of a node's KV cache that may be in use.
    expected_output_ratio
        Expected output tokens of a request, over the mean.
    """

    admission: KvAdmission = "expected"
    high_water_mark: float = 0.85
    expected_output_ratio: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """Settings of the scheduler.

    Attributes
    ----------
    policy
        Name of the routing policy, see :data:`helixsim.control.routing.POLICIES`.
    node
        Name of the node scheduler, see :data:`helixsim.control.node_schedulers.NODE_SCHEDULERS`;
        None for the one that goes with the physics.
    kv
        Expectations about the KV caches.
    feed_high_water_mark
        Offline, one more request is sent while the fullest node is expected to use no more than
        this share of its KV cache.
    min_flow_share
        A successor with less than this share of a node's flow is left out.
    flow_split
        Which of all maximum flows to follow: ``published``, the one that the published algorithm
        finds, or ``balanced``, see :mod:`helixsim.placement.balanced_flow`.
    preset
        Where the other settings come from: ``published`` or ``tuned``.
    prefill_chunk_tokens
        The most prompt tokens in one pass of a prefill: ``auto`` for a number that suits the
        machines, None for whole prefills.
    stream_chunks
        Whether the chunks of a prefill leave back to back; otherwise each when the one before has
        returned.
    step
        What one step of a node may take.
    max_waiting
        The most requests that wait for room in KV caches; further ones are rejected. None for the
        default of the physics: no request waits in ``paper``, all wait in ``calibrated``.
    late_requests
        What becomes of requests whose first token would come later than their SLO allows:
        ``serve``, ``wait`` or ``refuse``.
    """

    policy: str = "maxflow"
    node: str | None = None
    kv: KvSettings = KvSettings()
    feed_high_water_mark: float = 0.8
    min_flow_share: float = 0.05
    flow_split: str = "published"
    preset: Preset = "published"
    prefill_chunk_tokens: int | Auto | None = None
    stream_chunks: bool = False
    step: StepLimits = NO_LIMITS
    max_waiting: int | None = None
    late_requests: LateRequests = "serve"


HIGH_WATER_MARKS: Mapping[KvAdmission, float] = {"expected": 0.85, "exact": 0.97}
"""The share of a KV cache that may be in use, by how admission counts."""

PRESETS: Mapping[Preset, SchedulerSettings] = {
    "published": SchedulerSettings(),
    "tuned": SchedulerSettings(
        preset="tuned",
        policy="adaptive",
        flow_split="balanced",
        kv=KvSettings(admission="exact", high_water_mark=HIGH_WATER_MARKS["exact"]),
        prefill_chunk_tokens=AUTO,
        stream_chunks=True,
        step=StepLimits(max_prefill_tokens=AUTO, max_decodes=AUTO, max_wait_s=AUTO),
    ),
}
"""The settings that a preset stands for."""

"""A scenario as the simulator uses it: frozen, complete, every name resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from helixsim.cluster import Cluster
from helixsim.physics.engine import IDEAL_ENGINE, EngineCosts
from helixsim.placement.placement import Placement
from helixsim.profiles.machine import LLM, MachineProfile, MachineType
from helixsim.traces.arrivals import SLOT_S
from helixsim.traces.lengths import LengthModel
from helixsim.traces.patterns import ArrivalPattern
from helixsim.traces.values import Lengths, Trace

Mode = Literal["offline", "online"]
FlowSplit = Literal["published", "balanced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSettings:
    """What the coordinator expects of the KV caches when it admits a request.

    Attributes
    ----------
    high_water_mark
        Share of a node's KV cache that may be expected to be in use.
    expected_output_ratio
        Output tokens to expect of a request, over the mean.
    """

    high_water_mark: float = 0.85
    expected_output_ratio: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """Settings of admission, routing and batching.

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
        Successors with less than this share of a node's flow are ignored.
    flow_split
        Which of all maximum flows to follow: ``published``, the one that the published algorithm
        finds, or ``balanced``, see :mod:`helixsim.placement.balanced_flow`.
    prefill_chunk_tokens
        The most prompt tokens in one pass of a prefill; None for whole prefills.
    max_waiting
        The most requests that may wait for room in the KV caches; further requests are rejected.
        None for the default of the physics: none in ``paper``, all in ``calibrated``.
    """

    policy: str = "maxflow"
    node: str | None = None
    kv: KvSettings = KvSettings()
    feed_high_water_mark: float = 0.8
    min_flow_share: float = 0.05
    flow_split: str = "published"
    prefill_chunk_tokens: int | None = None
    max_waiting: int | None = None


@dataclass(frozen=True, slots=True)
class SlotArrivals:
    """Arrivals as counted in slots of time: `counts` in each slot of `slot_s` seconds."""

    counts: tuple[int, ...]
    slot_s: float = SLOT_S


@dataclass(frozen=True, slots=True)
class PatternArrivals:
    """Arrivals that follow a built-in pattern."""

    pattern: ArrivalPattern


@dataclass(frozen=True, slots=True)
class PoissonArrivals:
    """Arrivals with exponential gaps."""


@dataclass(frozen=True, slots=True)
class GammaArrivals:
    """Arrivals with gamma-distributed gaps; `cv` is their standard deviation over their mean."""

    cv: float


Arrivals = SlotArrivals | PatternArrivals | PoissonArrivals | GammaArrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests of the users: lengths and arrival times.

    Attributes
    ----------
    mode
        ``offline``: a closed loop; the end of a request triggers another. ``online``: an open
        loop; requests arrive at given times.
    lengths
        Source of the lengths of requests, limits applied. None with a trace.
    arrivals
        Online without a trace: when requests arrive; scaled to `mean_tokens_per_s`.
    trace
        Online: requests with their own times and lengths, limits applied, times as in the file
        (the run divides them by `rate_scale`).
    initial_requests
        Offline: how many requests start the loop.
    spacing_s
        Offline: time between two of the initial requests, and from an end to the next request.
    mean_tokens_per_s
        Online without a trace: requested prompt and output tokens per second.
    mean_prompt_tokens, mean_output_tokens
        Lengths of the mean request that throughput is estimated for.
    rate_scale
        Online with a trace: factor on the arrival rate.
    """

    mode: str
    lengths: Lengths | LengthModel | None = None
    arrivals: Arrivals | None = None
    trace: Trace | None = None
    initial_requests: int = 20
    spacing_s: float = 0.1
    mean_tokens_per_s: float | None = None
    mean_prompt_tokens: int = 750
    mean_output_tokens: int = 240
    rate_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How long to simulate and what to record.

    Attributes
    ----------
    seed
        Of all randomness.
    warmup_s
        Time from the start that is left out of the metrics; below `duration_s`.
    duration_s
        Duration of load generation, warm-up included.
    drain
        Go on after `duration_s` until every request has ended.
    sample_interval_s
        Time between two samples of gauges such as KV usage.
    """

    seed: int = 0
    warmup_s: float = 0.0
    duration_s: float
    drain: bool = False
    sample_interval_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A node that fails `at_s` after the start of load generation.

    It restarts and loads its layers `duration_s` later; None for never.
    """

    node: str
    at_s: float
    duration_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The nodes that fail, and the time until the coordinator detects a failure."""

    detection_s: float = 3.0
    events: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """A class of service-level objectives: limits for each request; None for no limit.

    Attributes
    ----------
    name
        Name of the class.
    ttft_s
        Longest time to the first token, from arrival.
    tpot_s
        Longest mean time per output token after the first.
    e2e_s
        Longest time from arrival to the last token.
    share
        Share of the finished requests that must meet all limits.
    """

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All inputs of a simulation.

    Attributes
    ----------
    name
        For titles and file names.
    llm
        The LLM that is served.
    machine_types
        Name -> machine type: the types of the cluster, in order of appearance, then the scenario's
        own types that the cluster does not use. The types of the cluster have a profile for the
        LLM.
    cluster
        The machines and their network.
    placement
        The layers of each node; None if the scenario has no placement.
    scheduler, workload, run
        Settings.
    physics
        Name of the performance model, see
        :data:`helixsim.physics.performance_model.PERFORMANCE_MODELS`.
    faults
        Nodes that fail.
    engine
        Costs of the serving engine, for the ``calibrated`` physics.
    slos
        Classes of service-level objectives, in order of their names.
    dollars_per_hour
        Machine type -> price of one machine; empty if the scenario has no prices.
    document
        The scenario file as plain data, with values from the command line. Files are included by
        their names.
    digest
        SHA-256, as hex digits, of the document with the contents of the files that it names.
        It is independent of the paths of these files.
    """

    name: str
    llm: LLM
    machine_types: Mapping[str, MachineType]
    cluster: Cluster
    placement: Placement | None
    scheduler: SchedulerSettings
    workload: Workload
    physics: str
    run: RunSettings
    document: Mapping[str, object]
    digest: str
    faults: Faults = Faults()
    engine: EngineCosts = IDEAL_ENGINE
    slos: tuple[Slo, ...] = ()
    dollars_per_hour: Mapping[str, float] = field(default_factory=dict)

    def profiles(self) -> dict[str, MachineProfile]:
        """Machine type -> its profile for the LLM, for the types of the cluster."""
        return {
            name: self.machine_types[name].profiles[self.llm.name]
            for name in self.cluster.machine_mix()
        }

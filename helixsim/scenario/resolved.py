"""A scenario, frozen and complete, with every name resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from helixsim.cluster import Cluster
from helixsim.control.lateness import LateRequests
from helixsim.control.node_schedulers.composition import AUTO, NO_LIMITS, Auto, StepLimits
from helixsim.display import placement_image, placement_plot, short_text, table_html
from helixsim.errors import InputError
from helixsim.physics.engine import IDEAL_ENGINE, EngineCosts
from helixsim.placement.placement import Placement
from helixsim.profiles.machine import LLM, MachineProfile, MachineType
from helixsim.registry import by_path
from helixsim.scenario.plain import plain_data
from helixsim.scenario.scenario_text import scenario_rows
from helixsim.traces.arrivals import SLOT_S
from helixsim.traces.lengths import LengthModel
from helixsim.traces.patterns import ArrivalPattern
from helixsim.traces.values import Lengths, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["offline", "online"]
Preset = Literal["published", "tuned"]
KvAdmission = Literal["expected", "exact"]
FlowSplit = Literal["published", "balanced"]

IN_MEMORY = "<dict>"
"""Stands for the file of a scenario that was built from a dict."""


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
        kv=KvSettings(admission="exact", high_water_mark=HIGH_WATER_MARKS["exact"]),
        prefill_chunk_tokens=AUTO,
        stream_chunks=True,
        step=StepLimits(max_prefill_tokens=AUTO, max_decodes=AUTO, max_wait_s=AUTO),
    ),
}
"""The settings that a preset stands for."""


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


@dataclass(frozen=True, slots=True)
class CommonPrefixes:
    """Prompts begin with one of `prompts` texts of `tokens` tokens."""

    tokens: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Turns:
    """Conversations of `turns` requests, each `think_time_s` after the answer to the last."""

    turns: int
    think_time_s: float


Arrivals = SlotArrivals | PatternArrivals | PoissonArrivals | GammaArrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests of users and their arrivals.

    Attributes
    ----------
    mode
        ``offline``: a closed loop, a request that ends makes room for another. ``online``:
        requests arrive at times of their own.
    lengths
        Source of the lengths of requests, limits applied. None with a trace.
    arrivals
        Online without a trace: when requests arrive; scaled to `mean_tokens_per_s`.
    trace
        Online: requests with their own times and lengths, limits applied, times as in the file
        (the run divides them by `rate_scale`).
    initial_requests
        Offline: number of requests that start the loop.
    spacing_s
        Offline: time between two of the initial requests, and from an end to the next request.
    mean_tokens_per_s
        Online without a trace: prompt and output tokens per second that are requested.
    mean_prompt_tokens, mean_output_tokens
        Lengths of the mean request that throughput is estimated for.
    rate_scale
        Online with a trace: factor on the rate of its requests.
    shared_prefix
        What prompts begin with; None if they share nothing, or as the trace has it.
    conversations
        Online without a trace: requests are turns of conversations; None if each is by itself.
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
    shared_prefix: CommonPrefixes | None = None
    conversations: Turns | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Length of the run and sampling.

    Attributes
    ----------
    seed
        Seed of all random numbers.
    warmup_s
        Time from the start that is left out of the metrics; below `duration_s`.
    duration_s
        Time during which requests are sent, warm-up included.
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
    """A node that fails, `at_s` after the start of sending.

    It restarts and loads its layers `duration_s` later; None for never.
    """

    node: str
    at_s: float
    duration_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Nodes that fail, and the time until the coordinator detects a failure."""

    detection_s: float = 3.0
    events: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Latency limits of requests; None where there is no limit.

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
        Share of the finished requests that must be within all limits.
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
        Name for titles and files.
    llm
        The LLM that is served.
    machine_types
        Name -> machine type: the types of the cluster, in order of appearance, then further types
        that the scenario names. Every type of the cluster has a profile for the LLM.
    cluster
        The machines and their network.
    placement
        The layers of every node; None where the scenario has none.
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
        Service-level objectives, in order of the names of the classes.
    dollars_per_hour
        Machine type -> price of one machine; empty without prices.
    document
        The scenario file as plain data, with the values that were changed. Files are named in it,
        not included.
    digest
        SHA-256, as hex digits, of the document with the contents of the files that it names.
        Where these files lie does not matter.
    file
        The scenario file; names of other files are relative to its folder.

    Examples
    --------
    >>> scenario = Scenario.from_dict(
    ...     {
    ...         "name": "four",
    ...         "llm": "llama1-30b",
    ...         "cluster": {
    ...             "coordinator": {"nic": "10 Gbit/s"},
    ...             "nodes": [{"type": "A100", "count": 4, "name": "a-{i}"}],
    ...             "network": {"within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}},
    ...         },
    ...         "placement": {"layers": {f"a-{i}": (15 * i, 15 * i + 15) for i in range(4)}},
    ...         "workload": {"mode": "offline"},
    ...         "run": {"duration": "2 min"},
    ...     }
    ... )
    >>> scenario.cluster.machine_mix()
    {'A100': 4}
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
    file: Path = field(default=Path(IN_MEMORY), compare=False)

    @classmethod
    def from_dict(cls, document: Mapping[str, object], base_dir: str | Path = ".") -> Scenario:
        """Build a scenario from the keys and values of a scenario file (docs/scenario.md).

        Parameters
        ----------
        document
            As in a file; ``schema`` may be left out.
        base_dir
            Folder that the names of other files are relative to.

        Raises
        ------
        InputError
            As :func:`helixsim.load_scenario`, for the same mistakes.
        """
        if not isinstance(document, Mapping):
            raise InputError(
                f"a scenario is a mapping from keys to values, not {type(document).__name__}"
            )
        whole = {"schema": 1, **cast("dict[str, object]", plain_data(document))}
        resolve = by_path("helixsim.scenario.load:resolve_scenario")
        return cast(Scenario, resolve(whole, Path(base_dir).resolve() / IN_MEMORY))

    def with_(self, **changes: object) -> Scenario:
        """The scenario with other values; checked as in a file.

        A key is a path as ``--set`` takes it. A dict under a section of settings (``run``,
        ``workload``, ``scheduler``, ``faults``) changes the keys that it names and keeps the
        others; any other value, of ``cluster``, ``placement`` or ``slo`` for example, replaces
        what was there. A placement may be given as a :class:`Placement`, such as
        ``plan(...).placement``.

        Raises
        ------
        InputError
            As :func:`helixsim.load_scenario`; or if the scenario was changed by
            :func:`dataclasses.replace`, of which its document knows nothing.

        Examples
        --------
        >>> from helixsim import load_scenario
        >>> scenario = load_scenario("quickstart")
        >>> scenario.with_(physics="calibrated", run={"seed": 7}).run.seed
        7
        >>> scenario.with_(**{"workload.initial_requests": 4}).workload.initial_requests
        4
        """
        return cast(Scenario, by_path("helixsim.scenario.load:change_scenario")(self, changes))

    def plot(self) -> Figure:
        """Draw the placement with its maximum flow and what bounds it.

        Raises
        ------
        PlacementError
            If the scenario has no placement.
        NoRouteError
            If no route leads through all layers.
        """
        return placement_plot(self)

    def __repr__(self) -> str:
        mix = ", ".join(f"{count} x {name}" for name, count in self.cluster.machine_mix().items())
        text = (
            f"{self.name}: {self.llm.name} on {mix}; {self.workload.mode}, {self.physics} physics"
        )
        return short_text("Scenario", text)

    def _repr_html_(self) -> str:
        picture = None if self.placement is None else placement_image(self)
        return table_html(f"Scenario {self.name}", scenario_rows(self), picture=picture)

    def profiles(self) -> dict[str, MachineProfile]:
        """Machine type -> its profile for the LLM, for the types of the cluster."""
        return {
            name: self.machine_types[name].profiles[self.llm.name]
            for name in self.cluster.machine_mix()
        }

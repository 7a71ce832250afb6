"""A scenario, frozen and complete, with every name resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from helixsim.cluster import Cluster
from helixsim.display import placement_image, placement_plot, short_text, table_html
from helixsim.errors import InputError
from helixsim.llms.architecture import Architecture
from helixsim.physics.engine import IDEAL_ENGINE, EngineCosts
from helixsim.placement.placement import Placement
from helixsim.profiles.machine import LLM, MachineProfile, MachineType
from helixsim.registry import by_path
from helixsim.scenario.plain import plain_data
from helixsim.scenario.scenario_text import scenario_rows
from helixsim.scenario.scheduler_settings import SchedulerSettings
from helixsim.scenario.workload_values import Workload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IN_MEMORY = "<dict>"
"""Stands for the file of a scenario that was built from a dict."""


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
        Its name. If a class of users has this name, it is for the requests of this class; else,
        for all requests.
    ttft_s
        Longest time to the first token, from arrival.
    tpot_s
        Longest mean time per output token after the first.
    e2e_s
        Longest time from arrival to the last token.
    share
        Share of the requests due that must be within all limits.
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
    architecture
        Its architecture, if it comes from a config.json; None with an LLM file.
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
        Service-level objectives, in order of their names.
    dollars_per_hour
        Machine type -> price of one machine: the scenario's, or the catalogue's.
    watts
        Machine type -> power of one machine: the scenario's, or the limits of its GPUs.
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
    watts: Mapping[str, float] = field(default_factory=dict)
    architecture: Architecture | None = None
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

"""The simulator's driver: builds the models of a scenario, lets time pass, collects results."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from random import Random
from types import FrameType
from typing import Protocol

import simpy

from helixsim.control.control_plane import build_control_plane, placed_topology
from helixsim.control.coordinator import Coordinator
from helixsim.control.entrances import Entrances
from helixsim.control.load import LoadGenerator
from helixsim.control.routing import Policy, PolicyInputs
from helixsim.errors import ScenarioError, SimulationError
from helixsim.metrics.recorder import RunRecorder
from helixsim.metrics.result import RunResult
from helixsim.metrics.timeline import Timeline
from helixsim.models.build import Parts, build_models
from helixsim.models.event_loop import ExactEnvironment
from helixsim.models.faults import FaultInjector
from helixsim.models.tracing import Tracer
from helixsim.placement.flow import Flow
from helixsim.placement.topology import Topology
from helixsim.scenario.load_generator import build_load_generator
from helixsim.scenario.resolved import Scenario

_LOADING_MARGIN_S = 1


class LoadSource(Protocol):
    """Sends other requests than the scenario's workload."""

    @property
    def make_policy(self) -> Callable[[PolicyInputs], Policy] | None:
        """Makes what finds their routes, if not the scenario's policy."""
        ...

    def load_generator(self, start_s: float) -> LoadGenerator:
        """What sends them, from `start_s` on."""
        ...


@dataclass(frozen=True, slots=True)
class Watcher:
    """A function that is called while a run goes on.

    Attributes
    ----------
    every_s
        How often, in simulated seconds.
    look
        Called with the simulation.
    """

    every_s: float
    look: Callable[[Simulation], None]


def simulate(
    scenario: Scenario,
    *,
    seed: int | None = None,
    record_iterations: bool = False,
    watchers: tuple[Watcher, ...] = (),
    trace_span_s: tuple[float, float] | None = None,
) -> RunResult:
    """Simulate a scenario from the loading of the weights to the end of the run.

    Parameters
    ----------
    scenario
        What to simulate; it must have a placement.
    seed
        Instead of the scenario's own.
    record_iterations
        Whether to keep a row for every pass of every request.
    watchers
        Called with the simulation as it goes on.
    trace_span_s
        Trace what nodes and links do from the first to the second of these times, in seconds since
        the first request: :attr:`RunResult.trace`.

    Returns
    -------
    RunResult
        Summary and frames. If the run was interrupted by Ctrl-C, what had been measured by
        then, marked as partial.

    Raises
    ------
    ScenarioError
        If the scenario has no placement, or lacks something that its workload needs.
    NoRouteError
        If no route leads through all layers.
    """
    simulation = Simulation(
        scenario, seed=seed, record_iterations=record_iterations, trace_span_s=trace_span_s
    )
    return simulation.run(watchers)


class Simulation:
    """The models of one run, and what is measured of them.

    Attributes
    ----------
    topology, flow
        Nodes and links, and the maximum flow over them.
    start_s
        When load generation starts: all weights are loaded, plus a second.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        seed: int | None = None,
        record_iterations: bool = False,
        source: LoadSource | None = None,
        trace_span_s: tuple[float, float] | None = None,
    ) -> None:
        self.scenario = scenario
        self.seed = scenario.run.seed if seed is None else _checked(seed)
        self.topology = placed_topology(scenario)
        self.start_s = float(_loading_s(self.topology) + _LOADING_MARGIN_S)
        self.end_s = self.start_s + scenario.run.duration_s
        rng = Random(self.seed)
        self.recorder = RunRecorder(
            self.start_s + scenario.run.warmup_s,
            self.end_s,
            tuple(node.name for node in self.topology.nodes),
            keep_iterations=record_iterations,
            has_classes=bool(scenario.workload.class_names),
            front_end_names=tuple(front_end.name for front_end in self.topology.front_ends),
        )
        control_plane = build_control_plane(
            scenario,
            self.topology,
            load_generator=self._workload(rng)
            if source is None
            else source.load_generator(self.start_s),
            recorder=self.recorder,
            rng=rng,
            make_policy=None if source is None else source.make_policy,
        )
        self.flow: Flow = control_plane.flow
        self.policy: Policy = control_plane.policy
        self.coordinator: Coordinator = control_plane.coordinator
        self._catches_up_for_watchers = control_plane.performance.sending is None
        self.environment = ExactEnvironment()
        self.tracer = None
        if trace_span_s is not None:
            begin, end = trace_span_s
            self.tracer = Tracer(self.start_s + begin, self.start_s + end, self.start_s)
        self._models = build_models(
            Parts(
                scenario,
                self.environment,
                self.topology,
                self.policy,
                self.coordinator,
                control_plane.performance,
                control_plane.view,
                self.seed,
                control_plane.composition,
                control_plane.num_stages,
                self.tracer,
            )
        )
        self.coordinator_node = self._models.coordinator_node
        self.nodes, self.links = self._models.nodes, self._models.links
        self.timeline = Timeline(self)

    def _workload(self, rng: Random) -> LoadGenerator:
        """The load generator of the scenario's workload, whose requests enter at front ends."""
        generator = build_load_generator(self.scenario, rng, self.start_s)
        cluster = self.scenario.cluster
        if len(cluster.front_ends) == 1:
            return generator
        return Entrances(generator, cluster, Random(f"front ends {self.seed}"))

    # -- time --------------------------------------------------------------------------------

    def run(self, watchers: tuple[Watcher, ...] = ()) -> RunResult:
        """Let time pass until the run ends or is interrupted."""
        environment = self.environment
        self.coordinator_node.start()
        if self.scenario.faults.events:
            self._plan_faults()
        interval = self.scenario.run.sample_interval_s
        environment.process(self._sampled_every(interval))
        for watcher in watchers:
            environment.process(self._watched_by(watcher))
        with _stopped_by_ctrl_c(environment):
            environment.run_through(self.end_s)
            self.coordinator_node.catch_up(environment.now)
            if self.scenario.run.drain:
                environment.run_while(lambda: not self.is_idle)
        self.timeline.finish()
        self.recorder.finish(self.coordinator.active, self.coordinator.waiting)
        result = RunResult.of(self, self.timeline, interrupted=environment.stopping)
        if self.tracer is not None:
            result.keep_trace(self.tracer.trace_bytes(self.topology, result))
        return result

    def _plan_faults(self) -> None:
        faults = self.scenario.faults
        FaultInjector(
            self.environment,
            self.topology,
            self._models,
            self.coordinator,
            self.policy,
            faults.detection_s,
        ).plan(faults.events, self.start_s)

    def _watched_by(self, watcher: Watcher) -> Generator[simpy.Event, None, None]:
        """Let a watcher look at the models now and then, which changes nothing.

        The coordinator does not catch up for it where sending has costs: what its machine sends
        and what others send compete for receivers, in the order in which it is simulated. A watcher
        then sees the coordinator as it last looked, some milliseconds ago.
        """
        environment = self.environment
        yield environment.timeout(self.start_s)
        while True:
            if self._catches_up_for_watchers:
                self.coordinator_node.catch_up(environment.now)
            watcher.look(self)
            yield environment.timeout(watcher.every_s)

    def _sampled_every(self, interval_s: float) -> Generator[simpy.Event, None, None]:
        """Sample all gauges now and then, and see that the models still move."""
        environment = self.environment
        yield environment.timeout(self.start_s)
        while True:
            self.coordinator_node.catch_up(environment.now)
            self.timeline.sample()
            if environment.now > self.end_s and not environment.is_waited_for:
                raise SimulationError(
                    f"after {environment.now:g} s nothing moves any more, but "
                    f"{len(self.coordinator.active)} requests have not ended"
                )
            yield environment.timeout(interval_s)

    @property
    def now(self) -> float:
        """The simulated time, in seconds."""
        return self.environment.now

    @property
    def is_idle(self) -> bool:
        """Whether no request is being served and none is still to arrive."""
        # No request waits where none is active.
        return not self.coordinator.active and not self.coordinator_node.expects_arrivals


def _checked(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ScenarioError(f"a seed is a whole number of at least 0, not {seed!r}", where="seed")
    return seed


@contextmanager
def _stopped_by_ctrl_c(environment: ExactEnvironment) -> Iterator[None]:
    """Let the first Ctrl-C end the run between two events, where nothing is half-done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        environment.stopping = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _loading_s(topology: Topology) -> int:
    """When the last node has read its weights from disk, in whole seconds."""
    return ceil(
        max(
            node.num_layers * topology.llm.layer_bytes / node.disk_bytes_per_s
            for node in topology.nodes
        )
    )

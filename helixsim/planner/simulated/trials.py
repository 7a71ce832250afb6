"""One simulation of a candidate: watched, and stopped where it loses or time is up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic

from helixsim.errors import HelixError
from helixsim.metrics.summary import build_summary, figures_of
from helixsim.models.simulation import Simulation, Watcher
from helixsim.placement.placement import Placement
from helixsim.planner.figures import DEFAULT_FIGURE
from helixsim.planner.objective import Figures, Objective
from helixsim.planner.simulated.missed import missed_figures
from helixsim.scenario.resolved import Faults, Scenario

_LOOKS_PER_RUN = 100
"""How often the clock is read during a run."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One simulation to run.

    Attributes
    ----------
    placement
        Placement to simulate.
    seed
        Seed of the run.
    looks_s
        Simulated times at which its figures are noted, in seconds since the first request: the
        multiples of the first one.
    cuts
        Such a time -> score below which the run is stopped there.
    move_cost
        What it costs to move to the placement, in the unit of the optimised figure.
    """

    placement: Placement
    seed: int
    looks_s: tuple[float, ...] = ()
    cuts: Mapping[float, float] = field(default_factory=dict)
    move_cost: float = 0.0


@dataclass(frozen=True, slots=True)
class TrialRun:
    """The result of a trial.

    Attributes
    ----------
    seed
        Seed of the run.
    figures
        Figures of the run, up to where it was stopped.
    simulated_s
        Simulated time in seconds since the first request.
    is_complete
        Whether it ran to its end.
    cut_s
        The time at which it was stopped because its score was too low; None if it was not.
    looks
        Figures at the times of :attr:`Trial.looks_s` that it reached.
    seconds
        How long it took.
    """

    seed: int
    figures: dict[str, float]
    simulated_s: float
    is_complete: bool
    cut_s: float | None
    looks: dict[float, Figures]
    seconds: float


def run_trial(
    scenario: Scenario,
    objective: Objective,
    trial: Trial,
    deadline: float | None,
    on_look: Callable[[], None] = lambda: None,
) -> TrialRun | None:
    """Run a trial.

    Parameters
    ----------
    scenario, objective
        What is simulated, without its faults, and what scores are computed for.
    trial
        The trial.
    deadline
        Time of :func:`time.monotonic` at which the run is stopped; None for no limit.
    on_look
        Called now and then while it runs.

    Returns
    -------
    TrialRun or None
        None if the placement cannot be simulated, or if it is after the deadline.
    """
    began = monotonic()
    if deadline is not None and began >= deadline:
        return None
    try:
        simulation = Simulation(
            replace(scenario, placement=trial.placement, faults=Faults()), seed=trial.seed
        )
        watch = _Watch(trial, objective, deadline, on_look)
        watchers = [Watcher(scenario.run.duration_s / _LOOKS_PER_RUN, watch.look_at_clock)]
        if trial.looks_s:
            # Its own interval, so that looks are at the same simulated times in all runs.
            watchers.append(Watcher(trial.looks_s[0], watch.look_at_figures))
        result = simulation.run(tuple(watchers))
    except HelixError:
        return None
    if result.summary["partial"] and not watch.has_stopped:
        raise KeyboardInterrupt
    return TrialRun(
        trial.seed,
        figures_so_far(simulation),
        min(simulation.now, simulation.end_s) - simulation.start_s,
        not result.summary["partial"],
        watch.cut_s,
        watch.looks,
        monotonic() - began,
    )


class _Watch:
    """Watches a run, and stops it."""

    def __init__(
        self,
        trial: Trial,
        objective: Objective,
        deadline: float | None,
        on_look: Callable[[], None],
    ) -> None:
        self._trial = trial
        self._objective = objective
        self._deadline = deadline
        self._on_look = on_look
        self.looks: dict[float, Figures] = {}
        self.cut_s: float | None = None
        self.has_stopped = False

    def look_at_clock(self, simulation: Simulation) -> None:
        self._on_look()
        if self._deadline is not None and monotonic() >= self._deadline:
            self._stop(simulation)

    def look_at_figures(self, simulation: Simulation) -> None:
        every_s = self._trial.looks_s[0]
        number = round((simulation.now - simulation.start_s) / every_s)
        if not 1 <= number <= len(self._trial.looks_s):
            return
        at_s = self._trial.looks_s[number - 1]
        figures = self._figures(simulation)
        self.looks[at_s] = figures
        score = self._objective.score(figures, self._trial.move_cost)
        if score < self._trial.cuts.get(at_s, 0.0):
            self.cut_s = at_s
            self._stop(simulation)

    def _figures(self, simulation: Simulation) -> dict[str, float]:
        """The figures that the objective needs; a summary takes much longer than a rate."""
        if not self._objective.is_throughput:
            return figures_so_far(simulation)
        recorder = simulation.recorder
        measured_s = simulation.now - recorder.window_start_s
        decodes = len(recorder.decode_latency_s)
        return {DEFAULT_FIGURE: decodes / measured_s if measured_s > 0 else 0.0}

    def _stop(self, simulation: Simulation) -> None:
        self.has_stopped = True
        simulation.environment.stopping = True


def figures_so_far(simulation: Simulation) -> dict[str, float]:
    """All figures of a run up to now, and the shares of requests that miss every latency."""
    summary = build_summary(simulation, simulation.timeline)
    return figures_of(summary) | missed_figures(simulation, summary)

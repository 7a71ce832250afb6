"""Simulations and annealings of candidate placements, in parallel processes.

The result of a task depends on its inputs only, so results are the same with any number of
processes.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from helixsim.errors import HelixError, SimulationError
from helixsim.metrics.summary import figures_of
from helixsim.models.simulation import simulate
from helixsim.placement.placement import Placement
from helixsim.planner.objective import OBJECTIVE_FIGURES, Figures, Objective
from helixsim.planner.problem import PlanningProblem, planning_problem
from helixsim.planner.search import random_stream
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.simulated.proposals import Correction, Proposer
from helixsim.processes import held_interrupts, leave_with
from helixsim.registry import register_all, registered_here
from helixsim.scenario.resolved import Faults, Scenario

_POLL_S = 0.5
"""Seconds of one wait for results, between which Ctrl-C is noticed."""

RangesItems = tuple[tuple[int, tuple[int, int]], ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One simulation to run.

    Attributes
    ----------
    placement
        Placement to simulate.
    seed
        Seed of the run.
    duration_s, warmup_s
        Length of the run in seconds, warm-up included, and of the warm-up.
    """

    placement: Placement
    seed: int
    duration_s: float
    warmup_s: float


@dataclass(frozen=True, slots=True)
class AnnealingTask:
    """One annealing of the surrogate.

    Attributes
    ----------
    start
        Initial placement, as items of ranges.
    objective
        Objective of the score.
    stream
        Name of its stream of random numbers.
    iterations
        Number of neighbours to try.
    correction
        Correction of the surrogate by the simulations so far.
    """

    start: RangesItems
    objective: Objective
    stream: tuple[object, ...]
    iterations: int
    correction: Correction


@dataclass(frozen=True, slots=True)
class NeighbourBatch:
    """Neighbours of one placement, of which the one with the best score is chosen.

    Attributes
    ----------
    parent
        The placement, as items of ranges.
    stream
        Name of its stream of random numbers.
    tries
        Number of neighbours to draw.
    objective, correction
        As of :class:`AnnealingTask`.
    """

    parent: RangesItems
    stream: tuple[object, ...]
    tries: int
    objective: Objective
    correction: Correction


@dataclass(frozen=True, slots=True)
class Setting:
    """What all tasks of a search have in common; sent to every process once.

    Attributes
    ----------
    deadline
        Time of :func:`time.monotonic` at which annealings end early and no simulation starts
        any more; None for no limit.
    budget
        How much an annealing tries.
    """

    scenario: Scenario
    objective: Objective
    seed: int
    partial_inference: bool
    keep_links: int | None
    max_stages: int | None
    deadline: float | None
    budget: SearchBudget = DEFAULT_BUDGET


class TrialPool:
    """Runs simulations and annealings.

    Parameters
    ----------
    setting
        What all tasks have in common.
    problem
        The planning problem of the setting's scenario.
    jobs
        Number of processes; 1 runs all tasks in this one.
    """

    def __init__(self, setting: Setting, problem: PlanningProblem, jobs: int) -> None:
        self.setting = setting
        self._worker = _WorkerState(setting, problem)
        self._pool: ProcessPoolExecutor | None = None
        self._folder: TemporaryDirectory[str] | None = None
        if jobs > 1:
            # Through a file: if a process died while it starts, writing a long message to its
            # pipe would block for ever.
            self._folder = TemporaryDirectory(prefix="helixsim-plan-")
            setting_file = Path(self._folder.name) / "setting"
            setting_file.write_bytes(pickle.dumps(setting))
            self._pool = ProcessPoolExecutor(
                jobs,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_set_up,
                initargs=(str(setting_file), os.getpid(), _pickled(registered_here())),
            )

    @property
    def proposer(self) -> Proposer:
        """The proposer of this process."""
        return self._worker.proposer

    def close(self) -> None:
        """Stop all tasks and processes."""
        if self._pool is None:
            return
        # Only the processes of this pool: the caller of plan() may have others. (Python 3.14 has
        # the public method terminate_workers.)
        for child in list((self._pool._processes or {}).values()):
            child.terminate()
        # Without waiting, the pool's thread and the interpreter's exit would both close the same
        # pipe, and one of them would report an error.
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._folder is not None:
            self._folder.cleanup()

    def simulate(self, trials: Sequence[Trial]) -> list[Figures | None]:
        """Run simulations; None for a trial that fails or would start after the deadline."""
        return self._map(_simulate, trials, self._worker.simulate)

    def anneal(self, tasks: Sequence[AnnealingTask]) -> list[RangesItems]:
        """Run annealings; the best placement of each, as items of ranges."""
        return self._map(_anneal, tasks, self._worker.anneal)

    def choose(self, batches: Sequence[NeighbourBatch]) -> list[RangesItems]:
        """Draw neighbours and choose the one with the best score of each batch."""
        return self._map(_choose, batches, self._worker.choose)

    def _map(
        self, remote: Callable[[Any], Any], tasks: Sequence[Any], local: Callable[[Any], Any]
    ) -> list[Any]:
        if self._pool is None:
            return [local(task) for task in tasks]
        try:
            with held_interrupts():  # the first task starts the processes
                futures: list[Future[Any]] = [self._pool.submit(remote, task) for task in tasks]
            # CBC restores the handler of Ctrl-C such that it does not interrupt a wait
            # (SA_RESTART); it is noticed between two short waits.
            while wait(futures, timeout=_POLL_S).not_done:
                pass
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise SimulationError(
                "a process that simulates placements ended unexpectedly; in a script, call plan() "
                "under 'if __name__ == \"__main__\":', or use jobs=1"
            ) from error


class _WorkerState:
    """What a process keeps between tasks."""

    def __init__(self, setting: Setting, problem: PlanningProblem | None = None) -> None:
        self.setting = setting
        self.problem = problem or planning_problem(
            setting.scenario,
            partial_inference=setting.partial_inference,
            keep_links=setting.keep_links,
        )
        self.proposer = Proposer(
            setting.scenario,
            self.problem,
            setting.objective,
            max_stages=setting.max_stages,
            budget=setting.budget,
        )

    def simulate(self, trial: Trial) -> Figures | None:
        scenario, deadline = self.setting.scenario, self.setting.deadline
        if deadline is not None and monotonic() >= deadline:
            return None
        run = replace(scenario.run, duration_s=trial.duration_s, warmup_s=trial.warmup_s)
        try:
            result = simulate(
                replace(scenario, placement=trial.placement, run=run, faults=Faults()),
                seed=trial.seed,
            )
        except HelixError:
            return None
        if result.summary["partial"]:
            raise KeyboardInterrupt
        return figures_of(result.summary, OBJECTIVE_FIGURES)

    def anneal(self, task: AnnealingTask) -> RangesItems:
        deadline = self.setting.deadline
        self.proposer.objective, self.proposer.correction = task.objective, task.correction
        best, _ = self.proposer.anneal(
            dict(task.start),
            random_stream(self.setting.seed, *task.stream),
            task.iterations,
            lambda: deadline is not None and monotonic() >= deadline,
        )
        return tuple(sorted(best.items()))

    def choose(self, batch: NeighbourBatch) -> RangesItems:
        self.proposer.objective, self.proposer.correction = batch.objective, batch.correction
        rng = random_stream(self.setting.seed, *batch.stream)
        drawn = self.proposer.choose_neighbour(dict(batch.parent), rng, batch.tries)
        return tuple(sorted(drawn.items()))


_worker: _WorkerState | None = None


def _pickled(registered: dict[str, dict[str, Any]]) -> bytes:
    """What was registered in this process, classes of a notebook included."""
    from joblib.externals.loky.backend.reduction import dumps

    return bytes(dumps(registered))


def _set_up(setting_file: str, parent: int, registered: bytes) -> None:
    global _worker  # noqa: PLW0603  (the initializer of a process has no other place)
    leave_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    register_all(pickle.loads(registered))  # noqa: S301  (from our own process)
    _worker = _WorkerState(pickle.loads(Path(setting_file).read_bytes()))  # noqa: S301  (our own file)


def _simulate(trial: Trial) -> Figures | None:
    assert _worker is not None
    return _worker.simulate(trial)


def _anneal(task: AnnealingTask) -> RangesItems:
    assert _worker is not None
    return _worker.anneal(task)


def _choose(batch: NeighbourBatch) -> RangesItems:
    assert _worker is not None
    return _worker.choose(batch)

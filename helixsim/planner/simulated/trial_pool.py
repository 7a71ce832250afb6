"""Simulations of candidate placements, side by side in processes of their own.

What a trial gives depends on its placement, seed and length alone, so results are the same with
any number of processes.
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
from helixsim.planner.objective import GOALS, Figures, Goal
from helixsim.planner.problem import PlanningProblem, planning_problem
from helixsim.planner.search import random_stream
from helixsim.planner.simulated.proposals import Correction, Proposer
from helixsim.processes import held_interrupts, leave_with
from helixsim.scenario.resolved import Faults, Scenario

_LOOK_S = 0.5

RangesItems = tuple[tuple[int, tuple[int, int]], ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One simulation to run.

    Attributes
    ----------
    placement
        What to simulate.
    seed
        Of the run.
    duration_s, warmup_s
        How long to feed it, warm-up included, and what of it to leave out.
    """

    placement: Placement
    seed: int
    duration_s: float
    warmup_s: float


@dataclass(frozen=True, slots=True)
class Annealing:
    """One search for a proposal.

    Attributes
    ----------
    start
        Where it begins, as items of ranges.
    stream
        Names its random numbers.
    iterations
        How many changes it tries.
    goal
        What it aims at.
    correction
        What simulations have taught by then.
    """

    start: RangesItems
    goal: Goal
    stream: tuple[object, ...]
    iterations: int
    correction: Correction


@dataclass(frozen=True, slots=True)
class NeighbourBatch:
    """Neighbours to draw of one placement, of which the most promising is wanted.

    Attributes
    ----------
    parent
        The placement, as items of ranges.
    stream
        Names its random numbers.
    tries
        How many to draw.
    goal, correction
        As of :class:`Annealing`.
    """

    parent: RangesItems
    stream: tuple[object, ...]
    tries: int
    goal: Goal
    correction: Correction


@dataclass(frozen=True, slots=True)
class Setting:
    """What all tasks of a search have in common.

    Attributes
    ----------
    deadline
        When annealing ends early and simulations begin no more, on the clock of
        :func:`time.monotonic`; None for never.
    """

    scenario: Scenario
    goal: Goal
    seed: int
    partial_inference: bool
    keep_links: int | None
    max_stages: int | None
    deadline: float | None


class TrialPool:
    """Carries out trials and annealings.

    Parameters
    ----------
    setting
        What they have in common.
    jobs
        How many processes; 1 works in this one.
    """

    def __init__(self, setting: Setting, problem: PlanningProblem, jobs: int) -> None:
        self.setting = setting
        self._bench = _WorkerState(setting, problem)
        self._pool: ProcessPoolExecutor | None = None
        self._folder: TemporaryDirectory[str] | None = None
        if jobs > 1:
            # Through a file: a process that dies as it starts would never read a long message
            # from its pipe, and this one would wait for it for ever.
            self._folder = TemporaryDirectory(prefix="helixsim-plan-")
            handed = Path(self._folder.name) / "setting"
            handed.write_bytes(pickle.dumps(setting))
            self._pool = ProcessPoolExecutor(
                jobs,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_set_up,
                initargs=(str(handed), os.getpid()),
            )

    @property
    def proposer(self) -> Proposer:
        """The one of this process."""
        return self._bench.proposer

    def close(self) -> None:
        """Stop whatever is still going on."""
        if self._pool is None:
            return
        # Its own processes only: who calls plan() may have others. (A public way to do so,
        # terminate_workers, comes with Python 3.14.)
        for child in list((self._pool._processes or {}).values()):
            child.terminate()
        # Waiting takes no time then; without it, the pool's thread and the end of Python close
        # the same pipe, and one of them complains.
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._folder is not None:
            self._folder.cleanup()

    def simulate(self, trials: Sequence[Trial]) -> list[Figures | None]:
        """Run simulations; None for those that cannot be run, or not before the deadline."""
        return self._map(_simulate, trials, self._bench.simulate)

    def anneal(self, tasks: Sequence[Annealing]) -> list[RangesItems]:
        """Run annealings."""
        return self._map(_anneal, tasks, self._bench.anneal)

    def choose(self, litters: Sequence[NeighbourBatch]) -> list[RangesItems]:
        """Draw neighbours and pick the most promising of each litter."""
        return self._map(_choose, litters, self._bench.choose)

    def _map(
        self, remote: Callable[[Any], Any], tasks: Sequence[Any], local: Callable[[Any], Any]
    ) -> list[Any]:
        if self._pool is None:
            return [local(task) for task in tasks]
        try:
            with held_interrupts():  # the first task starts the processes
                futures: list[Future[Any]] = [self._pool.submit(remote, task) for task in tasks]
            # CBC puts the handler of Ctrl-C back so that it ends no wait (SA_RESTART); it is
            # noticed between two short ones.
            while wait(futures, timeout=_LOOK_S).not_done:
                pass
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise SimulationError(
                "a process that simulates placements has died; in a script, call plan() under "
                "'if __name__ == \"__main__\":', or use jobs=1"
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
            setting.scenario, self.problem, setting.goal, max_stages=setting.max_stages
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
        return figures_of(result.summary, GOALS)

    def anneal(self, task: Annealing) -> RangesItems:
        deadline = self.setting.deadline
        self.proposer.goal, self.proposer.correction = task.goal, task.correction
        best, _ = self.proposer.anneal(
            dict(task.start),
            random_stream(self.setting.seed, *task.stream),
            task.iterations,
            lambda: deadline is not None and monotonic() >= deadline,
        )
        return tuple(sorted(best.items()))

    def choose(self, litter: NeighbourBatch) -> RangesItems:
        self.proposer.goal, self.proposer.correction = litter.goal, litter.correction
        rng = random_stream(self.setting.seed, *litter.stream)
        drawn = self.proposer.likely(dict(litter.parent), rng, litter.tries)
        return tuple(sorted(drawn.items()))


_bench: _WorkerState | None = None


def _set_up(handed: str, parent: int) -> None:
    global _bench  # noqa: PLW0603  (a process of the pool has no other place to keep things)
    leave_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides when to stop
    _bench = _WorkerState(pickle.loads(Path(handed).read_bytes()))  # noqa: S301  (written by us)


def _simulate(trial: Trial) -> Figures | None:
    assert _bench is not None
    return _bench.simulate(trial)


def _anneal(task: Annealing) -> RangesItems:
    assert _bench is not None
    return _bench.anneal(task)


def _choose(litter: NeighbourBatch) -> RangesItems:
    assert _bench is not None
    return _bench.choose(litter)

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
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, TypeVar

from helixsim.errors import SimulationError
from helixsim.planner.constraints import FREE, Constraints
from helixsim.planner.objective import Objective
from helixsim.planner.problem import PlanningProblem, planning_problem
from helixsim.planner.search import random_stream
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.simulated.correction import Correction
from helixsim.planner.simulated.proposals import Proposal, Proposer
from helixsim.planner.simulated.templates import best_templates
from helixsim.planner.simulated.trials import Trial, TrialRun, run_trial
from helixsim.processes import held_interrupts, leave_with
from helixsim.registry import register_all, registered_here
from helixsim.scenario.resolved import Scenario

_POLL_S = 0.5
"""Seconds of one wait for results, between which Ctrl-C is noticed and progress is shown."""

_GRACE_S = 1.0
"""Seconds after the deadline in which results are still waited for."""

Task = TypeVar("Task")
Result = TypeVar("Result")

RangesItems = tuple[tuple[int, tuple[int, int]], ...]


@dataclass(frozen=True, slots=True)
class AnnealingTask:
    """One annealing of the surrogate.

    Attributes
    ----------
    start
        Initial placement, as items of ranges; may be empty where there is a template.
    template
        Place of a template among the best, from 0, that it starts from if there are any; None for
        the initial placement.
    objective
        Objective of the score.
    stream
        Name of its stream of random numbers.
    iterations
        Number of neighbours to try.
    heat
        Factor of the temperatures.
    correction
        Correction of the surrogate by the simulations so far.
    most_s
        Seconds after which it ends early; None for no limit.
    """

    start: RangesItems
    template: int | None
    objective: Objective
    stream: tuple[object, ...]
    iterations: int
    heat: float
    correction: Correction
    most_s: float | None


@dataclass(frozen=True, slots=True)
class Setting:
    """What all tasks of a search have in common; sent to every process once.

    Attributes
    ----------
    deadline
        Time of :func:`time.monotonic` at which simulations are stopped and annealings end;
        None for no limit.
    budget
        How much an annealing tries.
    constraints
        What placements must keep to.
    """

    scenario: Scenario
    objective: Objective
    seed: int
    partial_inference: bool
    keep_links: int | None
    max_stages: int | None
    deadline: float | None
    budget: SearchBudget = DEFAULT_BUDGET
    constraints: Constraints = FREE


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
    on_wait
        Called now and then while tasks run.
    """

    def __init__(
        self,
        setting: Setting,
        problem: PlanningProblem,
        jobs: int,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.setting = setting
        self.jobs = jobs
        self._on_wait = on_wait
        self._worker = _WorkerState(setting, problem, on_wait)
        self._pool: ProcessPoolExecutor | None = None
        self._folder: TemporaryDirectory[str] | None = None
        self._started: Future[None] | None = None
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
            with held_interrupts():  # the first task starts the processes
                self._started = self._pool.submit(_nothing)

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

    def simulate(self, trials: Sequence[Trial]) -> list[TrialRun | None]:
        """Run simulations; None for a trial that fails or would start after the deadline."""
        return self._map(_simulate, trials, self._worker.simulate, None)

    def anneal(self, tasks: Sequence[AnnealingTask]) -> list[list[Proposal]]:
        """Run annealings; the best placements of each."""
        return self._map(_anneal, tasks, self._worker.anneal, [])

    def run(
        self,
        function: Callable[[Setting, PlanningProblem, Callable[[], None], Task], Result],
        tasks: Sequence[Task],
        too_late: Result,
    ) -> list[Result]:
        """Call a function of a module for each task, with the setting, its problem and a look.

        Parameters
        ----------
        function
            It calls the look now and then, and ends by the setting's deadline by itself.
        tasks
            Its last argument, one after another.
        too_late
            The result for tasks that do not end in time.
        """
        calls = [(function, task) for task in tasks]
        return self._map(_call, calls, self._worker.call, too_late)

    def _map(
        self,
        remote: Callable[[Any], Any],
        tasks: Sequence[Any],
        local: Callable[[Any], Any],
        too_late: object,
    ) -> list[Any]:
        """The results of tasks, in order; `too_late` for tasks that do not end in time."""
        found: list[Any] = []
        # Processes take seconds to start; meanwhile this one works.
        while len(found) < len(tasks) and not self._has_started():
            found.append(local(tasks[len(found)]))
        if len(found) == len(tasks):
            return found
        assert self._pool is not None
        try:
            with held_interrupts():
                futures: list[Future[Any]] = [
                    self._pool.submit(remote, task) for task in tasks[len(found) :]
                ]
            # CBC restores the handler of Ctrl-C such that it does not interrupt a wait
            # (SA_RESTART); it is noticed between two short waits.
            while wait(futures, timeout=_POLL_S).not_done and not self._is_overdue():
                self._on_wait()
            return found + [each.result() if each.done() else too_late for each in futures]
        except BrokenProcessPool as error:
            raise SimulationError(
                "a process that simulates placements ended unexpectedly; in a script, call plan() "
                "under 'if __name__ == \"__main__\":', or use jobs=1"
            ) from error

    def _has_started(self) -> bool:
        return self._started is not None and self._started.done()

    def _is_overdue(self) -> bool:
        """Whether tasks, which end at the deadline by themselves, are late on a busy machine."""
        deadline = self.setting.deadline
        return deadline is not None and monotonic() >= deadline + _GRACE_S


class _WorkerState:
    """What a process keeps between tasks."""

    def __init__(
        self,
        setting: Setting,
        problem: PlanningProblem | None = None,
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self.setting = setting
        self._on_look = on_look
        self.problem = problem or planning_problem(
            setting.scenario,
            partial_inference=setting.partial_inference,
            keep_links=setting.keep_links,
            constraints=setting.constraints,
        )
        self.proposer = Proposer(
            setting.scenario,
            self.problem,
            setting.objective,
            max_stages=setting.max_stages,
            budget=setting.budget,
        )
        self._templates: list[Proposal] | None = None

    def simulate(self, trial: Trial) -> TrialRun | None:
        setting = self.setting
        return run_trial(
            setting.scenario, setting.objective, trial, setting.deadline, self._on_look
        )

    def call(self, call: tuple[Callable[..., Result], object]) -> Result:
        function, task = call
        return function(self.setting, self.problem, self._on_look, task)

    def anneal(self, task: AnnealingTask) -> list[Proposal]:
        own_end = None if task.most_s is None else monotonic() + task.most_s
        deadlines = [end for end in (self.setting.deadline, own_end) if end is not None]

        def is_over() -> bool:
            self._on_look()
            return bool(deadlines) and monotonic() >= min(deadlines)

        start = () if task.template is None else self._template(task.template, is_over)
        start = start or task.start
        if not start:
            return []
        self.proposer.use(task.objective, task.correction)
        rng = random_stream(self.setting.seed, *task.stream)
        return self.proposer.anneal(
            dict(start), rng, task.iterations, heat=task.heat, out_of_time=is_over
        )

    def _template(self, place: int, is_over: Callable[[], bool]) -> RangesItems:
        if self._templates is None:
            self.proposer.use(self.setting.objective, Correction())
            self._templates = best_templates(
                self.proposer, random_stream(self.setting.seed, "templates"), is_over
            )
        found = self._templates
        return found[place % len(found)].ranges if found else ()


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


def _nothing() -> None:
    """Returns once a process has started."""


def _simulate(trial: Trial) -> TrialRun | None:
    assert _worker is not None
    return _worker.simulate(trial)


def _anneal(task: AnnealingTask) -> list[Proposal]:
    assert _worker is not None
    return _worker.anneal(task)


def _call(call: tuple[Callable[..., Result], object]) -> Result:
    assert _worker is not None
    return _worker.call(call)

"""Simulations and annealings of candidate placements, several at a time.

The result of a task depends on its inputs only, so results are the same with any backend and any
number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from time import monotonic
from typing import Any, TypeVar

from helixsim.backends import Backend
from helixsim.errors import SimulationError
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.simulated.proposals import Proposal, Proposer
from helixsim.planner.simulated.tasks import AnnealingTask, Setting, TaskRunner
from helixsim.planner.simulated.trials import Trial, TrialRun
from helixsim.planner.simulated.workers import ProcessWorkers, RayWorkers, TaskKind, Workers

_POLL_S = 0.5
"""Seconds of one wait for results, between which Ctrl-C is noticed and progress is shown."""

_GRACE_S = 1.0
"""Seconds after the deadline in which results are still waited for."""

Task = TypeVar("Task")
Result = TypeVar("Result")


class TrialPool:
    """Runs simulations and annealings.

    Parameters
    ----------
    setting
        What all tasks have in common.
    problem
        The planning problem of the setting's scenario.
    jobs
        Number of tasks at a time; one local job runs all of them in this process. None for all
        cores of a Ray cluster.
    on_wait
        Called now and then while tasks run.
    backend
        Where tasks run.
    """

    def __init__(
        self,
        setting: Setting,
        problem: PlanningProblem,
        jobs: int | None,
        on_wait: Callable[[], None] = lambda: None,
        backend: Backend = "local",
    ) -> None:
        self.setting = setting
        self._on_wait = on_wait
        self._runner = TaskRunner(setting, problem, on_wait)
        self._workers: Workers | None = None
        if backend == "ray":
            self._workers = RayWorkers(setting, jobs)
        elif jobs is not None and jobs > 1:
            self._workers = ProcessWorkers(setting, jobs)
        self.jobs = 1 if self._workers is None else self._workers.jobs

    @property
    def proposer(self) -> Proposer:
        """The proposer of this process."""
        return self._runner.proposer

    def close(self) -> None:
        """Stop all tasks and processes."""
        if self._workers is not None:
            self._workers.close()

    def simulate(self, trials: Sequence[Trial]) -> list[TrialRun | None]:
        """Run simulations; None for a trial that fails or would start after the deadline."""
        return self._map("simulate", trials, self._runner.simulate, None)

    def anneal(self, tasks: Sequence[AnnealingTask]) -> list[list[Proposal]]:
        """Run annealings; the best placements of each."""
        return self._map("anneal", tasks, self._runner.anneal, [])

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
        return self._map("call", calls, self._runner.call, too_late)

    def _map(
        self,
        kind: TaskKind,
        tasks: Sequence[Any],
        local: Callable[[Any], Any],
        too_late: object,
    ) -> list[Any]:
        """The results of tasks, in order; `too_late` for tasks that do not end in time."""
        found: list[Any] = []
        workers = self._workers
        # Processes take seconds to start; meanwhile this one works.
        while len(found) < len(tasks) and (workers is None or not workers.has_started()):
            found.append(local(tasks[len(found)]))
        if workers is None or len(found) == len(tasks):
            return found
        try:
            futures = [workers.submit(kind, task) for task in tasks[len(found) :]]
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

    def _is_overdue(self) -> bool:
        """Whether tasks, which end at the deadline by themselves, are late on a busy machine."""
        deadline = self.setting.deadline
        return deadline is not None and monotonic() >= deadline + _GRACE_S

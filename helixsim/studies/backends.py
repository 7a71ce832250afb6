"""Backends that carry out runs: this process, processes of this machine, a Ray cluster.

A result depends on scenario and seed alone, so all backends give the same results.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from helixsim.backends import Backend, check_backend, connected_ray
from helixsim.errors import HelixError, SimulationError
from helixsim.processes import held_interrupts, leave_with
from helixsim.registry import register_all, registered_here
from helixsim.scenario.resolved import Scenario
from helixsim.studies.runs import Outcome, StudyRun, carry_out

Outcomes = Generator[tuple[int, Outcome], None, None]

_POOL_THREAD = "ExecutorManagerThread"

_watches = False


def outcomes(
    runs: Sequence[StudyRun], backend: Backend = "local", jobs: int | None = None
) -> Outcomes:
    """Carry out runs, several at a time.

    Parameters
    ----------
    runs
        The runs to carry out.
    backend
        ``local`` for processes of this machine, ``ray`` for the tasks of a Ray cluster: that of
        the environment variable ``RAY_ADDRESS``, else one that runs here, else a new one.
    jobs
        Number of runs at a time; one for each core if not given. One local job runs in this
        process.

    Yields
    ------
    tuple
        Number of a run, in the order in which they end, and its outcome.

    Raises
    ------
    KeyboardInterrupt
        If a run was interrupted.
    InputError
        If there is no such backend, or it is not installed.
    SimulationError
        If a process has died.
    """
    check_backend(backend)
    if not runs:
        return
    if backend == "ray":
        found = _on_ray(runs, jobs)
    else:
        found = _here(runs, min(jobs or os.cpu_count() or 1, len(runs)))
    with closing(found):
        for number, outcome in found:
            if outcome.interrupted:
                raise KeyboardInterrupt
            yield number, outcome


def _load_and_carry_out(run: StudyRun) -> Outcome:
    try:
        scenario = run.load()
    except HelixError as error:
        return Outcome(error=str(error))
    return carry_out(scenario, run.seed)


# -- this machine ----------------------------------------------------------------------------


def _here(runs: Sequence[StudyRun], jobs: int) -> Outcomes:
    if jobs == 1:
        for number, run in enumerate(runs):
            yield number, _load_and_carry_out(run)
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import BrokenProcessPool

    parallel = Parallel(jobs, backend="loky", batch_size=1, return_as="generator_unordered")
    registered = registered_here()
    tasks = (
        delayed(_in_process)(number, run, os.getpid(), registered)
        for number, run in enumerate(runs)
    )
    try:
        with held_interrupts():  # the processes are started here, and this process decides
            found = parallel(tasks)
        with _quiet_end(parallel), closing(found):
            for each in found:  # noqa: UP028  (an end from outside must pass here first)
                yield each
    except BrokenProcessPool as error:
        raise SimulationError(
            "a process that simulates has died, perhaps for lack of memory; try fewer jobs"
        ) from error


@contextmanager
def _quiet_end(parallel: Any) -> Iterator[None]:  # noqa: ANN401  (joblib has no types)
    """Silence the warnings of joblib about runs that were ended on purpose.

    The thread of the pool may fail on processes that have just been killed.
    """
    before = threading.excepthook

    def hook(of: threading.ExceptHookArgs) -> None:
        if not (parallel._aborting and getattr(of.thread, "name", "") == _POOL_THREAD):
            before(of)

    threading.excepthook = hook
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "[0-9]+ tasks which were still", UserWarning)
            yield
    finally:
        threading.excepthook = before


def _in_process(
    number: int, run: StudyRun, parent: int, registered: Mapping[str, Mapping[str, Any]]
) -> tuple[int, Outcome]:
    global _watches  # noqa: PLW0603  (a process of the pool has no other place to keep things)
    if not _watches:
        leave_with(parent)
        register_all(registered)
        _watches = True
    return number, _load_and_carry_out(run)


# -- Ray -------------------------------------------------------------------------------------


def _on_ray(runs: Sequence[StudyRun], jobs: int | None) -> Outcomes:
    with connected_ray() as ray:
        yield from _ray_tasks(ray, runs, jobs or int(ray.cluster_resources().get("CPU", 1)))


def _ray_tasks(
    ray: Any,  # noqa: ANN401  (the module, which need not be installed)
    runs: Sequence[StudyRun],
    jobs: int,
) -> Outcomes:
    """Keep `jobs` tasks running. Scenarios are sent whole: other machines lack their files."""
    remote = ray.remote(num_cpus=1)(_in_task)
    waiting = iter(enumerate(runs))
    going: dict[Any, int] = {}
    try:
        while True:
            while len(going) < jobs and (task := next(waiting, None)) is not None:
                number, run = task
                try:
                    scenario = run.load()
                except HelixError as error:
                    yield number, Outcome(error=str(error))
                else:
                    going[remote.remote(scenario, run.seed)] = number
            if not going:
                return
            done, _ = ray.wait(list(going), num_returns=1)
            yield going.pop(done[0]), ray.get(done[0])
    finally:
        for left in going:
            ray.cancel(left, force=True)


def _in_task(scenario: Scenario, seed: int) -> Outcome:
    return carry_out(scenario, seed)

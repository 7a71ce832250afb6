"""Where the tasks of a search run: processes of this machine, or the tasks of a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Literal, Protocol
from uuid import uuid4

from helixsim.backends import connected_ray, of_ray
from helixsim.errors import SimulationError
from helixsim.planner.simulated.tasks import Setting, TaskRunner
from helixsim.processes import held_interrupts, leave_with
from helixsim.registry import register_all, registered_here

TaskKind = Literal["simulate", "anneal", "call"]
"""The method of :class:`.TaskRunner` that runs a task."""


class Workers(Protocol):
    """Run tasks beside this process.

    Attributes
    ----------
    jobs
        Number of tasks at a time.
    """

    jobs: int

    def has_started(self) -> bool:
        """Whether they can run tasks already."""
        ...

    def submit(self, kind: TaskKind, task: object) -> Future[Any]:
        """Run a task as soon as a worker is free."""
        ...

    def close(self) -> None:
        """Stop all tasks."""
        ...


class ProcessWorkers:
    """Processes of this machine.

    Parameters
    ----------
    setting
        What all tasks have in common.
    jobs
        Number of processes.
    """

    def __init__(self, setting: Setting, jobs: int) -> None:
        self.jobs = jobs
        # Through a file: if a process died while it starts, writing a long message to its
        # pipe would block for ever.
        self._folder = TemporaryDirectory(prefix="helixsim-plan-")
        setting_file = Path(self._folder.name) / "setting"
        setting_file.write_bytes(pickle.dumps(setting))
        self._pool = ProcessPoolExecutor(
            jobs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_set_up,
            initargs=(str(setting_file), os.getpid(), _pickled_registry()),
        )
        with held_interrupts():  # the first task starts the processes
            self._started = self._pool.submit(_nothing)

    def has_started(self) -> bool:
        """Whether a process has started, which takes seconds."""
        return self._started.done()

    def submit(self, kind: TaskKind, task: object) -> Future[Any]:
        """Run a task as soon as a process is free."""
        with held_interrupts():
            return self._pool.submit(_run_here, kind, task)

    def close(self) -> None:
        """Stop all tasks and processes."""
        # Only the processes of this pool: the caller of plan() may have others. (Python 3.14 has
        # the public method terminate_workers.)
        for child in list((self._pool._processes or {}).values()):
            child.terminate()
        # Without waiting, the pool's thread and the interpreter's exit would both close the same
        # pipe, and one of them would report an error.
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._folder.cleanup()


class RayWorkers:
    """Tasks of a Ray cluster.

    Parameters
    ----------
    setting
        What all tasks have in common.
    jobs
        Number of tasks at a time; None for the cores of the cluster.

    Raises
    ------
    InputError
        If Ray is not installed.
    """

    def __init__(self, setting: Setting, jobs: int | None) -> None:
        self._stack = ExitStack()
        self._ray = ray = self._stack.enter_context(connected_ray())
        self.jobs = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._deadline = setting.deadline
        # Clocks of machines differ: each task is told how many seconds it has.
        inputs = (replace(setting, deadline=None), _pickled_registry())
        self._inputs = ray.put(pickle.dumps(inputs))
        self._name = uuid4().hex
        self._remote = ray.remote(num_cpus=1)(_run_on_ray)
        self._threads = ThreadPoolExecutor(self.jobs)
        self._going: set[Any] = set()

    def has_started(self) -> bool:
        """True: Ray queues tasks by itself."""
        return True

    def submit(self, kind: TaskKind, task: object) -> Future[Any]:
        """Run a task as soon as a core is free."""
        return self._threads.submit(self._carry_out, kind, task)

    def _carry_out(self, kind: TaskKind, task: object) -> object:
        left_s = None if self._deadline is None else self._deadline - monotonic()
        # Within a list, a reference is not replaced by its object for every task.
        going = self._remote.remote(self._name, [self._inputs], kind, task, left_s)
        self._going.add(going)
        try:
            return self._ray.get(going)
        except self._ray.exceptions.RayError as error:
            raise SimulationError(f"Ray could not carry out a task: {error}") from error
        finally:
            self._going.discard(going)

    def close(self) -> None:
        """Stop all tasks, and the Ray cluster if it was started here."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for each in list(self._going):
            self._ray.cancel(each, force=True)
        self._threads.shutdown(wait=True)
        self._stack.close()


def _pickled_registry() -> bytes:
    """What was registered in this process, classes of a notebook included."""
    from joblib.externals.loky.backend.reduction import dumps

    return bytes(dumps(registered_here()))


# -- in the processes --------------------------------------------------------------------------

_runner: tuple[str, TaskRunner] | None = None
"""The name of a search, and what runs its tasks."""


def _set_up(setting_file: str, parent: int, registered: bytes) -> None:
    global _runner  # noqa: PLW0603  (the initializer of a process has no other place)
    leave_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    register_all(pickle.loads(registered))  # noqa: S301  (from our own process)
    setting = pickle.loads(Path(setting_file).read_bytes())  # noqa: S301  (our own file)
    _runner = "", TaskRunner(setting)


def _nothing() -> None:
    """Returns once a process has started."""


def _run_here(kind: TaskKind, task: Any) -> object:  # noqa: ANN401  (as the method takes it)
    assert _runner is not None
    return getattr(_runner[1], kind)(task)


def _run_on_ray(
    name: str,
    inputs: list[Any],
    kind: TaskKind,
    task: Any,  # noqa: ANN401  (as the method takes it)
    left_s: float | None,
) -> object:
    global _runner  # noqa: PLW0603  (what a process of Ray keeps between tasks)
    if _runner is None or _runner[0] != name:
        setting, registered = pickle.loads(of_ray(inputs[0]))  # noqa: S301  (from our own process)
        register_all(pickle.loads(registered))  # noqa: S301  (from our own process)
        _runner = name, TaskRunner(setting)
    _runner[1].deadline = None if left_s is None else monotonic() + left_s
    return getattr(_runner[1], kind)(task)

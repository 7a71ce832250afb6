"""Workers as processes of this machine, which end with the coordinator."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from threading import Thread
from typing import Any, Self

from helixreal.inventory import NodeEntry
from helixreal.supervisor import SupervisedProcess, described
from helixsim.errors import HelixError

_LEAVE_S = 5.0


def worker_command(name: str, entry: NodeEntry, coordinator: str) -> list[str]:
    """The arguments of the command that starts the worker of a node."""
    command = ["worker", "--node", name, "--coordinator", coordinator, "--engine", entry.engine]
    command += ["--listen", entry.address.removeprefix("tcp://")]
    command += ["--device", entry.device, "--dtype", entry.dtype]
    if entry.model is not None:
        command += ["--model", entry.model]
    if entry.kv_memory_bytes is not None:
        command += ["--kv-memory", f"{entry.kv_memory_bytes} B"]
    if entry.dummy_weights:
        command.append("--dummy-weights")
    if entry.options:
        command += ["--options", json.dumps(dict(entry.options))]
    return command


def is_own_address(address: str) -> bool:
    """Whether an address such as ``tcp://10.0.0.2:0`` is one of this machine."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_can_bind(family, where) for family, _, _, _, where in found)


def _can_bind(family: int, where: tuple[Any, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(where)
        except OSError:
            return False
    return True


class LocalWorkers:
    """A worker process for each node; a context manager that ends all of them.

    Parameters
    ----------
    entries
        Name of node -> how its worker is started.
    coordinator
        Address of the coordinator.
    more
        More arguments of the command of each worker.
    """

    def __init__(
        self, entries: Mapping[str, NodeEntry], coordinator: str, more: Sequence[str] = ()
    ) -> None:
        self._processes: dict[str, SupervisedProcess] = {}
        self._supervisors: list[Thread] = []
        try:
            for name, entry in entries.items():
                command = [*worker_command(name, entry, coordinator), *more]
                self._processes[name] = SupervisedProcess(f"the worker of {name}", command)
        except BaseException:
            self.end(patience_s=0.0)
            raise

    def check(self, missing: Sequence[str]) -> None:
        """Check that the processes of nodes that are not ready still run.

        Raises
        ------
        HelixError
            If one of them has ended.
        """
        for name in missing:
            code = self._processes[name].exit_code
            if code is not None:
                raise HelixError(f"the worker of {name} {described(code)}")

    def supervise(self) -> None:
        """From now on, start workers again that end with a fault."""
        for name, process in self._processes.items():
            thread = Thread(target=process.keep_running, name=f"supervisor {name}", daemon=True)
            thread.start()
            self._supervisors.append(thread)

    def wait(self) -> None:
        """Wait until all workers have ended as they were told to, or too often.

        Raises
        ------
        HelixError
            If some have ended too often.
        """
        for thread in self._supervisors:
            thread.join()
        failed = [name for name, each in self._processes.items() if each.exit_code]
        if failed:
            raise HelixError(f"workers have ended with a fault: {', '.join(failed)}")

    def pid(self, name: str) -> int:
        """Process id of a node's worker."""
        return self._processes[name].pid

    def end(self, patience_s: float = _LEAVE_S) -> None:
        """Wait for all processes to end; terminate processes that do not end in time."""
        until_s = time.monotonic() + patience_s
        processes = self._processes.values()
        for process in processes:
            process.stop_restarting()
        for process in processes:
            process.wait(until_s - time.monotonic())
        for process in processes:
            process.end()
        for thread in self._supervisors:
            thread.join()

    def __enter__(self) -> Self:
        """The workers, which have been started already."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """End all processes, sooner after an error."""
        self.end(_LEAVE_S if kind is None else 1.0)

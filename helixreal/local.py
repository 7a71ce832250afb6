"""Workers as processes of this machine, which end with the coordinator."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Self

from helixreal.inventory import NodeEntry
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


class LocalWorkers:
    """A worker process for each node; a context manager that ends all of them.

    Parameters
    ----------
    entries
        Name of node -> how its worker is started.
    coordinator
        Address of the coordinator.
    """

    def __init__(self, entries: Mapping[str, NodeEntry], coordinator: str) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name, entry in entries.items():
                command = worker_command(name, entry, coordinator)
                # In a separate session: Ctrl-C goes to the coordinator, which shuts workers down.
                self._processes[name] = subprocess.Popen(  # noqa: S603  (our own command)
                    [sys.executable, "-m", "helixreal", *command],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
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
            code = self._processes[name].poll()
            if code is not None:
                raise HelixError(f"the worker of {name} has ended with exit code {code}")

    def pid(self, name: str) -> int:
        """Process id of a node's worker."""
        return self._processes[name].pid

    def end(self, patience_s: float = _LEAVE_S) -> None:
        """Wait for all processes to end; terminate processes that do not end in time."""
        until_s = time.monotonic() + patience_s
        for process in self._processes.values():
            try:
                process.wait(timeout=max(until_s - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> Self:
        """The workers, which have been started already."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """End all processes, sooner after an error."""
        self.end(_LEAVE_S if kind is None else 1.0)

"""Starts workers with Ray: one task for each node, on the machine with the node's address."""

from __future__ import annotations

from typing import Any

from helixreal.inventory import Inventory
from helixreal.local import worker_command
from helixsim.errors import InputError

_PART_OF_HOST = 0.001
"""Share of the resource that Ray gives each machine under its address; it selects the machine."""


def start_workers(inventory: Inventory, address: str) -> None:
    """Start the workers of all nodes, and wait until they have ended.

    Parameters
    ----------
    inventory
        The nodes; each is started on the Ray machine with the address of the node.
    address
        Address of the Ray cluster, as for ``ray.init``.

    Raises
    ------
    InputError
        If Ray is not installed, or has no machine with the address of a node.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "Ray is not installed: pip install 'helixsim[ray]'", where="--ray"
        ) from error
    ray.init(address=address, log_to_driver=True)
    machines = {each["NodeManagerAddress"] for each in ray.nodes() if each["Alive"]}
    run = ray.remote(_run_worker)
    tasks: list[Any] = []
    for name, entry in inventory.nodes.items():
        host = entry.address.removeprefix("tcp://").rpartition(":")[0]
        if host not in machines:
            raise InputError(
                f"Ray has no machine {host}, only {', '.join(sorted(machines))}",
                where=f"nodes.{name}.address",
            )
        command = worker_command(name, entry, inventory.coordinator)
        if inventory.keys is not None:
            command += ["--keys", str(inventory.keys)]
        place = {f"node:{host}": _PART_OF_HOST}
        tasks.append(run.options(num_cpus=0, resources=place).remote(command))
    try:
        ray.get(tasks)
    finally:
        ray.shutdown()


def _run_worker(command: list[str]) -> int:
    """Run the worker as a child process of a Ray process, and end it with that process."""
    import subprocess
    import sys

    with subprocess.Popen([sys.executable, "-m", "helixreal", *command]) as process:  # noqa: S603
        try:
            return process.wait()
        finally:
            process.terminate()

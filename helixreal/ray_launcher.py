"""Workers started over Ray: one actor for each node, on the machine that its address names."""

from __future__ import annotations

from typing import Any

from helixreal.inventory import Inventory
from helixreal.local import worker_command
from helixsim.errors import InputError

_PART_OF_HOST = 0.001
"""Of the resource that Ray gives every machine under its own address: it only says where."""


def start_workers(inventory: Inventory, address: str) -> None:
    """Start the workers of all nodes, and wait until they have ended.

    Parameters
    ----------
    inventory
        Whose nodes are started, each on the Ray machine with the address of the node.
    address
        Of the Ray cluster, as ``ray.init`` takes it.

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
    """In a Ray process: the worker as a process of its own, ended with this one."""
    import subprocess
    import sys

    with subprocess.Popen([sys.executable, "-m", "helixreal", *command]) as process:  # noqa: S603
        try:
            return process.wait()
        finally:
            process.terminate()

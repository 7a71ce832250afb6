"""Starts workers with Ray: an actor for each node, on the machine with the node's address."""

from __future__ import annotations

from typing import Any

from helixreal.inventory import Inventory
from helixreal.local import worker_command
from helixreal.supervisor import SupervisedProcess
from helixsim.errors import HelixError, InputError

_PART_OF_HOST = 0.001
"""Share of the resource that Ray gives each machine under its address; it selects the machine."""
_MOST_RESTARTS = 5
"""How often Ray starts an actor again whose process or machine has ended."""


class WorkerActor:
    """Keeps a worker running; Ray starts it again if it ends itself."""

    def run(self, name: str, command: list[str]) -> int:
        """Run the worker until it ends as it was told to, or too often; its exit code."""
        process = SupervisedProcess(f"the worker of {name}", command)
        try:
            return process.keep_running()
        finally:
            process.end()


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
    HelixError
        If workers have ended with a fault too often.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "Ray is not installed: pip install 'helixsim[ray]'", where="--ray"
        ) from error
    ray.init(address=address, log_to_driver=True)
    try:
        actors = _start_actors(ray, inventory)  # Ray ends an actor that is not referred to
        codes = ray.get([run for _, run in actors])
    finally:
        ray.shutdown()
    failed = [name for name, code in zip(inventory.nodes, codes, strict=True) if code]
    if failed:
        raise HelixError(f"workers have ended with a fault: {', '.join(failed)}")


def _start_actors(ray: Any, inventory: Inventory) -> list[tuple[Any, Any]]:  # noqa: ANN401  (Ray has no types)
    """Start an actor for each node, with the exit code of its worker, to come."""
    machines = {each["NodeManagerAddress"] for each in ray.nodes() if each["Alive"]}
    actor = ray.remote(WorkerActor)
    actors: list[tuple[Any, Any]] = []
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
        placed = actor.options(
            num_cpus=0,
            resources={f"node:{host}": _PART_OF_HOST},
            max_restarts=_MOST_RESTARTS,
            max_task_retries=_MOST_RESTARTS,
        )
        started = placed.remote()
        actors.append((started, started.run.remote(name, command)))
    return actors

"""Workers as Ray actors: one that is killed is started again, and so is one whose actor is."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from coordinator_process import (
    PATIENCE_S,
    CoordinatorProcess,
    free_port,
    processes,
    write_inventory,
)
from test_lost_workers import made_up
from tiny_scenario import write_tiny_scenario

from helixreal.net.transport import make_keys
from helixsim.cluster import COORDINATOR

HAS_RAY = importlib.util.find_spec("ray") is not None
ROOT = Path(__file__).parents[2]


@contextmanager
def ray_cluster():
    """A Ray cluster of this machine; its address."""
    port = free_port()
    options = f"--head --block --port={port} --num-cpus=2"
    more = "--include-dashboard=false --disable-usage-stats"
    with subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *options.split(), *more.split()],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
    ) as process:
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def up(inventory, ray):
    """`helixreal up`, as soon as the Ray cluster answers."""
    command = [sys.executable, "-m", "helixreal", "up", str(inventory), "--ray", ray]
    with subprocess.Popen(
        command,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "RAY_AUTH_MODE": "disabled"},
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'helixsim[ray]'")
def test_killed_workers_and_killed_actors_are_started_again(tmp_path):
    layers = {"n0": [0, 4], "n1": [4, 8]}
    scenario = write_tiny_scenario(tmp_path, layers)
    port = free_port()
    # Ray knows this machine by an address beyond loopback, which wants keys.
    make_keys(tmp_path / "keys", [COORDINATOR, *layers])
    own = importlib.import_module("ray").util.get_node_ip_address()
    inventory = write_inventory(tmp_path, layers, port, address=own, keys="keys")
    address = f"tcp://127.0.0.1:{port}"
    with ray_cluster() as ray, up(inventory, ray) as launcher:
        with CoordinatorProcess(scenario, inventory, missing_s=2.0) as coordinator:
            coordinator.wait_until_ready()

            def worker(name):
                return processes("worker", name, address)

            for number, kill in enumerate((lambda pid: pid, parent_of)):
                (before,) = worker("n0")
                os.kill(kill(before), signal.SIGKILL)
                coordinator.wait_for(
                    lambda old=before: worker("n0") not in ([], [old]), "it is started again"
                )
                coordinator.wait_for(
                    lambda: not all(coordinator.reported()["up"].values()), "it is lost"
                )
                coordinator.wait_for(
                    lambda: all(coordinator.reported()["up"].values()), "all are up"
                )
                coordinator.ask(number, [5] * 10, 20)
                coordinator.wait_for(lambda n=number: n in coordinator.ends, "an answer")
                assert coordinator.ends[number] == (
                    made_up(10, 20),
                    "Finished(reason='length')",
                )
        assert launcher.wait(PATIENCE_S) == 0


def parent_of(pid):
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    return int(stat.split()[1])

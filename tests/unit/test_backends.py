"""Where tasks run: unknown and missing backends, and Ray by a stand-in."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from functools import partial
from threading import RLock
from types import ModuleType, SimpleNamespace

import pytest
from planner_problems import four_nodes
from typer.testing import CliRunner

from helixsim.cli import app
from helixsim.errors import InputError, SimulationError
from helixsim.planner.plan import plan
from helixsim.planner.search_budget import SearchBudget
from helixsim.planner.simulated import workers
from helixsim.planner.simulated.search import Effort

NO_RAY = "backend ray: Ray is not installed; pip install 'helixsim[ray]'"


def test_without_ray_a_plan_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    result = CliRunner().invoke(app, ["plan", "quickstart", "--backend", "ray"])
    assert (result.exit_code, result.stderr) == (2, f"{NO_RAY}\n")


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="backend: no backend 'dask'; there are local and ray"):
        plan(four_nodes(), backend="dask")


class FakeRay(ModuleType):
    """Carries out tasks in this process, one after another; a reference is a function."""

    def __init__(self, reachable: bool = True) -> None:
        super().__init__("ray")
        self.__spec__ = importlib.machinery.ModuleSpec("ray", None)
        self.exceptions = SimpleNamespace(RayError=ZeroDivisionError)
        self.reachable = reachable
        self.is_running = False
        self.tasks = []
        self.lock = RLock()

    def is_initialized(self):
        return self.is_running

    def init(self, **options):
        if not self.reachable:
            raise ConnectionError("no answer from 10.0.0.1")
        self.is_running = True

    def shutdown(self):
        self.is_running = False

    def cluster_resources(self):
        return {"CPU": 3.0}

    def remote(self, **options):
        def submitted(function, *inputs):
            self.tasks.append(inputs)
            return partial(function, *inputs)

        return lambda function: SimpleNamespace(remote=partial(submitted, function))

    def put(self, value):
        return lambda: value

    def get(self, reference):
        with self.lock:
            return reference()


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(workers, "_runner", None)
    return fake


BRIEF = {
    "effort": Effort(num_seeds=1, rounds=1, annealings=2),
    "budget": SearchBudget(proposal_steps=30, templates=30),
}


def test_a_plan_by_ray_is_the_plan_of_this_process(ray):
    there = plan(four_nodes(), backend="ray", jobs=None, time_limit_s=1000.0, **BRIEF)
    here = plan(four_nodes(), **BRIEF)
    assert (there.placement, there.simulated) == (here.placement, here.simulated)
    assert [each.figures for each in there.candidates] == [each.figures for each in here.candidates]
    assert {inputs[2] for inputs in ray.tasks} == {"simulate", "anneal"}
    # Clocks differ from machine to machine, so tasks are told how long they have.
    assert all(900 < inputs[4] < 1000 for inputs in ray.tasks)
    assert not ray.is_running


def test_ray_errors_are_errors_of_the_simulation(ray, monkeypatch):
    def fails(*inputs):
        raise ZeroDivisionError("the machine is gone")

    monkeypatch.setattr(workers, "_run_on_ray", fails)
    with pytest.raises(SimulationError, match="Ray could not carry out a task: the machine is go"):
        plan(four_nodes(), backend="ray", jobs=2, **BRIEF)
    assert not ray.is_running
    ray.reachable = False
    with pytest.raises(SimulationError, match="no Ray cluster can be reached or started: no answ"):
        plan(four_nodes(), backend="ray", jobs=2, **BRIEF)

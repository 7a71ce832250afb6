"""Where tasks run: unknown and missing backends."""

from __future__ import annotations

import importlib.util

import pytest
from planner_problems import four_nodes
from typer.testing import CliRunner

from helixsim.cli import app
from helixsim.errors import InputError
from helixsim.planner.plan import plan

NO_RAY = "backend ray: Ray is not installed; pip install 'helixsim[ray]'"


def test_without_ray_a_plan_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    result = CliRunner().invoke(app, ["plan", "quickstart", "--backend", "ray"])
    assert (result.exit_code, result.stderr) == (2, f"{NO_RAY}\n")


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="backend: no backend 'dask'; there are local and ray"):
        plan(four_nodes(), backend="dask")

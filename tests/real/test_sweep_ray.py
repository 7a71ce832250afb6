"""A sweep on a Ray cluster gives what local processes give."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_study import TOO_SLOW, write_study
from typer.testing import CliRunner

from helixsim.cli import app

PACKAGE_ROOT = Path(__file__).parents[2]
HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sweep(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "helixsim", "sweep", *arguments],
        env=os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'helixsim[ray]'")
def test_ray_gives_the_same_tables():
    combinations = [
        {"scheduler.policy": "random"},
        TOO_SLOW,
        {"workload.mean_tokens_per_s": 50},
    ]
    study = write_study(grid=None, list=combinations, seeds=2)
    for backend in ("local", "ray"):
        done = sweep(study, "-o", backend, "--backend", backend, "--jobs", "2")
        assert done.returncode == 1, done.stderr
        assert done.stderr.endswith("2 of 6 runs failed; see the table cells\n")
    assert len(list(Path("ray/cells").iterdir())) == 4
    for name in ("cells.parquet", "summary.parquet"):
        assert Path("ray", name).read_bytes() == Path("local", name).read_bytes()
    for path in Path("ray/cells").iterdir():
        assert path.read_bytes() == (Path("local/cells") / path.name).read_bytes()


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_a_sweep_says_how_to_get_it():
    result = CliRunner().invoke(app, ["sweep", str(write_study()), "-o", "out", "--backend", "ray"])
    assert result.exit_code == 2
    assert result.stderr == "backend ray: Ray is not installed; pip install 'helixsim[ray]'\n"

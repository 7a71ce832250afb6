"""What users build on: names, flags and keys that must not change unnoticed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from builders import counts, make_scenario

import helixsim
from helixsim.cli import app
from helixsim.models.simulation import simulate

STATISTICS = ["mean", "p5", "p25", "p50", "p75", "p95", "p99"]
SUMMARY_KEYS = {
    "schema",
    "scenario",
    "seed",
    "physics",
    "decode_tokens_per_s",
    "max_flow_tokens_per_s",
    "prompt_latency_s",
    "decode_latency_s",
    "ttft_s",
    "tpot_s",
    "itl_s",
    "e2e_s",
    "requests",
    "output_tokens_per_s",
    "total_tokens_per_s",
    "window_start_s",
    "window_end_s",
}
RUN_FLAGS = {
    "--output": "-o",
    "--seed": None,
    "--set": None,
    "--record": None,
    "--format": None,
    "--watch": None,
    "--trace": None,
    "--trace-from": None,
    "--trace-for": None,
    "--json": None,
    "--force": None,
}


@pytest.fixture(scope="module")
def summary():
    return simulate(make_scenario({"a": (0, 1)}, requests=[(0, 3, 2)])).summary


def test_names_of_the_package():
    assert helixsim.__all__ == [
        "CalibrationResult",
        "CapacityResult",
        "Explanation",
        "HelixError",
        "Placement",
        "PlanResult",
        "ReplayResult",
        "RunResult",
        "Scenario",
        "SweepResult",
        "calibrate",
        "capacity",
        "explain",
        "load_results",
        "load_scenario",
        "place",
        "plan",
        "register_engine",
        "register_node_scheduler",
        "register_performance_model",
        "register_policy",
        "register_trace_format",
        "replay",
        "simulate",
        "sweep",
    ]
    shown = {name for name in dir(helixsim) if not name.startswith("__")}
    assert shown == {*helixsim.__all__, "plots"}
    assert helixsim.plots.PICTURES
    for name in helixsim.__all__:
        assert getattr(helixsim, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = helixsim.nothing


def test_the_package_imports_nothing_heavy_by_itself():
    code = (
        "import sys, helixsim, helixsim.cli;"
        "print([name for name in ('networkx', 'pandas', 'numpy', 'simpy', 'pydantic', 'pyarrow')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_flags_of_run():
    command = typer.main.get_command(app).commands["run"]
    flags = {}
    for parameter in command.params:
        long, *short = sorted(parameter.opts, key=len, reverse=True)
        if long.startswith("--"):
            flags[long] = short[0] if short else None
    flags.pop("--help", None)
    assert flags == RUN_FLAGS
    assert [p.name for p in command.params if p.param_type_name == "argument"] == ["file"]


def test_keys_of_the_summary(summary):
    assert set(summary) >= SUMMARY_KEYS
    assert summary["schema"] == 1


@pytest.mark.parametrize("key", sorted(key for key in SUMMARY_KEYS if key.endswith("_s")))
def test_statistics_of_the_summary(summary, key):
    if key in ("ttft_s", "tpot_s", "itl_s", "e2e_s") or "latency" in key:
        assert list(summary[key]) == STATISTICS
        assert all(isinstance(value, float) for value in summary[key].values())
    else:
        assert isinstance(summary[key], float)


def test_counts_of_the_summary(summary):
    assert summary["requests"] == counts(arrived=1, completed=1)

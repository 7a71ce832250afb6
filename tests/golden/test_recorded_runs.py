"""Recorded runs of the paper's prototype, replayed with the calibrated physics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helixsim.recorded.figures import recorded_figures
from helixsim.recorded.recording import load_recorded_run
from helixsim.recorded.replay import ReplaySettings, replay
from helixsim.scenario.import_helix import import_helix
from helixsim.scenario.load import resolve_scenario
from helixsim.scenario.resolved import Scenario

pytestmark = pytest.mark.reference

RUNS = (
    "single24-llama2-70b-helix-online",
    "single24-llama2-70b-swarm-online",
    "single24-llama2-70b-separate-a100-online",
    "single24-llama2-70b-separate-l4-online",
    "single24-llama1-30b-helix-l4-offline",
    "single24-llama1-30b-helix-t4-online",
    "single24-llama1-30b-helix-a100-online",
)
SEEDS = (0, 1)


def parameters_of(reference: Path, name: str) -> dict[str, object]:
    runs = json.loads((reference / "expected" / "recorded_runs.json").read_text())
    return next(run for run in runs if run["run"] == name)


def scenario_of(reference: Path, parameters: dict[str, object], physics: str) -> Scenario:
    placement = reference / "placements" / str(parameters["placement"])
    document = import_helix(
        cluster=reference / "clusters" / f"{parameters['cluster']}.ini",
        machines=reference / "clusters" / "machine_profiles.ini",
        solution=placement / "solution.ini",
        links=placement / "simulator_cluster.ini",
        llm=str(parameters["model"]),
        name="recorded",
    ).document
    document["physics"] = physics
    document["placement"]["allow_overcommitted_layers"] = True  # type: ignore[index]
    return resolve_scenario(document, reference / "scenario.yaml")


@pytest.mark.parametrize("name", RUNS)
def test_calibrated_physics_repeats_it(reference: Path, name: str) -> None:
    parameters = parameters_of(reference, name)
    run = load_recorded_run(reference / "recorded_runs" / name)
    scenario = scenario_of(reference, parameters, "calibrated")
    warmup_s = float(str(parameters["warmup_s"]))
    error = replay(run, scenario, ReplaySettings(warmup_s=warmup_s, seeds=SEEDS)).error
    offline = name.endswith("offline")
    assert run.is_closed_loop == offline
    assert abs(error["decode_tokens_per_s"]) < (0.06 if offline else 0.04)
    assert abs(error["decode_latency_s"]["mean"]) < 0.08
    assert abs(error["decode_latency_s"]["p50"]) < 0.12
    assert abs(error["decode_latency_s"]["p95"]) < 0.15
    assert abs(error["prompt_latency_s"]["mean"]) < 0.08


@pytest.mark.parametrize("name", RUNS)
def test_figures_of_the_recording_are_the_published_ones(reference: Path, name: str) -> None:
    parameters = parameters_of(reference, name)
    run = load_recorded_run(reference / "recorded_runs" / name)
    recorded = recorded_figures(run, float(str(parameters["warmup_s"])), run.sending_ended_s)
    published = parameters["published"]
    assert isinstance(published, dict)
    assert recorded["decode_tokens_per_s"] == pytest.approx(
        published["decode_tokens_per_s"], rel=0.01
    )
    for phase in ("prompt", "decode"):
        for column in ("mean", "p5", "p25", "p50", "p75", "p95"):
            expected = published[f"{phase}_latency_{column}_s"]
            found = recorded[f"{phase}_latency_s"][column]
            assert found == pytest.approx(expected, rel=0.01, abs=0.006), (phase, column)

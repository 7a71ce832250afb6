"""The simulator against what was published of the Helix artifact's own simulator.

Every run starts from a shipped scenario; what the published runs drew lengths and arrivals from
is set to the files of the reference folder.
"""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from helixsim import load_scenario
from helixsim.metrics.sample import Sample
from helixsim.models.simulation import Simulation, simulate
from helixsim.scenario.resolved import Scenario

pytestmark = pytest.mark.reference

ITERATION_FILES = [
    "s24-70b-maxflow-offline-660s",
    "s24-70b-maxflow-online-120s-drained",
    "s24-70b-swarm-offline-120s",
    "s24-70b-random-offline-90s",
    "s24-70b-shortest-queue-offline-90s",
]
CASES = [
    "s24-70b-helix-offline",
    "s24-70b-helix-online",
    "s24-70b-swarm-offline",
    "s24-70b-swarm-online",
    "s24-70b-separate-offline",
    "s24-70b-separate-online",
    "s24-30b-helix-offline",
    "s24-30b-swarm-offline",
    "het42-70b-helix-offline",
    "het42-70b-swarm-offline",
    "geo24-70b-helix-offline",
    "geo24-70b-study-maxflow-offline",
    "geo24-70b-study-swarm-offline",
    "geo24-70b-study-random-offline",
    "geo24-70b-study-shortest-queue-offline",
]


def published(reference: Path, name: str, parameters: dict[str, Any]) -> Scenario:
    """A shipped scenario with the parameters of a published run."""
    traces = reference / "traces"
    values = {
        "workload.mode": parameters["mode"],
        "workload.lengths": str(traces / "azure_conv_lengths.csv.gz"),
        "scheduler.policy": parameters["scheduler"],
        "run.seed": parameters["seed"],
        "run.duration": f"{parameters['duration_s']} s",
        "run.warmup": f"{parameters.get('warmup_s', 0)} s",
        "run.drain": str(parameters.get("drain", False)).lower(),
    }
    if parameters["mode"] == "online":
        values["workload.arrivals"] = str(traces / "azure_conv_arrivals_per_3s.csv")
        values["workload.mean_tokens_per_s"] = parameters["mean_tokens_per_s"]
    else:
        values["workload.initial_requests"] = parameters["initial_requests"]
    for key, value in parameters.get("kv", {}).items():
        values[f"scheduler.kv.{key}"] = value
    if "feed_high_water_mark" in parameters:
        values["scheduler.feed_high_water_mark"] = parameters["feed_high_water_mark"]
    if parameters.get("allow_overcommitted_layers"):
        values["placement.allow_overcommitted_layers"] = "true"
    return load_scenario(name, [f"{path}={value}" for path, value in values.items()])


def shipped_name(placement: str) -> str:
    """The shipped scenario that has a published placement."""
    if placement.endswith("helix-scheduling-study"):
        return "geo24-llama2-70b-study-maxflow-offline"
    return placement.replace("/", "-") + "-offline"


def first_routes(requests: pd.DataFrame, of: dict[str, Any]) -> dict[str, list[int]]:
    """Routes as they are published: numbers of the nodes, and 1 for the sink."""
    routes = dict(zip(requests["request"].astype(str), requests["route"], strict=True))
    return {
        number: [
            *(int(stage.partition("[")[0].rpartition("_")[2]) for stage in routes[number].split()),
            1,
        ]
        for number in of
    }


@pytest.mark.parametrize("name", ITERATION_FILES)
def test_every_iteration_is_bit_identical(reference: Path, name: str) -> None:
    folder = reference / "expected" / "iterations"
    parameters = json.loads((folder / "index.json").read_text())[name]
    scenario = published(reference, shipped_name(parameters["placement"]), parameters)

    result = simulate(scenario, record_iterations=True)

    with gzip.open(folder / f"{name}.csv.gz", "rt", newline="") as stream:
        rows = csv.reader(stream)
        header = next(rows)
        expected = [(int(a), int(b), c, float(d), float(e)) for a, b, c, d, e in rows]
    table = result.tables["iterations"]
    assert list(table.names) == header
    got = list(zip(*table.values, strict=True))
    assert len(got) == len(expected) == parameters["iterations"]
    different = [
        (mine, theirs) for mine, theirs in zip(got, expected, strict=True) if mine != theirs
    ]
    assert not different, different[:3]
    assert first_routes(result.requests, parameters["first_routes"]) == parameters["first_routes"]


@pytest.mark.parametrize("name", CASES)
def test_published_figures_to_the_digit(reference: Path, name: str) -> None:
    cases = json.loads((reference / "expected" / "simulator_cases.json").read_text())
    case = next(case for case in cases if case["id"] == name)
    tokens_per_s = 0.0
    latency = {"prompt": Sample(), "decode": Sample()}
    for part in case["parts"]:
        parameters = case | part | {"duration_s": case["warmup_s"] + case["measure_s"]}
        parameters["initial_requests"] = part.get("initial_queries")
        simulation = Simulation(published(reference, shipped_name(part["placement"]), parameters))
        summary = simulation.run().summary
        assert summary["window_end_s"] - summary["window_start_s"] == case["measure_s"]
        tokens_per_s += summary["decode_tokens_per_s"]
        latency["prompt"].merge(simulation.recorder.prompt_latency_s)
        latency["decode"].merge(simulation.recorder.decode_latency_s)

    got = {"decode_tokens_per_s": round(tokens_per_s, 1)}
    for phase, sample in latency.items():
        for statistic, value in sample.statistics().items():
            assert value is not None
            got[f"{phase}_latency_{statistic}_s"] = round(value, 2)
    assert {key: got[key] for key in case["published"]} == case["published"]


def test_all_published_cases_are_compared(reference: Path) -> None:
    cases = json.loads((reference / "expected" / "simulator_cases.json").read_text())
    assert [case["id"] for case in cases] == CASES

"""Traces for Perfetto: what stands in them, and that they change nothing."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from helixsim import load_scenario
from helixsim.cli import app
from helixsim.models.simulation import Simulation

SHORT = ["run.duration=40 s", "run.warmup=10 s"]
CASES = [
    ("paper", "maxflow"),
    ("paper", "swarm"),
    ("paper", "random"),
    ("calibrated", "maxflow"),
    ("calibrated", "swarm"),
]


def traced(physics, policy):
    scenario = load_scenario(
        "quickstart", [*SHORT, f"physics={physics}", f"scheduler.policy={policy}"]
    )
    simulation = Simulation(scenario, record_iterations=True, trace_span_s=(10.0, 20.0))
    result = simulation.run()
    return simulation.tracer.trace_bytes(simulation.topology, result), result, scenario


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def run(request):
    return traced(*request.param)


@pytest.fixture(scope="module")
def events(run):
    return json.loads(gzip.decompress(run[0]))["traceEvents"]


def test_tracing_changes_nothing(run):
    _, result, scenario = run
    plain = Simulation(scenario, record_iterations=True).run()
    assert plain.summary == result.summary
    for name, table in plain.tables.items():
        assert repr(table.values) == repr(result.tables[name].values)


def test_slices_of_a_track_do_not_overlap(events):
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append(event)
    assert {pid for pid, _ in tracks} == {1, 2}
    for slices in tracks.values():
        ordered = sorted(slices, key=lambda event: event["ts"])
        for one, other in pairwise(ordered):
            assert one["ts"] + one["dur"] <= other["ts"] + 1e-2


def test_every_track_has_a_name(events):
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"} <= named


def test_flows_begin_and_end_within_slices(events):
    flows = defaultdict(list)
    slices = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            flows[event["id"]].append(event)
        elif event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert flows
    for steps in flows.values():
        phases = "".join(step["ph"] for step in steps)
        assert phases[0] == "s"
        assert phases[-1] == "f"
        assert set(phases[1:-1]) <= {"t"}
        assert all(a["ts"] <= b["ts"] for a, b in pairwise(steps))
        for step in steps:
            spans = slices[step["pid"], step["tid"]]
            assert any(a - 1e-2 <= step["ts"] <= b + 1e-2 for a, b in spans)


def test_only_the_span_is_traced(events):
    times = [event["ts"] / 1e6 for event in events if event["ph"] == "X"]
    assert min(times) >= 10.0
    assert max(times) <= 20.0


def test_command(tmp_path):
    common = ["run", "quickstart", "--set", SHORT[0], "--set", SHORT[1]]

    def invoke(*more):
        return CliRunner().invoke(app, [*common, *map(str, more)])

    done = invoke("--trace", "-o", tmp_path / "a", "--trace-from", "5 s", "--trace-for", "2 s")
    assert done.exit_code == 0, done.output
    found = json.loads(gzip.decompress((tmp_path / "a" / "trace.json.gz").read_bytes()))
    times = [e["ts"] / 1e6 for e in found["traceEvents"] if e["ph"] == "X"]
    assert 5 <= min(times) <= max(times) <= 7
    assert invoke("--trace").exit_code == 2
    assert invoke("-o", tmp_path / "a", "--force").exit_code == 0
    assert not (tmp_path / "a" / "trace.json.gz").exists()
    assert invoke("--trace", "--trace-for", "2", "-o", tmp_path / "b").exit_code == 2
    assert not (tmp_path / "b").exists()

"""Planning for several front ends, each of which has its share of the requests."""

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from helixsim.cli import app
from helixsim.errors import ScenarioError
from helixsim.planner.max_flow.dinic import flow_value
from helixsim.planner.max_flow.upper_bound import trivial_bound
from helixsim.planner.plan import plan
from helixsim.planner.problem import planning_problem
from helixsim.planner.simulated.candidates import most_stages
from helixsim.planner.simulated.search import EFFORTS
from helixsim.planner.simulated.surrogate import Surrogate
from helixsim.scenario.resolved import Scenario

FAST = {"bandwidth": "10 Gbit/s", "latency": "0 ms"}
PIPELINES = {
    f"{region}-{i}": (15 * i, 15 * i + 15) for region in ("east", "west") for i in range(4)
}


def two_regions(across="10 Gbit/s", east=0.5, front_ends=("east", "west"), **document) -> Scenario:
    """Four A100 in each region, and a front end in each; 40 ms lie between."""
    rules = {"within": FAST}
    if across is not None:
        rules["across"] = {"bandwidth": across, "latency": "40 ms"}
    shares = {"east": east, "west": 1 - east} if len(front_ends) > 1 else {"east": 1.0}
    return Scenario.from_dict(
        {
            "name": "two",
            "llm": "llama1-30b",
            "cluster": {
                "coordinator": [
                    {"nic": "10 Gbit/s", "region": region, "share": shares[region]}
                    for region in front_ends
                ],
                "nodes": [
                    {"type": "A100", "name": f"{region}-{{i}}", "count": 4, "region": region}
                    for region in ("east", "west")
                ],
                "network": rules,
            },
            "workload": {"mode": "offline", "lengths": "azure-conversation"},
            "run": {"duration": "10 s"},
            **document,
        }
    )


LAYOUTS = {
    "a pipeline in each region": PIPELINES,
    "one chain through both": {
        name: (8 * i if i < 4 else 32 + 7 * (i - 4), 8 * i + 8 if i < 4 else 39 + 7 * (i - 4))
        for i, name in enumerate(PIPELINES)
    },
    "mixed": {
        name: (15 * (3 - i % 4), 15 * (3 - i % 4) + 15) if name.startswith("west") else layers
        for i, (name, layers) in enumerate(PIPELINES.items())
    },
}


@pytest.mark.parametrize("layers", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("across", ["10 Gbit/s", "1 Mbit/s", "1 kbit/s"])
@pytest.mark.parametrize("east", [0.5, 0.9])
def test_the_quick_value_of_a_flow_is_that_of_the_flow(layers, across, east):
    problem = planning_problem(two_regions(across, east))
    ranges = {problem.numbers[name]: held for name, held in layers.items()}
    ranges = {node: (start, min(end, 60)) for node, (start, end) in ranges.items()}
    value = flow_value(problem, ranges)
    flow = problem.flow(problem.placement(ranges))
    assert value == pytest.approx(flow.tokens_per_s, rel=1e-6)
    assert 0 < value <= trivial_bound(problem).tokens_per_s


def test_separate_regions_carry_what_the_smaller_share_of_their_capacity_allows():
    # Each region carries the same, so that a share of 0.8 leaves room in the west:
    # 0.8 F <= one pipeline.
    ranges = dict(enumerate(PIPELINES.values()))
    values = [flow_value(planning_problem(two_regions(None, east)), ranges) for east in (0.5, 0.8)]
    assert values[1] == pytest.approx(values[0] / 2 / 0.8)


def test_a_front_end_without_nodes_is_named():
    with pytest.raises(ScenarioError, match="the front end front-end-north has no link to a node"):
        planning_problem(
            Scenario.from_dict(
                {
                    **two_regions().document,
                    "cluster": {
                        **two_regions(None).document["cluster"],
                        "coordinator": [
                            {"nic": "10 Gbit/s", "region": region} for region in ("east", "north")
                        ],
                    },
                }
            )
        )


def test_a_part_of_a_problem_has_the_front_ends_that_reach_it():
    whole = planning_problem(two_regions(None))
    part = whole.restricted([4, 5, 6, 7])
    assert part.cluster.front_end_names == ("front-end-west",)
    assert flow_value(part, dict(enumerate(list(PIPELINES.values())[:4]))) > 0


@pytest.mark.parametrize("across", ["10 Gbit/s", None])
def test_a_plan_serves_both_front_ends(across):
    scenario = two_regions(across)
    found = plan(scenario, objective="flow", time_limit_s=3.0)
    assert found.max_flow_tokens_per_s > 0
    if across is None:
        ends = {("front-end-east", "east"), ("front-end-west", "west")}
        links = [pair for pair in found.placement.links if pair[0].startswith("front-end")]
        assert {(a, b[:4]) for a, b in links} == ends


def test_a_simulated_plan_serves_both_front_ends():
    scenario = two_regions(run={"duration": "2 s", "warmup": "0 s"})
    found = plan(scenario, effort=EFFORTS["quick"], time_limit_s=5.0)
    entries = {pair[0] for pair in found.placement.links if pair[0].startswith("front-end")}
    assert entries == {"front-end-east", "front-end-west"}
    assert found.candidates


def test_the_surrogate_takes_all_front_ends_as_the_nearest():
    two, one = two_regions(), two_regions(front_ends=("east",))
    ranges = dict(enumerate(PIPELINES.values()))
    latencies = []
    for scenario in (two, one):
        problem = planning_problem(scenario)
        surrogate = Surrogate(scenario, problem)
        placement = problem.placement(ranges)
        topology = problem.topology(placement)
        assert most_stages(topology) == 4
        estimates = [
            surrogate.of_ranges(ranges),
            surrogate.of_flow(topology, problem.flow(placement)),
        ]
        assert all(each.decode_tokens_per_s > 0 for each in estimates)
        latencies.append([each.decode_latency_s for each in estimates])
    # With one front end, half of the requests go to the west: 80 ms there and back again.
    assert latencies[1][0] - latencies[0][0] > 0.02
    assert latencies[1][1] > latencies[0][1] - 1e-9


def test_the_command_writes_a_placement_that_runs_with_both_front_ends(tmp_path):
    file, planned = tmp_path / "two.yaml", tmp_path / "planned.yaml"
    file.write_text(yaml.safe_dump({"schema": 1, **two_regions().document}))
    arguments = ["plan", str(file), "--objective", "flow", "--write-scenario", str(planned)]
    made = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "placement.yaml")])
    assert (made.exit_code, made.exception) == (0, None)
    results = tmp_path / "results"
    run = CliRunner().invoke(app, ["run", str(planned), "-o", str(results), "--format", "csv"])
    assert (run.exit_code, run.exception) == (0, None)
    requests = pd.read_csv(results / "requests.csv")
    assert set(requests["front_end"]) == {"front-end-east", "front-end-west"}
    links = pd.read_csv(results / "links.csv")
    assert {"front-end-east", "front-end-west"} <= set(links["source"])

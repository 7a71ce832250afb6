"""Problems for tests of planning methods: toys and published clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from builders import (
    HOST,
    Pairs,
    capacity,
    make_cluster,
    make_llm,
    make_machine_type,
    make_scenario,
    offline,
)

from helixsim.placement.placement import Placement
from helixsim.planner.problem import PlanningProblem, planning_problem
from helixsim.planner.simulated.layer_flow import span_shares
from helixsim.profiles.machine import LatencyProfile
from helixsim.scenario.helix_ini import HelixIni
from helixsim.scenario.load import load_scenario, resolve_scenario
from helixsim.scenario.resolved import RunSettings, Scenario
from helixsim.scenario.scheduler_settings import SchedulerSettings
from helixsim.scenario.workload_values import Workload

PUBLISHED = {
    "single24": "single24-llama2-70b-helix-offline",
    "geo24": "geo24-llama2-70b-helix-offline",
    "het42": "het42-llama2-70b-helix-offline",
    "single24-30b": "single24-llama1-30b-swarm-offline",
}


def published(cluster: str, **options: object) -> PlanningProblem:
    return planning_problem(load_scenario(PUBLISHED[cluster]), **options)  # type: ignore[arg-type]


def toy_problem(
    most_layers: Mapping[str, int],
    num_layers: int,
    *,
    link: tuple[float, float] = (1e3, 0.0),
    links: Pairs | None = None,
    nics: Mapping[str, float] | None = None,
    **options: object,
) -> PlanningProblem:
    """Nodes by the most layers that each may hold; those with equal numbers are of one type.

    All nodes compute at one speed. `links` replace `link` for the pairs that they name. By
    default, links and network interfaces carry a hundred times what a node computes, not a billion
    times: NetworkX's preflow-push loses precision between numbers that far apart.
    """
    types = {most: make_machine_type(f"holds{most}", most) for most in most_layers.values()}
    names = [*most_layers, HOST]
    pairs = {(a, b): link for a in names for b in names if a != b} | dict(links or {})
    scenario = Scenario(
        name="toy",
        llm=make_llm(num_layers),
        machine_types={kind.name: kind for kind in types.values()},
        cluster=make_cluster(
            {name: types[most].name for name, most in most_layers.items()},
            {pair: values for pair, values in pairs.items() if values[0] > 0},
            dict.fromkeys(names, 1e3) | dict(nics or {}),
        ),
        placement=None,
        scheduler=SchedulerSettings(),
        workload=Workload(mode="offline", mean_prompt_tokens=10, mean_output_tokens=4),
        physics="paper",
        run=RunSettings(duration_s=1.0),
        document={},
        digest="0" * 64,
    )
    return planning_problem(scenario, **options)  # type: ignore[arg-type]


def small10(reference: Path, **options: object) -> PlanningProblem:
    """The published cluster of 6 T4 and 4 L4, with the largest LLM that it can hold."""
    file = reference / "clusters" / "small10.ini"
    ini = HelixIni(file)
    numbers = range(ini.whole("NodeNames", "total_compute_nodes"))
    speed = ini.positive("Link-0-1", "bandwidth")
    types = [ini.name(f"ComputeNode-{number}", "type") for number in numbers]
    document = {
        "schema": 1,
        "name": "small10",
        "llm": "llama1-30b",
        "cluster": {
            "coordinator": {"nic": "10 GB/s"},
            "nodes": [{"name": f"node{n}", "type": kind} for n, kind in enumerate(types)],
            "network": {"within": {"bandwidth": f"{speed:g} B/s", "latency": "1 ms"}},
        },
        "workload": {"mode": "offline", "lengths": "azure-conversation"},
        "run": {"duration": "60 s"},
    }
    return planning_problem(resolve_scenario(document, file), **options)  # type: ignore[arg-type]


def node_shares(problem, ranges):
    """Share of all requests that pass each node: those of its span, by throughput."""
    capacity = {}
    for node, (start, end) in ranges.items():
        rate = problem.tokens_per_s(node, end - start)
        capacity[start, end] = capacity.get((start, end), 0.0) + rate
    shares = span_shares(capacity, problem.num_layers)
    return {
        node: shares[span] * problem.tokens_per_s(node, span[1] - span[0]) / capacity[span]
        for node, span in ranges.items()
        if span in shares
    }


FOUR_NODES = {"a": (0, 2), "b": (2, 4), "c": (0, 2), "d": (2, 4)}


def four_nodes(layers=None):
    """Two nodes that hold 3 of 4 layers, and two that hold 2 and are half as fast."""
    layers = layers or FOUR_NODES
    big = make_machine_type(
        "big",
        3,
        room=capacity(kv_token_layers=600),
        prefill=LatencyProfile((0, 1000), (0.0, 1.0)),
        decode=LatencyProfile((0, 1000), (0.02, 0.05)),
    )
    small = make_machine_type(
        "small",
        2,
        room=capacity(kv_token_layers=300),
        prefill=LatencyProfile((0, 1000), (0.0, 2.0)),
        decode=LatencyProfile((0, 1000), (0.02, 0.05)),
    )
    names = ["a", "b", "c", "d", HOST]
    scenario = make_scenario(
        dict.fromkeys("abcd", (0, 4)) | layers,
        types={"a": big, "b": big, "c": small, "d": small},
        links={(a, b): (1e5, 0.002) for a in names for b in names if a != b},
        nics=dict.fromkeys(names, 1e6),
        workload=offline([(10, 4), (20, 8), (5, 10)], initial_requests=4),
        duration_s=5.0,
        warmup_s=1.0,
    )
    return replace(scenario, placement=Placement(dict(layers)))

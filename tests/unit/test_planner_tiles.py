"""Large clusters, cut into tiles: toys of a dozen nodes whose figures can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import HOST, capacity, make_machine_type, make_scenario, offline

from helixsim.models.simulation import simulate
from helixsim.planner.plan import plan
from helixsim.planner.problem import planning_problem
from helixsim.planner.search_budget import SearchBudget
from helixsim.planner.simulated.alike import SIMILAR, alike_nodes
from helixsim.planner.simulated.search import Effort
from helixsim.profiles.machine import LatencyProfile

RATE = "decode_tokens_per_s"
LAYERS = 8
FAST, SLOW = (1e9, 0.001), (1e3, 0.05)
BRIEF = SearchBudget(
    tiles_from_nodes=12,
    tile_sizes=(4,),
    tile_steps=60,
    tile_rounds=1,
    tile_annealings=2,
    proposal_steps=60,
    templates=60,
)
TINY = Effort(num_seeds=1, rounds=1, annealings=2)


def cluster(regions, *, most_layers=2, **options):
    """Alike nodes in regions, each with as many nodes as given; slow links between regions.

    A node has room for two layers and a single request of 14 tokens. A layer takes 10 ms.
    """
    layer = LatencyProfile((0, 1, 1000), (0.0, 0.01, 0.01))
    kind = make_machine_type(
        "kind", most_layers, room=capacity(kv_token_layers=40), prefill=layer, decode=layer
    )
    names = [f"{region}{n}" for region, count in regions.items() for n in range(count)]
    region = {name: name[0] for name in names} | {HOST: "a"}
    links = {
        (x, y): FAST if HOST in (x, y) or region[x] == region[y] else SLOW
        for x in region
        for y in region
        if x != y
    }
    scenario = make_scenario(
        dict.fromkeys(names, (0, LAYERS)),
        types=dict.fromkeys(names, kind),
        links=links,
        workload=offline([(10, 4)], initial_requests=12),
        duration_s=60.0,
        warmup_s=4.0,
        **options,
    )
    nodes = tuple(replace(node, region=region[node.name]) for node in scenario.cluster)
    return replace(scenario, placement=None, cluster=replace(scenario.cluster, nodes=nodes))


def planned(scenario, **options):
    return plan(scenario, **({"effort": TINY, "budget": BRIEF} | options))


def test_twelve_alike_nodes_serve_three_times_what_four_serve():
    result = planned(cluster({"a": 12}))
    print([(each.label, each.figures.get(RATE), each.chosen) for each in result.candidates])
    print(simulate(replace(cluster({"a": 4}), placement=plan(cluster({"a": 4}), budget=BRIEF, effort=TINY).placement)).summary[RATE])
    assert 0

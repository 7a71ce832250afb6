"""Large clusters, cut into tiles: toys of a dozen nodes whose figures can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import HOST, capacity, make_machine_type, make_scenario, offline
from planner_problems import toy_problem

from helixsim.placement.placement import Placement
from helixsim.planner.documents import plan_text
from helixsim.planner.notes import small_shares
from helixsim.planner.objective import Objective
from helixsim.planner.plan import plan
from helixsim.planner.problem import planning_problem
from helixsim.planner.search_budget import SearchBudget
from helixsim.planner.simulated.alike import SIMILAR, alike_nodes
from helixsim.planner.simulated.search import Effort, SimulatedSearch
from helixsim.planner.simulated.tasks import Setting
from helixsim.planner.simulated.trial_pool import TrialPool
from helixsim.planner.tiles.assembly import merit
from helixsim.planner.tiles.cuts import Cut, Tile, cuts, sites
from helixsim.planner.tiles.parts import PartPlan, part_scenario, shared_load, transferred
from helixsim.profiles.machine import LatencyProfile

RATE = "decode_tokens_per_s"
LAYERS = 8
FAST, SLOW = (1e9, 0.001), (1e3, 0.05)
BRIEF = SearchBudget(
    tiles_from_nodes=12,
    tile_sizes=(4,),
    tile_steps=60,
    tile_annealings=2,
    proposal_steps=60,
    templates=60,
    anneal_iterations=50,
    anneal_rounds=1,
    start_stage_factors=(),
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


def labelled(result, start):
    return [each for each in result.candidates if each.label.startswith(start)]


def alike_of(problem):
    return alike_nodes(problem, SIMILAR)


def names_of(problem, nodes):
    return [problem.names[node] for node in nodes]


# -- the plan


def test_twelve_alike_nodes_serve_three_times_what_four_serve():
    whole = planned(cluster({"a": 12}))
    (tiles,) = labelled(whole, "tiles 3 x 4")
    one = planned(cluster({"a": 4}), budget=replace(BRIEF, tiles_from_nodes=99))
    assert labelled(one, "tiles") == []
    assert tiles.figures[RATE] == pytest.approx(3 * one.simulated[RATE], rel=0.01)
    assert tiles.stages == 4
    counts = [list(tiles.placement.layers.values()).count((n, n + 2)) for n in range(0, 8, 2)]
    assert counts == [3, 3, 3, 3]
    as_plan = replace(whole, candidates=(replace(tiles, chosen=True),))
    assert "made of     tiles 3 x 4\n" in plan_text(as_plan)
    assert len(tiles.placement.links) == 3 * 5  # in a tile, each node has one way in and one out


def test_the_plan_is_at_least_as_good_as_every_start_and_repeats():
    scenario = cluster({"a": 9, "b": 5})
    result, again = planned(scenario), planned(scenario)
    assert labelled(result, "tiles 3 x 4-5")
    assert labelled(result, "replicas") or labelled(result, "swarm")
    best = max(each.figures[RATE] for each in result.candidates)
    assert result.simulated[RATE] == best
    assert result.placement == again.placement
    assert [e.figures for e in result.candidates] == [e.figures for e in again.candidates]


def test_steps_and_candidates_say_what_was_done():
    steps = []
    planned(cluster({"a": 12}), on_progress=lambda progress: steps.append(progress.step))
    said = list(dict.fromkeys(steps))
    assert "estimates of 1 tiles of 1 cuts" in said
    assert "searches of 1 tiles of 1 cuts" in said
    assert said.index("searches of 1 tiles of 1 cuts") < said.index(
        next(step for step in said if step.startswith("simulations of the whole"))
    )


def test_constraints_hold_in_every_tile():
    result = planned(
        cluster({"a": 14}), fix=["a0=0-1", "a5=2-3"], ban=["a1=0-5"], leave_out=["a13"]
    )
    found = labelled(result, "tiles")
    assert found
    for each in found:
        layers = each.placement.layers
        assert (layers["a0"], layers["a5"]) == ((0, 2), (2, 4))
        assert layers.get("a1", (6, 8)) == (6, 8)
        assert "a13" not in layers


def test_routes_stay_in_a_region_if_they_have_to():
    result = planned(cluster({"a": 8, "b": 4, "c": 2}), same_region=True)
    (tiles, *_) = labelled(result, "tiles 3 x 4")
    assert {name[0] for name in tiles.placement.layers} == {"a", "b"}
    assert all(HOST in pair or pair[0][0] == pair[1][0] for pair in tiles.placement.links)


def test_no_route_of_a_tile_has_too_many_stages():
    result = planned(cluster({"a": 12}, most_layers=4), max_stages=3)
    found = labelled(result, "tiles")
    assert found
    assert all(each.stages <= 3 for each in found)


def test_without_time_there_is_a_plan_all_the_same():
    result = planned(cluster({"a": 12}), time_limit_s=0.05)
    assert set(result.placement.layers)


def test_what_has_not_run_is_no_plan_where_methods_are_compared():
    """Before any run the first candidate is the best one, whatever the estimates say."""
    scenario = cluster({"a": 12})
    problem = planning_problem(scenario)
    objective = Objective()
    pool = TrialPool(Setting(scenario, objective, 0, False, None, None, None), problem, 1)
    search = SimulatedSearch(scenario, problem, objective, pool, left_s=lambda: 0.0)
    chain = {f"a{n}": (2 * n, 2 * n + 2) for n in range(4)}
    slow = Placement(chain)
    fast = Placement({f"a{n}": (n // 3 * 2, n // 3 * 2 + 2) for n in range(12)})
    for label, placement in (("fast", fast), ("slow", slow)):
        search.offer(label, placement)
    assert search.chosen().label == "fast"
    assert search.compare(["slow", "fast"]).label == "slow"
    for each in search.pool:
        if each.label == "fast":
            each.runs[0] = {RATE: 0.1}
    assert search.chosen().label == "fast"


def test_an_online_load_is_shared():
    scenario = cluster({"a": 12})
    online = replace(scenario.workload, mode="online", mean_tokens_per_s=600.0)
    assert shared_load(online, 0.25).mean_tokens_per_s == 150.0
    traced = replace(online, mean_tokens_per_s=None, rate_scale=2.0)
    assert shared_load(traced, 0.25).rate_scale == 0.5
    assert shared_load(scenario.workload, 0.25).initial_requests == 3
    assert shared_load(scenario.workload, 0.01).initial_requests == 1


# -- parts


def test_a_plan_is_transferred_to_a_tile_with_other_counts():
    """Classes 0 0 1 to 0 1 1: one node of class 0 is missing, the other of class 1 begins again."""
    plan_of_source = ((0, (0, 3)), (1, (3, 5)), (2, (5, 8)))
    assert transferred(plan_of_source, [0, 0, 1], [0, 1, 1]) == (
        (0, (0, 3)),
        (1, (5, 8)),
        (2, (5, 8)),
    )
    assert transferred(plan_of_source, [0, 0, 1], [0, 0, 2]) == ((0, (0, 3)), (1, (3, 5)))


def test_rates_of_tiles_add_up_and_those_that_were_not_planned_count_as_the_others():
    first, second = Tile((0, 1), ((0, 2),)), Tile((2, 3, 4), ((0, 3),))
    cut = Cut("mixed", (first, second, first))
    plans = {first.key: PartPlan((), 4.0)}
    assert merit(cut, plans, is_rate=True) == 14.0  # 2 tokens/s for each of 7 nodes
    plans[second.key] = PartPlan((), 7.0)
    assert merit(cut, plans, is_rate=True) == 15.0
    assert merit(cut, plans, is_rate=False) == pytest.approx((2 * 4 + 3 * 7 + 2 * 4) / 7)


def test_a_part_passes_over_what_the_whole_would_pass_over():
    """Of a part with a fifth of the load, 25 % are 5 % of the whole."""
    scenario = cluster({"a": 12}, min_flow_share=0.05)
    problem = planning_problem(scenario)
    part = part_scenario(scenario, problem.restricted([1, 4, 7, 8]), 0.2)
    assert part.scheduler.min_flow_share == pytest.approx(0.25)
    assert [node.name for node in part.cluster] == ["a1", "a4", "a7", "a8"]
    assert part_scenario(scenario, problem, 0.04).scheduler.min_flow_share == 0.05


def test_nodes_that_are_passed_over_are_noted():
    """A quarter of the layers, four times the tokens: the chain has 4/7 of the flow."""
    scenario = cluster({"a": 12}, most_layers=8, min_flow_share=0.3)
    chain = {f"a{n}": (2 * n, 2 * n + 2) for n in range(4)}
    several = {f"a{n}": (0, 8) for n in range(4, 7)}
    said = small_shares(scenario, Placement(chain | several))
    assert said.startswith("3 of the nodes with the first layers get no requests")
    assert "--set scheduler.min_flow_share=0.071" in said  # half of 1/7
    assert small_shares(scenario, Placement(several)) == ""


# -- cuts


def test_a_site_that_cannot_hold_the_llm_joins_another():
    problem = planning_problem(cluster({"a": 5, "b": 4, "c": 2}))
    alike = alike_of(problem)
    site_of = [{"a": 0, "b": 1, "c": 2}[problem.names[m[0]][0]] for m in alike.members]
    found = [names_of(problem, site) for site in sites(problem, alike, site_of)]
    assert found == [["a0", "a1", "a2", "a3", "a4", "c0", "c1"], ["b0", "b1", "b2", "b3"]]


def test_kinds_that_hold_too_little_are_one_tile():
    problem = toy_problem({"a": 1, "b": 2, "c": 2, "d": 2, "e": 2, "f": 2, "g": 3}, 4)
    found = cuts(problem, alike_of(problem), range(7), (2,))
    (kinds,) = (each for each in found if each.how == "by kind")
    # Five nodes with room for two layers each are two tiles; one and three layers are together.
    assert [names_of(problem, tile.nodes) for tile in kinds.tiles] == [
        ["b", "c"],
        ["d", "e", "f"],
        ["a", "g"],
    ]


def test_each_kind_is_dealt_evenly_and_the_rest_to_the_slowest():
    scenario = cluster({"a": 12})
    slow = scenario.machine_types["kind"]
    fast_layer = LatencyProfile((0, 1, 1000), (0.0, 0.005, 0.005))
    fast = make_machine_type(
        "fast", 2, room=capacity(kv_token_layers=40), prefill=fast_layer, decode=fast_layer
    )
    nodes = tuple(
        replace(node, machine_type="fast" if number < 7 else "kind")
        for number, node in enumerate(scenario.cluster)
    )
    scenario = replace(
        scenario,
        machine_types={"kind": slow, "fast": fast},
        cluster=replace(scenario.cluster, nodes=nodes),
    )
    problem = planning_problem(scenario)
    alike = alike_of(problem)
    mixed, like, kinds = cuts(problem, alike, range(12), (4,))
    # Two fast nodes and a slow one each; then a fast one to the first, and slow ones to the others.
    assert [names_of(problem, tile.nodes) for tile in mixed.tiles] == [
        ["a0", "a1", "a6", "a7"],
        ["a2", "a3", "a8", "a10"],
        ["a4", "a5", "a9", "a11"],
    ]
    assert [tile.key for tile in mixed.tiles] == [
        ((0, 3), (1, 1)),
        ((0, 2), (1, 2)),
        ((0, 2), (1, 2)),
    ]
    assert (mixed.how, like.how) == ("mixed", "like with like")
    assert [len(tile.nodes) for tile in like.tiles] == [4, 4, 4]
    assert like.tiles[0].key == ((0, 4),)
    assert [tile.key for tile in kinds.tiles] == [((0, 7),), ((1, 5),)]  # each for one replica
    # Two or three nodes cannot hold the LLM.
    assert cuts(problem, alike, range(12), (4, 2, 3)) == [mixed, like, kinds]
    halves = cuts(problem, alike, range(12), (4,), least_share=0.4)
    assert [len(tile.nodes) for cut in halves for tile in cut.tiles] == [6, 6, 12]

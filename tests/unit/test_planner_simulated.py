"""Plans by simulation, end to end, on a toy cluster of four nodes."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from itertools import count

import pytest
from planner_problems import four_nodes as toy

from helixsim.errors import InputError, PlacementError
from helixsim.models.simulation import simulate
from helixsim.placement.placement import Placement
from helixsim.planner import plan_run
from helixsim.planner.max_flow.dinic import longest_route
from helixsim.planner.plan import plan
from helixsim.planner.problem import planning_problem
from helixsim.planner.search_budget import SearchBudget
from helixsim.planner.simulated.candidates import Candidate, front, spread
from helixsim.planner.simulated.search import Effort

RATE, LATENCY = "decode_tokens_per_s", "decode_latency_s.mean"
TINY = Effort(num_seeds=1, rounds=1, annealings=2)
BRIEF = SearchBudget(proposal_steps=60, templates=60)  # enough for a toy


def planned(scenario=None, **options):
    return plan(scenario or toy(), **({"effort": TINY, "budget": BRIEF} | options))


def essence(result):
    return (
        result.placement,
        result.simulated,
        result.stages,
        [(each.label, each.placement, each.figures, each.on_front) for each in result.candidates],
    )


@pytest.fixture(scope="module")
def usual():
    return planned()


# -- the plan


def test_the_plan_is_one_of_the_candidates(usual):
    chosen = [each for each in usual.candidates if each.chosen]
    assert [each.placement for each in chosen] == [usual.placement]
    assert usual.simulated == chosen[0].figures
    assert usual.max_flow_tokens_per_s == chosen[0].max_flow_tokens_per_s
    assert usual.notes == ()
    assert not usual.interrupted


def test_its_figures_are_those_of_a_run(usual):
    scenario = replace(toy(), placement=usual.placement)
    assert simulate(scenario).summary[RATE] == usual.simulated[RATE]


def test_its_flow_is_within_the_bound(usual):
    problem = planning_problem(toy())
    assert usual.value == problem.flow(usual.placement).tokens_per_s
    assert usual.value <= usual.bound * (1 + 1e-9)
    ranges = problem.ranges(usual.placement)
    assert usual.stages == longest_route(problem, ranges)


def test_the_own_placement_is_never_better(usual):
    own = next(each for each in usual.candidates if each.label == "own")
    assert own.placement == toy().placement
    assert usual.simulated[RATE] >= own.figures[RATE]
    worst = planned(toy({"a": (0, 3), "d": (3, 4)}))
    own = next(each for each in worst.candidates if each.label == "own")
    assert worst.simulated[RATE] > own.figures[RATE]


def test_a_seed_gives_one_plan_with_any_number_of_processes(usual):
    assert essence(planned()) == essence(usual)
    assert essence(planned(jobs=2)) == essence(usual)


def test_the_front_is_not_beaten(usual):
    candidates = usual.candidates
    assert usual.front
    for each in candidates:
        beaten = any(
            other.figures[RATE] >= each.figures[RATE]
            and other.figures[LATENCY] <= each.figures[LATENCY]
            and (other.figures[RATE], other.figures[LATENCY])
            != (each.figures[RATE], each.figures[LATENCY])
            for other in candidates
        )
        assert not (each.on_front and beaten)
        if not beaten:
            point = (each.figures[RATE], each.figures[LATENCY])
            assert point in [(f.figures[RATE], f.figures[LATENCY]) for f in usual.front]
    assert [each.figures[LATENCY] for each in usual.front] == sorted(
        each.figures[LATENCY] for each in usual.front
    )


def test_unused_nodes_are_named():
    result = planned(toy({"a": (0, 2), "b": (2, 4)}), effort=Effort(1, 0, 0), max_stages=2)
    held = set(result.placement.layers)
    assert set(result.unused) == set("abcd") - held
    alone = plan(toy(), method="separate", objective="flow")
    assert set(alone.unused) == set("abcd") - set(alone.placement.layers)


# -- limits


def test_a_limit_that_can_be_kept_is_kept(usual):
    quickest = usual.front[0].figures[LATENCY]
    result = planned(subject_to=[f"{LATENCY}<={quickest * 1.01}"])
    assert result.simulated[LATENCY] <= quickest * 1.01
    assert result.notes == ()


def test_a_limit_that_cannot_be_kept_is_noted():
    result = planned(subject_to=[f"{LATENCY}<=1e-6"], effort=Effort(1, 0, 0))
    assert result.notes == (
        f"no placement was found that keeps {LATENCY}<=1e-06 "
        f"(actual value {result.simulated[LATENCY]:.4g})",
    )


def test_another_objective():
    result = planned(goal=LATENCY, effort=Effort(1, 0, 0))
    assert result.goal == LATENCY
    assert result.simulated[LATENCY] == min(each.figures[LATENCY] for each in result.candidates)


def test_few_stages():
    long_way = {"a": (0, 1), "b": (1, 2), "c": (2, 3), "d": (3, 4)}
    result = planned(toy(long_way), max_stages=2)
    assert result.stages == 2
    assert {each.stages for each in result.candidates} == {2}
    assert "own" not in [each.label for each in result.candidates]


@pytest.mark.parametrize("objective", ["simulated", "flow"])
def test_too_few_stages_are_refused_at_once(objective):
    with pytest.raises(
        PlacementError, match=r"1 stages or less: 1 nodes hold at most 3 of 4 .* 1 are miss"
    ):
        planned(max_stages=1, objective=objective)


# -- placements that the planner does not propose


def test_a_placement_whose_nodes_overlap_counts_its_stages():
    # a -> b enters b at a later layer; c -> d -> b is the longest route.
    overlapping = toy({"a": (0, 3), "b": (1, 4), "c": (0, 2), "d": (1, 3)})
    result = planned(overlapping, effort=Effort(1, 0, 0))
    own = next(each for each in result.candidates if each.label == "own")
    assert own.stages == 3
    capped = planned(overlapping, effort=Effort(1, 0, 0), max_stages=2)
    assert "own" not in [each.label for each in capped.candidates]


def test_a_placement_that_overcommits_nodes_is_compared():
    scenario = toy({"a": (0, 4), "b": (0, 4), "c": (0, 2), "d": (2, 4)})
    nodes = tuple(replace(node, kv_token_layers=600) for node in scenario.cluster.nodes)
    scenario = replace(
        scenario,
        cluster=replace(scenario.cluster, nodes=nodes),
        placement=replace(scenario.placement, allow_overcommitted_layers=True),
    )
    result = planned(scenario)
    own = next(each for each in result.candidates if each.label == "own")
    assert own.figures[RATE] <= result.simulated[RATE]
    if own.chosen:
        assert not result.optimal
        assert "the bound covers only placements without such nodes" in result.notes[0]


# -- stopping


class Stop:
    """Raises KeyboardInterrupt at the n-th report of progress."""

    def __init__(self, at):
        self.at = at
        self.reports = []

    def __call__(self, progress):
        self.reports.append(progress)
        if len(self.reports) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 2, 3, 5, 9, 14])
def test_an_interrupted_search_keeps_the_best(at):
    result = planned(on_progress=Stop(at))
    assert result.interrupted
    problem = planning_problem(toy())
    assert problem.flow(result.placement).tokens_per_s == pytest.approx(result.value) != 0
    if result.simulated is None:
        assert "best placement by flow" in result.notes[0]


def test_after_the_first_simulations_an_interrupted_search_has_figures():
    stop = Stop(10**9)
    planned(on_progress=stop)
    with_figures = next(i for i, report in enumerate(stop.reports, 1) if report.figures)
    result = planned(on_progress=Stop(with_figures))
    assert result.interrupted
    assert result.simulated[RATE] > 0


@pytest.mark.parametrize("method", ["optimise", "swarm"])
def test_an_interrupted_search_by_flow_keeps_the_best(method):
    result = planned(on_progress=Stop(1), method=method, objective="flow")
    assert result.interrupted
    assert planning_problem(toy()).flow(result.placement).tokens_per_s > 0


def test_time_runs_out(monkeypatch):
    """With a clock that advances by a millisecond each time it is read."""

    def outcome(limit_s):
        ticks = count()
        monkeypatch.setattr(plan_run, "monotonic", lambda: next(ticks) * 1e-3)
        return planned(time_limit_s=limit_s)

    hurried, leisurely = outcome(0.05), outcome(1e6)
    assert hurried.value > 0
    assert hurried.seconds < leisurely.seconds
    assert len(hurried.candidates) < len(leisurely.candidates)
    if hurried.simulated is None:
        assert "before any simulation" in hurried.notes[0]


def test_other_child_processes_are_left_alone():
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=time.sleep, args=(60,))
    other.start()
    try:
        planned(jobs=2, method="swarm")
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


# -- invalid arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "--method: unknown method 'magic'; choose one of optimise, milp"),
        (
            {"objective": "profit"},
            "--objective: unknown objective 'profit'; choose one of simulated, flow",
        ),
        ({"max_stages": 0}, "--max-stages: must be at least 1, not 0"),
        ({"jobs": 0}, "--jobs: must be at least 1, not 0"),
        ({"keep_links": 0}, "--keep-links: must be at least 1, not 0"),
        ({"time_limit_s": 0}, "--time-limit: must be above 0 s, not 0 s"),
        ({"goal": "speed"}, "--goal: unknown figure 'speed'"),
        ({"subject_to": ["x"]}, "--subject-to: 'x' is not a limit"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        planned(**options)
    assert str(caught.value).startswith(message)


# -- the budget, the result, and fronts


def test_a_budget_bounds_the_search(usual):
    less = planned(budget=replace(BRIEF, batch=1, starts=0))
    assert len(less.candidates) < len(usual.candidates)


def test_a_result_is_one_short_line(usual):
    line = repr(usual)
    used = len(usual.placement.layers)
    assert line == (
        f"PlanResult(method='optimise', max_flow={usual.value:,.1f} tokens/s, "
        f"simulated={usual.simulated[RATE]:,.1f} decode tokens/s, nodes={used} of 4)"
    )
    by_flow = plan(toy(), method="swarm", objective="flow")
    assert "simulated" not in repr(by_flow)


def test_a_result_is_a_table_of_stages_in_notebooks():
    result = plan(toy({"a": (0, 2), "b": (2, 4)}), method="swarm", objective="flow")
    table = result._repr_html_()
    assert [tuple(sorted(names)) for names in result.stage_nodes().values()] == [
        tuple(sorted(n for n, held in result.placement.layers.items() if held == span))
        for span in result.stage_nodes()
    ]
    for (start, end), names in result.stage_nodes().items():
        assert f"<tr><td>[{start}, {end})</td><td>{', '.join(names)}</td></tr>" in table
    assert table.startswith("<table><caption>Plan by swarm: max flow ")
    named = replace(result, placement=Placement({"<a>": (0, 4)}))
    assert "&lt;a&gt;" in named._repr_html_()


def candidate(rate, latency, name="n"):
    figures = {RATE: rate} if latency is None else {RATE: rate, LATENCY: latency}
    return Candidate("toy", {}, Placement({name: (0, 1)}), name, 1.0, 1, runs={0: figures})


def test_a_front():
    slow, quick = candidate(10.0, 2.0), candidate(5.0, 1.0)
    beaten, same, unmeasured = candidate(5.0, 1.5), candidate(10.0, 2.0), candidate(99.0, None)
    assert front([slow, beaten, unmeasured, quick, same]) == [quick, slow]
    assert front([]) == []


def test_some_of_a_front():
    every = [candidate(float(n), float(n)) for n in range(10)]
    assert [each.figures[RATE] for each in spread(every, 4)] == [0, 3, 6, 9]
    assert spread(every[:3], 4) == every[:3]

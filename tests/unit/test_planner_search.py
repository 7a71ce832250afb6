"""The search by simulation with simulations that are made up: which runs it asks for, and why."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
from builders import HOST, make_machine_type, make_scenario, offline
from planner_problems import four_nodes

from helixsim.errors import NoRouteError
from helixsim.placement.placement import Placement
from helixsim.planner.objective import Limit, Objective
from helixsim.planner.problem import planning_problem
from helixsim.planner.result import candidate_results
from helixsim.planner.search_budget import SearchBudget
from helixsim.planner.simulated.candidates import Candidate
from helixsim.planner.simulated.entries import Entries
from helixsim.planner.simulated.proposals import Proposal, Proposer
from helixsim.planner.simulated.racing import cuts, look_times, projected
from helixsim.planner.simulated.search import Effort, SimulatedSearch
from helixsim.planner.simulated.standings import seed_share, standings
from helixsim.planner.simulated.trials import TrialRun
from helixsim.profiles.machine import LatencyProfile

RATE, LATENCY = "decode_tokens_per_s", "decode_latency_s.mean"
PLACEMENTS = [
    {0: (0, 2), 1: (2, 4), 2: (0, 2), 3: (2, 4)},
    {0: (0, 3), 1: (3, 4), 2: (0, 2), 3: (2, 3)},
    {0: (0, 1), 1: (1, 4)},
    {0: (0, 2), 1: (0, 2), 2: (2, 4)},
    {0: (0, 3), 2: (3, 4)},
    {2: (0, 2), 3: (2, 4)},
    {0: (0, 2), 3: (2, 4)},
]


class FakePool:
    """Proposes placements in turn; a table says what each serves with each seed.

    Its clock advances by a second for each simulation.
    """

    def __init__(self, scenario, problem, rate, *, jobs=1, limit_s=None):
        self.setting = SimpleNamespace(seed=0)
        self.proposer = Proposer(scenario, problem, Objective())
        self.jobs = jobs
        self.rate = rate
        self.problem = problem
        self.asked = []
        self.now = 0.0
        self.limit_s = limit_s
        self.left = list(PLACEMENTS)

    def left_s(self):
        return float("inf") if self.limit_s is None else self.limit_s - self.now

    def anneal(self, tasks):
        found, self.left = self.left[:2], self.left[2:]
        proposals = [Proposal(tuple(sorted(each.items())), 1.0) for each in found]
        return [proposals, *([] for _ in tasks[1:])]

    def simulate(self, trials):
        found = []
        for trial in trials:
            self.asked.append((self.number(trial.placement), trial.seed))
            if self.left_s() <= 0:
                found.append(None)
                continue
            self.now += 1.0
            rate = self.rate(*self.asked[-1])
            figures = {RATE: rate, LATENCY: 0.1, "prompt_latency_s.mean": 0.1}
            looks = dict.fromkeys(trial.looks_s, figures)
            low = [at for at, least in sorted(trial.cuts.items()) if rate < least]
            cut_s = low[0] if low else None
            found.append(TrialRun(trial.seed, figures, cut_s or 5.0, not low, cut_s, looks, 1.0))
        return found

    def number(self, placement):
        ranges = self.problem.ranges(placement)
        return PLACEMENTS.index(ranges) if ranges in PLACEMENTS else -1


def searched(rate, *, limit_s=None, effort=None, jobs=1, **budget):
    """A search whose start is the first placement, with the pool that it asked."""
    scenario = four_nodes()
    problem = planning_problem(scenario)
    pool = FakePool(scenario, problem, rate, jobs=jobs, limit_s=limit_s)
    search = SimulatedSearch(
        scenario,
        problem,
        Objective(),
        pool,
        effort=effort or Effort(num_seeds=3, rounds=3, annealings=2),
        budget=replace(SearchBudget(neighbours=0, final_front=1), **budget),
        left_s=pool.left_s,
    )
    search.run([("own", problem.placement(PLACEMENTS[0]))])
    return search, pool


def chosen_number(search, pool):
    return pool.number(search.chosen().placement)


# -- which candidate is chosen


def test_a_start_with_more_runs_does_not_win():
    """A plan with a time limit never returns the start if something better was simulated."""
    search, pool = searched(lambda number, seed: 100.0 + 20 * (number == 1), limit_s=3.5)
    assert [each for each in pool.asked if each[0] == 0] == [(0, 0)]
    assert chosen_number(search, pool) == 1


def test_the_best_is_chosen_at_every_time_limit():
    """Longer limits never choose worse candidates, whatever was in progress at the end."""
    found = []
    for limit_s in range(1, 25):
        search, pool = searched(lambda number, seed: 100.0 + 10 * number, limit_s=limit_s + 0.5)
        number = chosen_number(search, pool)
        assert number == max(asked for asked, _ in pool.asked[: limit_s + 1])
        found.append(number)
    assert found == sorted(found)
    assert found[-1] > found[0]


def test_no_seed_is_run_twice():
    _, pool = searched(lambda number, seed: 100.0 + number)
    assert len(set(pool.asked)) == len(pool.asked)


def test_the_leader_gets_its_seeds_first():
    search, pool = searched(lambda number, seed: 100.0 + 20 * (number == 3))
    confirmations = [each for each in pool.asked if each[1] != 0]
    assert confirmations[:2] == [(3, 1), (3, 2)]
    assert sorted(search.chosen().runs) == [0, 1, 2]


def test_a_lucky_run_is_confirmed_and_loses():
    """The candidate that was lucky with the first seed is run again, and so is the next."""
    search, pool = searched(
        lambda number, seed: {2: 101.0 if seed == 0 else 90.0, 3: 100.0}.get(number, 80.0)
    )
    assert chosen_number(search, pool) == 3
    assert {(2, 1), (3, 1)} <= set(pool.asked)


@pytest.mark.parametrize("seed", range(20))
def test_the_plan_is_not_worse_than_any_other_that_was_run(seed):
    """With the noise of 1.5 % that simulations have, and random limits."""
    rng = Random(seed)
    level = [rng.uniform(90, 110) for _ in range(len(PLACEMENTS) + 1)]
    limit_s = rng.choice([2.5, 4.5, 8.5, None])
    search, _ = searched(
        lambda number, run: level[number] * Random(f"{number}/{run}").gauss(1, 0.01),
        limit_s=limit_s,
    )
    best = search.chosen()
    assert best.runs
    for each in search.pool:
        if each.runs:
            assert each.score(Objective()) <= best.score(Objective()) * 1.02


def test_time_is_kept_for_the_seeds():
    """Two further seeds for each of two candidates on two processes: two seconds."""
    search, pool = searched(
        lambda number, seed: 100.0 + number, limit_s=9.5, jobs=2, confirmed=2, batch=2
    )
    assert len(search.chosen().runs) == 3
    assert pool.asked[-1][1] > 0


def test_without_any_run_the_estimate_chooses():
    search, pool = searched(lambda number, seed: 1.0, limit_s=0.0)
    assert not any(each.runs for each in search.pool)
    estimates = {id(each): each.estimate.decode_tokens_per_s for each in search.pool}
    assert estimates[id(search.chosen())] == max(estimates.values())
    with pytest.raises(NoRouteError):
        SimulatedSearch(search.scenario, search.problem, Objective(), pool).chosen()


# -- standings


def candidate(rates, *, label="toy", latency=1.0, projected=None):
    figures = {seed: {RATE: rate, LATENCY: latency} for seed, rate in enumerate(rates)}
    found = Candidate(label, {}, Placement({"n": (0, 1)}), label, 1.0, 1, runs=figures)
    if projected is not None:
        found.projected = {RATE: projected, LATENCY: latency}
    return found


def order(*candidates, objective=None, expected=lambda each: None):
    return [
        standing.candidate.label
        for standing in standings(candidates, objective or Objective(), expected)
    ]


def test_bounds_by_hand():
    """Without a candidate of two seeds, the error of a run is 1.5 %; of four, half of that."""
    one, four = standings(
        [candidate([100.0], label="one"), candidate([98.0] * 4, label="four")],
        Objective(),
        lambda each: None,
    )[::-1]
    pooled = 0.015 * (4 / 7) ** 0.5  # four guessed seeds, and three that do not differ at all
    assert four.candidate.label == "one"
    assert four.low == pytest.approx(100 * (1 - pooled))
    assert one.low == pytest.approx(98 * (1 - pooled / 2))


def test_more_seeds_decide_between_nearly_equal_scores():
    assert order(candidate([100.2], label="one"), candidate([100.0] * 3, label="three")) == [
        "three",
        "one",
    ]
    assert order(candidate([103.0], label="one"), candidate([100.0] * 3, label="three")) == [
        "one",
        "three",
    ]


def test_what_was_not_run_needs_a_wide_margin():
    run, stopped, estimated = (
        candidate([100.0], label="run"),
        candidate([], label="stopped", projected=104.0),
        candidate([], label="estimated"),
    )
    assert order(run, stopped, estimated, expected=lambda each: {RATE: 110.0})[0] == "run"
    assert order(run, stopped, estimated, expected=lambda each: {RATE: 120.0})[0] == "estimated"
    assert order(run, candidate([], label="unknown")) == ["run"]


def test_of_equal_placements_the_one_with_fewer_nodes_is_chosen():
    many, few = candidate([100.0], label="many"), candidate([100.0], label="few")
    many.ranges, few.ranges = {0: (0, 1), 1: (0, 1)}, {0: (0, 1)}
    assert order(many, few) == order(few, many) == ["few", "many"]


def test_limits_come_first():
    limited = Objective(limits=(Limit(LATENCY, True, 1.0),))
    fast, kept = candidate([150.0], label="fast", latency=1.1), candidate([100.0], label="kept")
    assert order(fast, kept, objective=limited) == ["kept", "fast"]


def test_the_error_of_a_seed_is_learnt():
    quiet = [candidate([100.0, 100.1, 99.9])] * 10
    noisy = [candidate([90.0, 100.0, 110.0])] * 10
    assert seed_share(quiet, Objective()) < 0.008
    assert 0.08 < seed_share(noisy, Objective()) < 0.1


# -- races


def test_a_race_by_hand():
    """A request lives 1 s + 3 x 0.5 s after the warm-up; runs of 10 s are compared from 4 s on."""
    leader = candidate([100.0], latency=0.5)
    leader.runs[0]["prompt_latency_s.mean"] = 1.0
    looks = look_times(10.0)
    assert looks == pytest.approx([0.5 * number for number in range(1, 15)])
    leader.looks = {at: {RATE: 600.0 + at, LATENCY: 1.0} for at in looks}
    leader.runs[0][RATE] = 600.0
    assert cuts(leader, Objective(), 3.0, 0.5) == {
        at: pytest.approx(0.88 * (600 + at)) for at in looks if at >= 4.0
    }
    assert cuts(None, Objective(), 3.0, 0.5) == {}
    growing = candidate([1000.0], latency=0.1)
    growing.looks = {at: {RATE: 160.0 * at} for at in looks}
    assert min(cuts(growing, Objective(), 3.0, 0.5)) == pytest.approx(5.0)  # 80 % of 1000
    rare = candidate([120.0], latency=0.1)
    rare.looks = {at: {RATE: 120.0} for at in looks}
    assert min(cuts(rare, Objective(), 3.0, 0.5)) == pytest.approx(5.5)  # 200 requests
    at = looks[5]
    run = TrialRun(0, {RATE: (600 + at) / 2, LATENCY: 3.0}, at, False, at, {}, 0.1)
    assert projected(run, leader, 0) == {RATE: pytest.approx(300.0), LATENCY: pytest.approx(1.5)}


def test_a_loser_is_stopped_and_not_chosen():
    search, pool = searched(lambda number, seed: 500.0 if number == 3 else 1000.0 + number)
    stopped = next(each for each in search.pool if pool.number(each.placement) == 3)
    assert not stopped.runs
    assert stopped.is_tried
    assert stopped.stopped_s < 5.0
    assert (3, 1) not in pool.asked


# -- entries


@pytest.mark.parametrize(("slowness", "kept"), [(60.0, "a"), (3.0, "abc")])
def test_nodes_that_the_scheduler_would_pass_by_are_left_out(slowness, kept):
    """A chain with less than 5 % of the requests is not used; 60 times as slow, it has 2 %."""

    def kind(name, factor):
        line = LatencyProfile((0, 1000), (0.0, 0.01 * factor))
        return make_machine_type(name, 2, prefill=line, decode=line)

    fast, slow = kind("fast", 1.0), kind("slow", slowness)
    names = ["a", "b", "c", HOST]
    scenario = make_scenario(
        dict.fromkeys("abc", (0, 2)),
        types={"a": fast, "b": slow, "c": slow},
        links={(a, b): (1e9, 0.0) for a in names for b in names if a != b},
        workload=offline([(10, 4)]),
    )
    problem = planning_problem(scenario)
    entries = Entries(problem, Proposer(scenario, problem, Objective()))
    found = entries.add("proposal", {0: (0, 2), 1: (0, 1), 2: (1, 2)})
    assert set(found.placement.layers) == set(kept)
    # As long as it has not been run, it may be proposed again, also with alike nodes exchanged.
    assert entries.add("again", {0: (0, 2), 1: (1, 2), 2: (0, 1)}) is found
    found.runs[0] = {RATE: 1.0}
    assert entries.add("again", {0: (0, 2), 1: (0, 1), 2: (1, 2)}) is None


def test_candidates_have_errors_by_hand():
    """Four guessed seeds of 1.5 %, and two seeds 1 % off their mean: 1.48 % of a run."""
    two, one = candidate([99.0, 101.0], label="two", latency=1.0), candidate([50.0], label="one")
    stopped = candidate([], label="stopped", projected=10.0)
    stopped.stopped = {RATE: 12.0, LATENCY: 1.0}
    results = candidate_results([two, one, stopped], two, 600.0, Objective())
    found = {each.label: each for each in results}
    share = ((4 * 0.015**2 + 2 * 0.01**2) / 5) ** 0.5
    assert found["two"].errors[RATE] == pytest.approx(100 * share / 2**0.5)
    assert found["one"].errors[RATE] == pytest.approx(50 * share)
    assert found["stopped"].errors == {}
    assert found["two"].errors[LATENCY] == pytest.approx(0.015 * (4 / 5) ** 0.5 / 2**0.5)


def test_nodes_without_a_way_on_are_no_part_of_a_start():
    """Node b ends at the second layer, and nothing begins there: it would hold layers for nothing.

    The scenario's own placement stays as it is.
    """
    scenario = make_scenario(
        {"a": (0, 2), "b": (0, 1)},
        links=dict.fromkeys([(HOST, "a"), (HOST, "b"), ("a", HOST)], (1e9, 0.0)),
        workload=offline([(10, 4)]),
    )
    problem = planning_problem(scenario)
    entries = Entries(problem, Proposer(scenario, problem, Objective()))
    own = entries.add("own", scenario.placement)
    start = entries.add("petals", scenario.placement)
    assert set(own.placement.layers) == {"a", "b"}
    assert dict(start.placement.layers) == {"a": (0, 2)}
    assert (HOST, "b") not in start.placement.links

"""Alike nodes, templates, corrections and races of the search by simulation."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from random import Random

import pytest
from builders import HOST, capacity, make_scenario
from planner_problems import four_nodes, toy_problem

from helixsim.models.simulation import simulate
from helixsim.planner.objective import (
    DURATION_S,
    MISSED_SHARE,
    Limit,
    Objective,
    counted,
)
from helixsim.planner.problem import planning_problem
from helixsim.planner.simulated.alike import SIMILAR, alike_nodes
from helixsim.planner.simulated.correction import Correction, learned
from helixsim.planner.simulated.estimates import Estimate, Traits
from helixsim.planner.simulated.formulas import Formulas
from helixsim.planner.simulated.layer_flow import span_shares
from helixsim.planner.simulated.proposals import Proposer
from helixsim.planner.simulated.spread import Group, passed_on
from helixsim.planner.simulated.surrogate import Surrogate
from helixsim.planner.simulated.templates import Templates, best_templates
from helixsim.planner.simulated.trials import Trial, run_trial
from helixsim.profiles.machine import LatencyProfile

RATE = "decode_tokens_per_s"


# -- alike nodes


def with_link(problem, pair, bandwidth):
    network = problem.cluster.network
    links = dict(network.links)
    links[pair] = replace(links[pair], bandwidth_bytes_per_s=bandwidth)
    cluster = replace(problem.cluster, network=replace(network, links=links))
    return replace(problem, cluster=cluster)


def test_nodes_of_one_type_are_alike():
    problem = planning_problem(four_nodes())
    assert alike_nodes(problem).members == ((0, 1), (2, 3))


@pytest.mark.parametrize("pair", [("a", "c"), ("c", "b"), (HOST, "a"), ("a", HOST)])
def test_a_slower_link_makes_a_difference(pair):
    problem = with_link(planning_problem(four_nodes()), pair, 0.8e5)
    assert (0, 1) not in alike_nodes(problem).members
    assert (0, 1) in alike_nodes(problem, SIMILAR).members


def test_links_to_each_other_do_not_tell_alike_nodes_apart():
    """The link from a to b takes the place of the link from b to a."""
    problem = planning_problem(four_nodes())
    for pair in (("a", "b"), ("b", "a")):
        problem = with_link(problem, pair, 0.5e5)
    assert (0, 1) in alike_nodes(problem).members


def test_exchanged_nodes_have_one_key():
    alike = alike_nodes(planning_problem(four_nodes()))
    first = {0: (0, 3), 1: (0, 2), 2: (2, 4), 3: (3, 4)}
    second = {1: (0, 3), 0: (0, 2), 3: (2, 4), 2: (3, 4)}
    other = {0: (0, 3), 1: (2, 4), 2: (0, 2), 3: (3, 4)}
    assert alike.key(first) == alike.key(second) != alike.key(other)
    assert alike.canonical(first) == alike.canonical(second)
    assert alike.key(alike.canonical(first)) == alike.key(first)
    assert alike.canonical({3: (0, 1)}) == {2: (0, 1)}


# -- how requests spread


def test_spans_in_a_row_carry_everything():
    assert span_shares({(0, 2): 5.0, (2, 3): 1.0}, 3) == {(0, 2): 1.0, (2, 3): 1.0}
    assert span_shares({(0, 2): 5.0, (1, 3): 1.0}, 3) == {}
    assert span_shares({(0, 2): 5.0}, 3) == {}


def test_requests_stay_at_their_site_as_far_as_there_is_room():
    """60 % come from site 0, which takes 50 % on: 10 % cross to site 1."""
    sources = [Group(0, 0, 1, 1, 0.6), Group(1, 0, 1, 2, 0.2)]
    targets = [Group(2, 1, 2, 1, 0.5), Group(3, 1, 2, 1, 0.5)]
    sites = [0, 1, 0, 1]
    stays = passed_on(sources, targets, sites, stays=True)
    assert stays == [[0.5, pytest.approx(0.1)], [0.0, pytest.approx(0.4)]]
    mixed = passed_on(sources, targets, sites, stays=False)
    assert mixed == [[pytest.approx(0.3)] * 2, [pytest.approx(0.2)] * 2]


# -- templates


@pytest.mark.parametrize("seed", range(30))
def test_templates_fit(seed):
    problem = toy_problem({"a": 3, "b": 3, "c": 2, "d": 2, "e": 6}, 6)
    alike = alike_nodes(problem)
    drawn = Templates(problem, alike, [0] * len(alike.members)).draw(Random(seed)).ranges()
    for node, (start, end) in drawn.items():
        assert 0 <= start < end <= 6
        assert end - start <= problem.max_layers(node)


def test_templates_include_what_a_person_tries_first():
    """Two chains of equal nodes side by side, and one chain of pairs."""
    problem = planning_problem(four_nodes())
    proposer = Proposer(four_nodes(), problem, Objective())
    found = [dict(each.ranges) for each in best_templates(proposer, Random(0))]
    assert {0: (0, 2), 1: (2, 4), 2: (0, 2), 3: (2, 4)} in found
    scores = [each.score for each in best_templates(proposer, Random(0))]
    assert scores == sorted(scores, reverse=True)


def test_templates_end_in_time(monkeypatch):
    """After the time limit, drafts keep the scores that they have: no climb, no other orders."""
    problem = planning_problem(four_nodes())
    proposer = Proposer(four_nodes(), problem, Objective())
    computed = []
    score = proposer.score
    monkeypatch.setattr(
        proposer, "score", lambda *arguments: computed.append(arguments) or score(*arguments)
    )
    found = best_templates(proposer, Random(0), lambda: len(computed) >= 100)
    assert found
    assert len(computed) < 100 + proposer.budget.proposal_check_every


# -- corrections


def estimate(rate, stages=4.0, crossings=0.0, in_flight=100.0):
    return Estimate(rate, 1.0, 2.0, in_flight, Traits(stages, crossings, in_flight))


def test_one_simulation_corrects_the_mean():
    correction = learned([(estimate(100.0), {RATE: 70.0})], Formulas(10), (RATE,))
    assert correction.ratio(RATE, estimate(1.0).traits) == pytest.approx(0.7, rel=1e-3)
    assert correction.ratio("ttft_s.mean", estimate(1.0).traits) == 1.0


def test_what_is_left_is_the_error_by_hand():
    """One simulation leaves nothing, and counts beside four guesses of 3 %; 16 leave 30 % each."""
    assert Correction().error(RATE) == 0.03
    one = learned([(estimate(100.0), {RATE: 70.0})], Formulas(10), (RATE,))
    assert one.error(RATE) == pytest.approx(0.03 * (4 / 5) ** 0.5, rel=1e-3)
    pairs = [(estimate(100.0 * exp(0.3 * (-1) ** n)), {RATE: 70.0}) for n in range(16)]
    many = learned(pairs, Formulas(10), (RATE,))
    assert many.error(RATE) == pytest.approx(((4 * 0.03**2 + 16 * 0.3**2) / 20) ** 0.5, rel=1e-3)


def test_many_simulations_teach_what_crossings_cost():
    """Each slow link costs 10 %: known after twelve simulations, hardly suspected after two."""

    def slope(count):
        pairs = [
            (estimate(100.0, crossings=n % 3), {RATE: 70.0 * exp(-0.1 * (n % 3))})
            for n in range(count)
        ]
        correction = learned(pairs, Formulas(10), (RATE,))
        none, one = (correction.ratio(RATE, Traits(4.0, n, 100.0)) for n in (0.0, 1.0))
        return log(one / none)

    assert slope(48) == pytest.approx(-0.1, abs=0.02)
    assert -0.08 < slope(2) < -0.02


# -- trials


def trial_of(scenario, **options):
    return Trial(scenario.placement, 0, **options)


def test_a_watched_run_is_the_run():
    scenario = four_nodes()
    looks = (0.75, 1.5, 2.25)
    run = run_trial(scenario, Objective(), trial_of(scenario, looks_s=looks), None)
    whole = simulate(scenario, seed=0).summary
    assert run.is_complete
    assert run.figures[RATE] == whole[RATE]
    assert run.figures["ttft_s.p95"] == whole["ttft_s"]["p95"]
    assert tuple(run.looks) == looks
    short = replace(scenario, run=replace(scenario.run, duration_s=2.25))
    assert run.looks[2.25][RATE] == pytest.approx(simulate(short, seed=0).summary[RATE])
    latency = Objective("ttft_s.p95")
    figures = run_trial(scenario, latency, trial_of(scenario, looks_s=looks), None).looks[2.25]
    assert figures[RATE] == pytest.approx(run.looks[2.25][RATE])
    assert figures["ttft_s.p95"] > 0


def test_a_run_that_loses_is_stopped():
    scenario = four_nodes()
    trial = trial_of(scenario, looks_s=(1.5, 3.0), cuts={3.0: 1e9})
    run = run_trial(scenario, Objective(), trial, None)
    assert not run.is_complete
    assert run.cut_s == 3.0
    assert run.simulated_s == pytest.approx(3.0)


def test_a_run_is_stopped_at_the_deadline(monkeypatch):
    from helixsim.planner.simulated import trials

    times = iter(range(10**6))
    monkeypatch.setattr(trials, "monotonic", lambda: next(times))
    scenario = four_nodes()
    run = run_trial(scenario, Objective(), trial_of(scenario), 50)
    assert not run.is_complete
    assert run.cut_s is None
    assert 0 < run.simulated_s < scenario.run.duration_s
    assert run_trial(scenario, Objective(), trial_of(scenario), 10) is None


# -- missed requests


def test_missed_requests_count_with_the_length_of_the_run():
    """Of 121 requests, 13 were rejected: the 95th percentile is that of a rejected one."""
    figures = {"ttft_s.mean": 0.5, "ttft_s.p50": 0.4, "ttft_s.p75": 0.8, "ttft_s.p95": 1.02}
    figures |= {"ttft_s.p5": 0.1, "ttft_s.p25": 0.2, "ttft_s.p99": 1.2, RATE: 7.0}
    missed = figures | {MISSED_SHARE: 13 / 121, DURATION_S: 120.0}
    assert counted(missed, "ttft_s.p95") == 120.0
    assert counted(missed, "ttft_s.mean") == pytest.approx(0.5 * 108 / 121 + 120 * 13 / 121)
    # The median of all is the 56th percentile of those that were served.
    share = (0.5 / (108 / 121) - 0.5) / 0.25
    assert counted(missed, "ttft_s.p50") == pytest.approx(0.4 + 0.4 * share)
    assert counted(missed, RATE) == 7.0
    assert counted(figures, "ttft_s.p95") == 1.02
    served = {"ttft_s.p95": 1.28, MISSED_SHARE: 0.0, DURATION_S: 120.0}
    assert Objective("ttft_s.p95").score(served) > Objective("ttft_s.p95").score(missed)
    limit = Limit("ttft_s.p95", True, 1.1)
    assert limit.kept_share(figures) == 1.0
    assert limit.kept_share(missed) < 0.01


def test_requests_that_pile_up_are_missed():
    """Each takes the only node 0.4 s, and ten arrive per second: after 10 s, 75 % of them wait."""
    scenario = make_scenario(
        {"a": (0, 2)},
        requests=[(0.1 * n, 10, 4) for n in range(200)],
        prefill=LatencyProfile((0, 1000), (0.0, 20.0)),
        decode=LatencyProfile((0, 1000), (1e-4, 1e-4)),
        duration_s=10.0,
    )
    run = run_trial(scenario, Objective("decode_latency_s.mean"), trial_of(scenario), None)
    assert run.figures[MISSED_SHARE] == pytest.approx(0.75 - 0.1, abs=0.05)
    problem = planning_problem(scenario)
    found = Surrogate(scenario, problem).of_ranges({0: (0, 2)})
    assert found.missed_s == pytest.approx(7.5, abs=0.3)
    plain = replace(found, missed_s=0.0)
    names = (RATE, "tpot_s.p95")
    formulas = Formulas(4)
    rate, latency = (
        learned([], formulas, names).figures(each, formulas, names) for each in (plain, found)
    )
    assert rate[RATE] == latency[RATE]
    assert latency["tpot_s.p95"] == rate["tpot_s.p95"] + found.missed_s


def test_rejected_and_waiting_requests_are_missed():
    """Of six requests at once, one of which fills the KV cache, some are rejected."""
    layers = {"a": (0, 2)}
    scenario = make_scenario(
        layers,
        requests=[(0.1 * number, 10, 4) for number in range(6)],
        room=capacity(kv_token_layers=40),
        prefill=LatencyProfile((0, 1000), (0.0, 10.0)),
        duration_s=5.0,
        nics=dict.fromkeys([*layers, HOST], 1e7),
    )
    run = run_trial(scenario, Objective(), trial_of(scenario), None)
    rejected = simulate(scenario, seed=0).summary["requests"]["rejected"]
    assert rejected > 0
    assert run.figures[MISSED_SHARE] == pytest.approx(rejected / 6)
    assert run.figures[DURATION_S] == 5.0
    offline = run_trial(four_nodes(), Objective(), trial_of(four_nodes()), None)
    assert offline.figures[MISSED_SHARE] == 0.0

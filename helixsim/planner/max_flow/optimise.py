"""The optimiser: placements that let the most tokens through, with proof of how good they are.

First the chain that would be best if links did not bind; then, where they do, annealing between
what has been reached and the least that could not be; and bounds all along.
"""

from __future__ import annotations

from helixsim.planner.max_flow.annealing import StageCosts, Stages, anneal, stages_of
from helixsim.planner.max_flow.block_chains import combine_blocks
from helixsim.planner.max_flow.dinic import flow_value
from helixsim.planner.max_flow.even_stages import deal_evenly
from helixsim.planner.max_flow.regions import one_chain, separate_chains
from helixsim.planner.max_flow.stage_patterns import Chain, best_chains
from helixsim.planner.max_flow.upper_bound import (
    CoverProgram,
    node_classes,
    trivial_bound,
    upper_bound,
)
from helixsim.planner.search import NEGLIGIBLE, Search

_ROUNDS = 12
_ITERATIONS = 30_000
_LARGEST_TO_ANNEAL = 64
"""Larger clusters whose links bind are taken region by region."""
_LEAP = 0.7
"""Targets do not go down faster than this, however little has been reached."""
_PRECISION = 0.02
"""Relative width at which the first round of annealing ends its bisection.

Round n ends at 1/n of it: a failure says little as long as few iterations are spent on it.
"""


def optimise(search: Search) -> None:
    """Look for the placement of greatest maximum flow; see :class:`.Search` for what it reports.

    The budget is counted in iterations: a seed gives the same placement, unless the time limit
    or Ctrl-C ends the search before. Placements are aligned (a node starts where others end);
    bounds hold for all.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    problem = search.problem
    search.prove(trivial_bound(problem).tokens_per_s)
    chain = _best_chain(search)
    if problem.links_never_bind:
        deal_evenly(search)
    _prove(search)
    if problem.links_never_bind:
        if search.max_stages is None:
            combine_blocks(search)
    elif len(problem) > _LARGEST_TO_ANNEAL:
        separate_chains(search, optimise)
        if search.max_stages is None:
            one_chain(search)
    elif chain is not None:
        _anneal(search, chain)
    close_gap(search)


def _prove(search: Search) -> None:
    if search.optimal:
        return
    search.prove(
        upper_bound(
            search.problem,
            max_stages=search.max_stages,
            solver=search.solver,
            at_least=search.value,
            stop=lambda: search.out_of_time,
        ).tokens_per_s
    )


def close_gap(search: Search) -> None:
    """Try to prove that nothing is better than what was found.

    The bisection of the bound ends somewhat above it; flows take few values, though.
    """
    if search.value == 0 or search.optimal or search.out_of_time:
        return
    program = CoverProgram(
        node_classes(search.problem), search.problem.num_layers, search.max_stages, search.solver
    )
    target = search.value * (1 + NEGLIGIBLE / 2)
    if not program.is_possible(target, lambda: search.out_of_time):
        search.prove(target)


def _best_chain(search: Search) -> Chain | None:
    best = None
    for chain in best_chains(
        search.problem.kinds,
        search.problem.num_layers,
        search.bound,
        max_stages=search.max_stages,
        solver=search.solver,
        seed=search.seed,
        stop=lambda: search.out_of_time,
    ):
        best = chain
        _offer_chain(search, chain)
    return best


def _offer_chain(search: Search, chain: Chain) -> None:
    costs = StageCosts(search.problem, chain.tokens_per_s, search.max_stages)
    stages = stages_of(search.problem, chain, search.rng("chain"))
    search.offer(costs.ranges(stages))


def _anneal(search: Search, chain: Chain) -> None:
    """Bisect over the target; failures count for one round only, as each tries harder."""
    problem = search.problem
    best: Stages | None = None

    def offer(ranges: dict[int, tuple[int, int]]) -> float:
        value = flow_value(problem, ranges)
        search.offer(ranges, value)
        return value

    top = chain.tokens_per_s
    for number in range(_ROUNDS):
        failed, target = top * (1 + 1e-6), top
        if number:
            target = (search.value + top) / 2
        trial = 0
        while failed > search.value * (1 + _PRECISION / (1 + number)):
            if search.out_of_time or search.optimal:
                return
            costs = StageCosts(problem, target, search.max_stages)
            rng = search.rng("anneal", number, trial)
            start = stages_of(problem, chain, rng)
            if best is not None and trial % 2:
                start = best
            last, reached = anneal(
                costs, start, _ITERATIONS * (1 + number), rng, offer, lambda: search.out_of_time
            )
            best = last
            if not reached:
                failed = target
            target = max((search.value + failed) / 2, _LEAP * failed)
            trial += 1

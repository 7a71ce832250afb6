"""The optimiser: placements of greatest maximum flow, with a proved upper bound.

It first finds the chain that is best if links do not bind. Where links bind, it anneals: a
bisection over the target between the flow that was reached and the flow that was not.
"""

from __future__ import annotations

from helixsim.planner.heuristics.replicas import replica_ranges
from helixsim.planner.max_flow.annealing import StageCosts, Stages, anneal, stages_of
from helixsim.planner.max_flow.column_generation import combine_blocks
from helixsim.planner.max_flow.constrained import optimise_constrained
from helixsim.planner.max_flow.cover_program import CoverProgram
from helixsim.planner.max_flow.dinic import flow_value
from helixsim.planner.max_flow.even_stages import offer_even_stages
from helixsim.planner.max_flow.regions import one_chain, separate_chains
from helixsim.planner.max_flow.stage_patterns import Chain, best_chains
from helixsim.planner.max_flow.upper_bound import node_classes, trivial_bound, upper_bound
from helixsim.planner.search import NEGLIGIBLE, FlowSearch


def optimise(search: FlowSearch) -> None:
    """Search for the placement of greatest maximum flow and report to `search`.

    The budget counts steps, so that a seed repeats its placement unless the time limit or Ctrl-C
    ends the search earlier. The placements are aligned: a node starts where others end. The bounds
    hold for all placements.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    problem = search.problem
    if problem.constraints.are_binding:
        optimise_constrained(search, optimise)
        return
    search.prove(trivial_bound(problem).tokens_per_s)
    chain = _best_chain(search)
    if problem.links_never_bind:
        offer_even_stages(search)
    _prove(search)
    if problem.links_never_bind:
        if search.max_stages is None:
            combine_blocks(search)
    elif len(problem) > search.budget.anneal_largest_cluster:
        separate_chains(search, optimise)
        if search.max_stages is None:
            one_chain(search)
    elif chain is not None:
        _anneal(search, chain)
    if not search.optimal:  # where links bind, whole replicas may be better than any chain
        search.offer(replica_ranges(problem))
    close_gap(search)


def _prove(search: FlowSearch) -> None:
    if search.optimal:
        return
    search.prove(
        upper_bound(
            search.problem,
            max_stages=search.max_stages,
            solver=search.solver,
            at_least=search.value,
            budget=search.budget,
            stop=lambda: search.out_of_time,
        ).tokens_per_s
    )


def close_gap(search: FlowSearch) -> None:
    """Try to prove that the incumbent is optimal.

    The bisection of the bound ends slightly above the incumbent even if that is optimal.
    """
    if search.value == 0 or search.optimal or search.out_of_time:
        return
    program = CoverProgram(
        node_classes(search.problem, search.budget),
        search.problem.num_layers,
        search.max_stages,
        search.solver,
        search.budget,
    )
    target = search.value * (1 + NEGLIGIBLE / 2)
    if not program.is_possible(target, lambda: search.out_of_time):
        search.prove(target)


def _best_chain(search: FlowSearch) -> Chain | None:
    best = None
    for chain in best_chains(
        search.problem.kinds,
        search.problem.num_layers,
        search.bound,
        max_stages=search.max_stages,
        solver=search.solver,
        seed=search.seed,
        budget=search.budget,
        stop=lambda: search.out_of_time,
    ):
        best = chain
        _offer_chain(search, chain)
    return best


def _offer_chain(search: FlowSearch, chain: Chain) -> None:
    costs = StageCosts(search.problem, chain.tokens_per_s, search.max_stages, search.budget)
    stages = stages_of(search.problem, chain, search.rng("chain"))
    search.offer(costs.ranges(stages))


def _anneal(search: FlowSearch, chain: Chain) -> None:
    """Bisect over the target, in rounds; a failure counts for its round only.

    Every round anneals for longer, so a target that failed before may be reached.
    """
    problem, budget = search.problem, search.budget
    best: Stages | None = None

    def offer(ranges: dict[int, tuple[int, int]]) -> float:
        value = flow_value(problem, ranges)
        search.offer(ranges, value)
        return value

    top = chain.tokens_per_s
    for number in range(budget.anneal_rounds):
        failed, target = top * (1 + 1e-6), top
        if number:
            target = (search.value + top) / 2
        trial = 0
        while failed > search.value * (1 + budget.anneal_precision / (1 + number)):
            if search.out_of_time or search.optimal:
                return
            costs = StageCosts(problem, target, search.max_stages, budget)
            rng = search.rng("anneal", number, trial)
            start = stages_of(problem, chain, rng)
            if best is not None and trial % 2:
                start = best
            best, reached = anneal(
                costs,
                start,
                budget.anneal_iterations * (1 + number),
                rng,
                offer,
                lambda: search.out_of_time,
            )
            if not reached:
                failed = target
            target = max((search.value + failed) / 2, budget.anneal_descent * failed)
            trial += 1

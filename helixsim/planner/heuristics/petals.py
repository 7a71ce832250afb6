"""The rule of Petals: nodes come one by one, each strengthens the weakest layers."""

from __future__ import annotations

from random import Random

from helixsim.planner.heuristics.coverage import check_coverage, offer
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import Search


def petals_ranges(problem: PlanningProblem, rng: Random) -> dict[int, tuple[int, int]]:
    """Place layers by the rule of Petals.

    Nodes join in random order. Each takes as many layers as it may hold, where the throughput
    of the nodes so far is least: of all contiguous ranges, the one whose layers' throughputs
    (tokens/s, summed over their holders), sorted from low to high, come first in lexicographic
    order; of equal ones the first. What has joined never moves.

    Source: Petals (arXiv 2209.01188), as a baseline in the Helix paper. With ``Random(0)`` this
    is, node by node, the published placement of LLaMA-2 70B on 24 machines.

    Raises
    ------
    PlacementError
        If layers are left without a node, as where nodes have no throughput at all.
    """
    order = list(range(len(problem)))
    rng.shuffle(order)
    throughput = [0.0] * problem.num_layers
    ranges: dict[int, tuple[int, int]] = {}
    for node in order:
        size = problem.max_layers(node)
        _, start = min(
            (sorted(throughput[first : first + size]), first)
            for first in range(problem.num_layers - size + 1)
        )
        ranges[node] = (start, start + size)
        for layer in range(start, start + size):
            throughput[layer] += problem.tokens_per_s(node, size)
    check_coverage(problem, ranges, "petals")
    return ranges


def petals(search: Search) -> None:
    """Report the placement of :func:`petals_ranges`.

    The order in which nodes join is drawn with the bare seed of the search, not with a stream
    of its own, because the published placements are those of seed 0.

    Raises
    ------
    PlacementError
        If layers are left without a node, no request can pass, or routes are too long.
    """
    offer(search, petals_ranges(search.problem, Random(search.seed)), "petals")

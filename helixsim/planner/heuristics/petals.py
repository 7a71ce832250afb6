"""The rule of Petals: nodes join one by one, each at the layers with the least throughput."""

from __future__ import annotations

from random import Random

from helixsim.errors import PlacementError
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.search import FlowSearch


def petals_ranges(problem: PlanningProblem, rng: Random) -> dict[int, tuple[int, int]]:
    """Place layers by the rule of Petals.

    Nodes join in random order. Each takes as many layers as it may hold, where the nodes so far
    have the least throughput: of all contiguous ranges, the one whose layers' throughputs
    (tokens/s, summed over the nodes that hold the layer), sorted from low to high, come first in
    lexicographic order; of equal ranges the first. Nodes that have joined keep their layers.

    Source: Petals (arXiv 2209.01188), as a baseline in the Helix paper. With ``Random(0)`` this
    is, node by node, the published placement of LLaMA-2 70B on 24 machines.

    Raises
    ------
    PlacementError
        If layers are left without a node.
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
    check_coverage(problem, ranges)
    return ranges


def check_coverage(problem: PlanningProblem, ranges: Ranges) -> None:
    """Check that every layer is held by a node.

    Raises
    ------
    PlacementError
        With the number of layers that are missing.
    """
    held = {layer for start, end in ranges.values() for layer in range(start, end)}
    if missing := sorted(set(range(problem.num_layers)) - held):
        raise PlacementError(
            f"petals leaves {len(missing)} of {problem.num_layers} layers of "
            f"{problem.llm.name} without a node, the first is layer {missing[0]}; "
            "use another method"
        )


def petals(search: FlowSearch) -> None:
    """Report the placement of :func:`petals_ranges`.

    The joining order is drawn with the seed of the search itself, not with a named stream,
    because the published placements were drawn with ``Random(0)``.

    Raises
    ------
    PlacementError
        If layers are left without a node, no request can pass, or routes are too long.
    """
    search.require(petals_ranges(search.problem, Random(search.seed)), "petals")

"""The rule of SWARM: equal stages, and every node where compute is scarcest."""

from __future__ import annotations

from itertools import pairwise

from helixsim.errors import PlacementError
from helixsim.planner.heuristics.coverage import offer
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import Search


def swarm_ranges(problem: PlanningProblem) -> dict[int, tuple[int, int]]:
    """Place layers by the rule of SWARM.

    The layers are cut into equal stages that the smallest machine can hold. Then the nodes,
    fastest first (tokens/s with one stage; of equal ones the last in the cluster's order
    first), go one by one to the stage whose nodes have the least throughput so far, of equal
    ones the first.

    Source: SWARM parallelism (arXiv 2301.11913), as a baseline in the Helix paper. This is,
    node by node, the published placement on 24 and on 42 machines.

    Raises
    ------
    PlacementError
        If there are more stages than nodes; it says how many layers would be missing.
    """
    stages = equal_stages(problem.num_layers, min(kind.max_layers for kind in problem.kinds))
    if len(stages) > len(problem):
        missing = sum(end - start for start, end in stages[len(problem) :])
        raise PlacementError(
            f"swarm cuts the {problem.num_layers} layers of {problem.llm.name} into "
            f"{len(stages)} stages, as small as the smallest machine needs them, but there are "
            f"{len(problem)} nodes: {missing} layers are missing; leave the smallest machines "
            "out of the cluster, or use another method"
        )
    size = max(end - start for start, end in stages)
    order = sorted(range(len(problem)), key=lambda node: problem.tokens_per_s(node, size))
    throughput = [0.0] * len(stages)
    ranges: dict[int, tuple[int, int]] = {}
    for node in reversed(order):
        stage = throughput.index(min(throughput))
        start, end = ranges[node] = stages[stage]
        throughput[stage] += problem.tokens_per_s(node, end - start)
    return ranges


def equal_stages(num_layers: int, most: int) -> list[tuple[int, int]]:
    """Cut layers into stages of at most `most`.

    All alike, as large as divides the layers. Where that would take more than half of `most`
    away (a prime number of layers), as few stages as possible, whose sizes differ by one.
    """
    size = max(size for size in range(1, most + 1) if num_layers % size == 0)
    count = num_layers // size if 2 * size > most else -(-num_layers // most)
    cuts = [num_layers * stage // count for stage in range(count + 1)]
    return list(pairwise(cuts))


def swarm(search: Search) -> None:
    """Report the placement of :func:`swarm_ranges`.

    Raises
    ------
    PlacementError
        If there are more stages than nodes, no request can pass, or routes are too long.
    """
    offer(search, swarm_ranges(search.problem), "swarm")

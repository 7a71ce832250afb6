"""The rule of SWARM: equal stages, and every node where compute is scarcest."""

from __future__ import annotations

from itertools import pairwise

from helixsim.errors import PlacementError
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import FlowSearch


def swarm_ranges(problem: PlanningProblem) -> dict[int, tuple[int, int]]:
    """Place layers by the rule of SWARM.

    The layers are cut into equal stages that the smallest machine can hold. The nodes are sorted
    by their throughput with one stage, the fastest first, and of equally fast nodes the last in
    the cluster's order first. One by one they join the stage with the least throughput so far, of
    equal stages the first.

    Source: SWARM parallelism (arXiv 2301.11913), as a baseline in the Helix paper. The result is,
    node by node, the published placement on 24 and on 42 machines.

    Raises
    ------
    PlacementError
        If there are more stages than nodes; the message says how many layers are missing.
    """
    stages = equal_stages(problem.num_layers, min(kind.max_layers for kind in problem.kinds))
    if len(stages) > len(problem):
        missing = sum(end - start for start, end in stages[len(problem) :])
        raise PlacementError(
            f"swarm cuts the {problem.num_layers} layers of {problem.llm.name} into "
            f"{len(stages)} stages, each as large as the smallest machine can hold, but there are "
            f"{len(problem)} nodes: {missing} layers are missing; remove the smallest machines "
            "from the cluster, or use another method"
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
    """Cut layers into stages of at most `most` layers, as ranges ``[start, end)``.

    The stages have the largest equal size that divides the number of layers. Where that size is
    half of `most` or less (a prime number of layers), they are as few as possible instead, and
    their sizes differ by at most one.
    """
    size = max(size for size in range(1, most + 1) if num_layers % size == 0)
    count = num_layers // size if 2 * size > most else -(-num_layers // most)
    cuts = [num_layers * stage // count for stage in range(count + 1)]
    return list(pairwise(cuts))


def swarm(search: FlowSearch) -> None:
    """Report the placement of :func:`swarm_ranges`.

    Raises
    ------
    PlacementError
        If there are more stages than nodes, no request can pass, or routes are too long.
    """
    search.require(swarm_ranges(search.problem), "swarm")

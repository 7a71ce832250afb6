"""Replicas: pipelines of equal machines within a region, then of what is left."""

from __future__ import annotations

from itertools import groupby

from helixsim.planner.heuristics.pipelines import best_pipelines, mixed_pipeline
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import FlowSearch

_LEAST_SHARE = 0.8
"""Share of the greatest throughput that pipelines may lose to be short."""


def replica_ranges(
    problem: PlanningProblem, least_share: float = _LEAST_SHARE
) -> dict[int, tuple[int, int]]:
    """Give every region its own pipelines, of one kind of machine where that is possible.

    The nodes of a kind in a region form as many pipelines as have `least_share` of the greatest
    total throughput: short ones have the lower latencies. Nodes of kinds that cannot hold the LLM
    there form one mixed pipeline in their region. What is left forms one over all regions, or stays
    idle.
    """
    ranges: dict[int, tuple[int, int]] = {}
    left: list[int] = []

    def region(node: int) -> str:
        return problem.cluster.nodes[node].region

    for _, members in groupby(sorted(range(len(problem)), key=region), region):
        nodes = list(members)
        alone: list[int] = []
        for kind in range(len(problem.kinds)):
            alike = [node for node in nodes if problem.kind_of[node] == kind]
            found = best_pipelines(problem, alike, least_share=least_share)
            ranges |= found
            alone += [] if found else alike
        found = mixed_pipeline(problem, sorted(alone))
        ranges |= found
        left += [node for node in alone if node not in found]
    # A planning problem can hold the LLM, so that this one exists if there is no other.
    return ranges | mixed_pipeline(problem, sorted(left))


def replicas(search: FlowSearch) -> None:
    """Report the placement of :func:`replica_ranges`.

    Raises
    ------
    PlacementError
        If no request can pass, or routes are too long.
    """
    search.require(replica_ranges(search.problem), "replicas")

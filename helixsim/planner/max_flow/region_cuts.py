"""Cuts between regions: what crosses them, and what each region serves by itself.

Divide the nodes into groups. A route either stays in one group, or uses a link between two of them.
So the flow of any placement is at most the sum of what each group alone can carry, which is nothing
if it cannot hold the LLM, and of what all links between groups carry together. If no group can
hold the LLM, every route crosses, once less than the groups that can hold it together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from helixsim.planner.problem import PlanningProblem


def region_cut(
    problem: PlanningProblem,
    most_tokens_per_s: npt.NDArray[np.float64],
    known: float,
    bound_of: Callable[[PlanningProblem], float],
) -> float:
    """Bound the flow of any placement by the cuts between its regions.

    Parameters
    ----------
    problem
        The cluster.
    most_tokens_per_s
        Shape (n,): the most that each node carries, whatever it holds.
    known
        A bound that is known; the answer is no higher.
    bound_of
        Bounds the flow of a part of the cluster, in tokens per second.
    """
    best = known
    for groups in partitions(problem):
        flow = crossing_tokens_per_s(problem, groups, most_tokens_per_s)
        flow /= max(least_crossings(problem, groups), 1)
        for group in groups:
            if flow >= best:
                break
            room = sum(map(problem.max_layers, group))
            if room >= problem.num_layers:
                flow += bound_of(problem.restricted(group))
        best = min(best, flow)
    return best


def least_crossings(problem: PlanningProblem, groups: Sequence[Sequence[int]]) -> int:
    """How often every route passes from one group to another; 0 if one of them can hold the LLM.

    The nodes of a route are in enough groups to hold the LLM together.
    """
    rooms = sorted((sum(map(problem.max_layers, group)) for group in groups), reverse=True)
    count, held = 0, rooms[0]
    while held < problem.num_layers:
        count += 1
        held += rooms[count]
    return count


def partitions(problem: PlanningProblem) -> Iterator[list[list[int]]]:
    """Ways to divide the nodes: by the regions that they name, and by links that never bind."""
    seen = set()
    named: dict[str, list[int]] = {}
    for number, node in enumerate(problem.cluster):
        named.setdefault(node.region, []).append(number)
    for groups in (list(named.values()), fast_groups(problem)):
        key = tuple(map(tuple, groups))
        if 1 < len(groups) < len(problem) and key not in seen:
            seen.add(key)
            yield groups


def fast_groups(problem: PlanningProblem) -> list[list[int]]:
    """Groups of nodes with the fastest links of all between them, in both directions.

    Every node joins the first group to all of whose nodes it has links of at least half the
    bandwidth of the fastest.
    """
    number = len(problem)
    links = problem.link_tokens_per_s[:number, :number]
    both = np.minimum(links, links.T)
    fast = both >= 0.5 * both.max(initial=0.0)
    groups: list[list[int]] = []
    for node in range(number):
        for group in groups:
            if fast[node, group].all():
                group.append(node)
                break
        else:
            groups.append([node])
    return groups


def crossing_tokens_per_s(
    problem: PlanningProblem,
    groups: Sequence[Sequence[int]],
    most_tokens_per_s: npt.NDArray[np.float64],
) -> float:
    """The most that links between groups carry: what their nodes send, or receive, if less."""
    number = len(problem)
    group_of = np.empty(number, dtype=np.intp)
    for index, group in enumerate(groups):
        group_of[list(group)] = index
    links = problem.link_tokens_per_s[:number, :number]
    cross = np.where(group_of[:, None] != group_of[None, :], links, 0.0)
    cross = np.minimum(cross, np.minimum(most_tokens_per_s[:, None], most_tokens_per_s[None, :]))
    sent = np.minimum(cross.sum(axis=1), problem.outbound_tokens_per_s)
    received = np.minimum(cross.sum(axis=0), problem.inbound_tokens_per_s)
    return float(
        min(
            np.minimum(sent, most_tokens_per_s).sum(),
            np.minimum(received, most_tokens_per_s).sum(),
        )
    )

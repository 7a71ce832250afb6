"""Whether a planning problem has any solution: enough room, enough links, enough stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from helixsim.errors import InputError, PlacementError, ScenarioError
from helixsim.placement.placement import front_end_title

if TYPE_CHECKING:
    from helixsim.planner.problem import PlanningProblem


def check_possible(problem: PlanningProblem) -> None:
    """Check that the nodes can hold the LLM, and that enough of them are connected.

    Raises
    ------
    ScenarioError
        If they cannot, or a node is to hold more layers than it can (InputError).
    """
    llm, coordinator = problem.llm, len(problem)
    usable = problem.usable_nodes()
    room = sum(map(problem.max_layers, usable))
    if room < llm.num_layers:
        held = ", ".join(
            f"{kind.count} x {kind.machine_type} up to {kind.max_layers}" for kind in problem.kinds
        )
        if len(usable) < len(problem):
            held += f", {len(problem) - len(usable)} left out"
        raise ScenarioError(
            f"this cluster cannot hold {llm.name}: its machines hold at most {room} of "
            f"{llm.num_layers} layers, {llm.num_layers - room} are missing ({held})",
            where="cluster",
        )
    for node, (start, end) in problem.constraints.fixed.items():
        if end - start > problem.max_layers(node):
            raise InputError(
                f"{problem.names[node]} is to hold {end - start} layers; it holds at most "
                f"{problem.max_layers(node)}",
                where="--fix",
            )
    if problem.constraints.same_region and len({node.region for node in problem.cluster}) == 1:
        raise InputError(
            "the cluster names only one region; give its nodes a region", where="--same-region"
        )
    joins = problem.front_end_links
    for front_end, out, into in zip(problem.cluster.front_ends, joins.out, joins.into, strict=True):
        title = front_end_title(front_end.name)
        if not out.any() or not into.any():
            raise ScenarioError(
                f"{title} has no link to a node, or no link from a node; add links",
                where="cluster.network",
            )
        links = problem.link_tokens_per_s.copy()
        links[coordinator, :coordinator], links[:coordinator, coordinator] = out, into
        _check_connected(problem, links, title)


def _check_connected(problem: PlanningProblem, links: npt.NDArray[np.float64], title: str) -> None:
    """Check that the nodes that are reachable from and to a front end can hold the LLM."""
    coordinator = len(problem)
    reachable = _closure(links, coordinator)
    returning = _closure(links.T, coordinator)
    useful = [node for node in problem.usable_nodes() if node in reachable & returning]
    room = sum(problem.max_layers(node) for node in useful)
    if room < problem.num_layers:
        apart = [problem.names[node] for node in range(coordinator) if node not in useful]
        shown = ", ".join(apart[:8]) + (", ..." if len(apart) > 8 else "")
        raise ScenarioError(
            f"the cluster is not connected: no route from {title} and back passes {shown}, "
            f"and the other nodes hold only {room} of {problem.num_layers} layers; add links to "
            "these nodes",
            where="cluster.network",
        )


def check_stages(problem: PlanningProblem, max_stages: int | None) -> None:
    """Check that `max_stages` nodes can hold the LLM.

    Raises
    ------
    PlacementError
        If even the nodes that may hold the most layers cannot.
    """
    if max_stages is None:
        return
    sizes = sorted(map(problem.max_layers, problem.usable_nodes()), reverse=True)
    room = sum(sizes[:max_stages])
    if room < problem.num_layers:
        raise PlacementError(
            f"no placement has routes of {max_stages} stages or less: {max_stages} nodes hold at "
            f"most {room} of {problem.num_layers} layers of {problem.llm.name}, "
            f"{problem.num_layers - room} are missing"
        )


def _closure(links: npt.NDArray[np.float64], start: int) -> set[int]:
    reached: set[int] = set()
    waiting: Sequence[int] = [start]
    while waiting:
        found = np.flatnonzero((links[list(waiting)] > 0).any(axis=0))
        waiting = [int(node) for node in found if int(node) not in reached]
        reached.update(waiting)
    return reached


def fewest_stages(problem: PlanningProblem) -> int:
    """Fewest nodes that can hold the LLM: no route has fewer."""
    room = sorted(map(problem.max_layers, range(len(problem))), reverse=True)
    held, count = 0, 0
    while held < problem.num_layers:
        held += room[count]
        count += 1
    return count

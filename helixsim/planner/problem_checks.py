"""Whether a cluster can serve an LLM at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from helixsim.errors import ScenarioError
from helixsim.placement.placement import front_end_title

if TYPE_CHECKING:
    from helixsim.planner.problem import PlanningProblem


def check_possible(problem: PlanningProblem) -> None:
    """Check that the machines together can hold the LLM, and that each front end reaches them.

    Raises
    ------
    ScenarioError
        If they cannot, or too few of them are connected.
    """
    llm, coordinator = problem.llm, len(problem)
    room = sum(kind.count * kind.max_layers for kind in problem.kinds)
    if room < llm.num_layers:
        held = ", ".join(
            f"{kind.count} x {kind.machine_type} up to {kind.max_layers}" for kind in problem.kinds
        )
        raise ScenarioError(
            f"this cluster cannot hold {llm.name}: its machines hold at most {room} of "
            f"{llm.num_layers} layers, {llm.num_layers - room} are missing ({held})",
            where="cluster",
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
    useful = [node for node in range(coordinator) if node in reachable and node in returning]
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


def _closure(links: npt.NDArray[np.float64], start: int) -> set[int]:
    reached: set[int] = set()
    waiting: Sequence[int] = [start]
    while waiting:
        found = np.flatnonzero((links[list(waiting)] > 0).any(axis=0))
        waiting = [int(node) for node in found if int(node) not in reached]
        reached.update(waiting)
    return reached

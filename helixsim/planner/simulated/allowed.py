"""What the search may use of a placement: the nodes on a route, within the constraints."""

from __future__ import annotations

from helixsim.planner.constraints import repaired
from helixsim.planner.max_flow.dinic import longest_route
from helixsim.planner.problem import PlanningProblem, Ranges


def allowed(
    problem: PlanningProblem, ranges: Ranges, max_stages: int | None = None
) -> dict[int, tuple[int, int]]:
    """A placement, repaired: what breaks the constraints is gone, fixed layers are in place.

    Nodes on no route are left out, except for nodes with fixed layers.

    Parameters
    ----------
    problem
        The planning problem, with its constraints.
    ranges
        The placement.
    max_stages
        Most nodes of a route; None for any number.

    Returns
    -------
    dict
        The ranges; empty if there is no route through all layers, or one has too many stages.
    """
    constraints = problem.constraints
    if constraints.restrict:
        found = _on_allowed_routes(problem, repaired(problem, ranges))
        if found:
            found |= constraints.fixed
    else:
        found = on_a_route(ranges, problem.num_layers)
    if found and max_stages is not None and longest_route(problem, found) > max_stages:
        return {}
    return found


def _on_allowed_routes(problem: PlanningProblem, ranges: Ranges) -> dict[int, tuple[int, int]]:
    """The nodes on some route, which stays in one region if it has to."""
    if not problem.constraints.same_region:
        return on_a_route(ranges, problem.num_layers)
    nodes = problem.cluster.nodes
    regions: dict[str, dict[int, tuple[int, int]]] = {}
    for node in sorted(ranges):
        regions.setdefault(nodes[node].region, {})[node] = ranges[node]
    found: dict[int, tuple[int, int]] = {}
    for region in regions.values():
        found |= on_a_route(region, problem.num_layers)
    return found


def on_a_route(ranges: Ranges, num_layers: int) -> dict[int, tuple[int, int]]:
    """The ranges of the nodes on some route through all layers; empty without a route."""
    spans = sorted(set(ranges.values()))
    reached = {0}
    for start, end in spans:
        if start in reached:
            reached.add(end)
    returning = {num_layers}
    for start, end in sorted(spans, key=lambda span: -span[1]):
        if end in returning:
            returning.add(start)
    useful = reached & returning
    if num_layers not in reached:
        return {}
    return {node: span for node, span in ranges.items() if span[0] in useful and span[1] in useful}

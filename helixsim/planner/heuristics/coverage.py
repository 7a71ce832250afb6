"""What all heuristics owe their caller: a placement that serves, or an error that says why not."""

from __future__ import annotations

from helixsim.errors import PlacementError
from helixsim.planner.max_flow.dinic import flow_value, longest_route
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.search import Search


def check_coverage(problem: PlanningProblem, ranges: Ranges, method: str) -> None:
    """See that every layer is held.

    Raises
    ------
    PlacementError
        If not; it says how many layers are missing.
    """
    held = {layer for start, end in ranges.values() for layer in range(start, end)}
    if missing := sorted(set(range(problem.num_layers)) - held):
        raise PlacementError(
            f"{method} leaves {len(missing)} of {problem.num_layers} layers of "
            f"{problem.llm.name} without a node, the first is layer {missing[0]}; "
            "use another method"
        )


def offer(search: Search, ranges: Ranges, method: str) -> None:
    """Report what a heuristic found.

    Raises
    ------
    PlacementError
        If no request can pass: ranges that cover all layers may still not join up, or the
        cluster has no links where they do. Or if a route passes more nodes than the search
        allows: no heuristic knows of such a limit.
    """
    most = search.max_stages
    if most is not None and (stages := longest_route(search.problem, ranges)) > most:
        raise PlacementError(
            f"{method} makes routes of {stages} stages, more than {most}, and knows of no limit; "
            "use another method"
        )
    value = flow_value(search.problem, ranges)
    if value <= 0:
        hint = "" if search.problem.partial_inference else ", use --partial-inference"
        raise PlacementError(
            f"{method} gives every layer a node, but no request can pass through all of them: "
            f"no chain of nodes that are linked ends where the next begins{hint} or use another "
            "method"
        )
    search.offer(ranges, value)

"""Separate pipelines: one machine type per pipeline, and optionally one of the remaining nodes."""

from __future__ import annotations

from collections.abc import Sequence

from helixsim.errors import PlacementError
from helixsim.planner.heuristics.pipelines import best_pipelines, mixed_pipeline
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import FlowSearch


def separate_ranges(
    problem: PlanningProblem, *, mixed: bool = False, allow_overcommitted_layers: bool = False
) -> dict[int, tuple[int, int]]:
    """Give every machine type its own pipelines.

    The nodes of a kind, in the cluster's order, share the layers evenly: where the layers do not
    divide, the first nodes hold one layer less. A kind that can hold the LLM several times forms
    the number of pipelines with the greatest total throughput.

    A kind that cannot hold the LLM forms no pipeline (:func:`types_left_out` names such kinds).
    Its nodes stay idle, or join one common pipeline if `mixed`.

    Source: the baselines "separate pipelines" and "separate pipelines plus" of the Helix paper.
    The published placements of LLaMA-2 70B on 24 machines overcommit nodes, for example with 20
    layers on an A100 that should hold 12.

    Parameters
    ----------
    mixed
        Whether the remaining nodes form one more pipeline, if they can hold the LLM. Its layers
        are distributed so that its slowest node is as fast as possible.
    allow_overcommitted_layers
        Whether nodes may hold more layers than their type should, as far as its KV capacity is
        known. The placement must then allow it too.

    Raises
    ------
    PlacementError
        If there is no pipeline; the message says how many layers are missing.
    """
    ranges: dict[int, tuple[int, int]] = {}
    left: list[int] = []
    for number in range(len(problem.kinds)):
        nodes = [node for node in range(len(problem)) if problem.kind_of[node] == number]
        found = best_pipelines(problem, nodes, overcommit=allow_overcommitted_layers)
        ranges |= found
        left += [] if found else nodes
    if mixed:
        ranges |= mixed_pipeline(problem, sorted(left))
    if not ranges:
        _raise_nothing(problem, left, mixed)
    return ranges


def types_left_out(
    problem: PlanningProblem, *, allow_overcommitted_layers: bool = False
) -> tuple[str, ...]:
    """Names of the machine types whose nodes alone cannot hold the LLM."""
    return tuple(
        dict.fromkeys(
            kind.machine_type
            for number, kind in enumerate(problem.kinds)
            if not best_pipelines(
                problem,
                [node for node in range(len(problem)) if problem.kind_of[node] == number],
                overcommit=allow_overcommitted_layers,
            )
        )
    )


def separate(search: FlowSearch) -> None:
    """Report the placement of :func:`separate_ranges`, without overcommitted layers.

    Raises
    ------
    PlacementError
        If no machine type can hold the LLM, no request can pass, or routes are too long.
    """
    search.require(separate_ranges(search.problem), "separate")


def separate_mixed(search: FlowSearch) -> None:
    """Report the placement of :func:`separate_ranges` with its mixed pipeline.

    Raises
    ------
    PlacementError
        If there is no pipeline, no request can pass, or routes are too long.
    """
    search.require(separate_ranges(search.problem, mixed=True), "separate-mixed")


def _raise_nothing(problem: PlanningProblem, left: Sequence[int], mixed: bool) -> None:
    room = {kind.machine_type: 0 for kind in problem.kinds}
    for node in left:
        room[problem.kind(node).machine_type] += problem.max_layers(node)
    most = max(room.values())
    held = ", ".join(f"{name} {layers}" for name, layers in room.items())
    hint = "use another method" if mixed else "mix them (separate-mixed) or use another method"
    raise PlacementError(
        f"separate: no machine type holds the {problem.num_layers} layers of "
        f"{problem.llm.name} by itself; at least {problem.num_layers - most} are missing "
        f"({held}); {hint}"
    )

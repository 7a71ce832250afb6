"""Pipelines of one machine type each, and one of what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from helixsim.errors import PlacementError
from helixsim.planner.heuristics.coverage import offer
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import Search


def separate_ranges(
    problem: PlanningProblem, *, mixed: bool = False, allow_overcommitted_layers: bool = False
) -> dict[int, tuple[int, int]]:
    """Give every machine type pipelines of its own.

    The nodes of a kind, in the cluster's order, share the layers evenly: those in front hold
    one less where it does not divide. If a kind could hold the LLM several times over, it forms
    as many pipelines as let the most tokens through.

    A kind that cannot hold the LLM forms no pipeline (:func:`types_left_out` names them): its
    nodes stay idle, or form one more pipeline together if `mixed`.

    Source: the baselines "separate pipelines" and "separate pipelines plus" of the Helix paper.
    The published ones of LLaMA-2 70B on 24 machines overcommit, for example 20 layers on an
    A100 that should hold 12.

    Parameters
    ----------
    mixed
        Join what is left over in one more pipeline, if it can hold the LLM. Its nodes hold as
        many layers as make the slowest of them as fast as possible.
    allow_overcommitted_layers
        Let nodes hold more layers than their type should, as far as its KV capacity is known.
        The placement must then allow it too.

    Raises
    ------
    PlacementError
        If there is not one pipeline; it says how many layers are missing.
    """
    ranges: dict[int, tuple[int, int]] = {}
    left: list[int] = []
    for number in range(len(problem.kinds)):
        nodes = [node for node in range(len(problem)) if problem.kind_of[node] == number]
        found = _best_pipelines(problem, nodes, allow_overcommitted_layers)
        ranges |= found
        left += [] if found else nodes
    if mixed:
        ranges |= _mixed_pipeline(problem, sorted(left))
    if not ranges:
        _raise_nothing(problem, left, mixed)
    return ranges


def types_left_out(
    problem: PlanningProblem, *, allow_overcommitted_layers: bool = False
) -> tuple[str, ...]:
    """Name the machine types that cannot hold the LLM with their own nodes alone."""
    return tuple(
        dict.fromkeys(
            kind.machine_type
            for number, kind in enumerate(problem.kinds)
            if not _best_pipelines(
                problem,
                [node for node in range(len(problem)) if problem.kind_of[node] == number],
                allow_overcommitted_layers,
            )
        )
    )


def separate(search: Search) -> None:
    """Report the placement of :func:`separate_ranges`, without overcommitted layers.

    Raises
    ------
    PlacementError
        If no machine type can hold the LLM, no request can pass, or routes are too long.
    """
    offer(search, separate_ranges(search.problem), "separate")


def separate_mixed(search: Search) -> None:
    """Report the placement of :func:`separate_ranges` with its mixed pipeline.

    Raises
    ------
    PlacementError
        If there is not one pipeline, no request can pass, or routes are too long.
    """
    offer(search, separate_ranges(search.problem, mixed=True), "separate-mixed")


# -- pipelines of one kind ---------------------------------------------------------------------


def _best_pipelines(
    problem: PlanningProblem, nodes: Sequence[int], overcommit: bool
) -> dict[int, tuple[int, int]]:
    """As many pipelines of these nodes, all of one kind, as let the most through; or none."""
    best: dict[int, tuple[int, int]] = {}
    most = 0.0
    for count in range(1, len(nodes) + 1):
        cuts = [len(nodes) * part // count for part in range(count + 1)]
        parts = [nodes[start:end] for start, end in pairwise(cuts)]
        sizes = [_even_sizes(problem.num_layers, len(part)) for part in parts]
        rates = [
            _slowest(problem, part[0], max(layers), overcommit)
            for part, layers in zip(parts, sizes, strict=True)
        ]
        if all(rates) and sum(rates) > most:
            most, best = sum(rates), {}
            for part, layers in zip(parts, sizes, strict=True):
                best |= _pipeline(part, layers)
    return best


def _even_sizes(num_layers: int, count: int) -> list[int]:
    size, more = divmod(num_layers, count)
    return [size] * (count - more) + [size + 1] * more


def _slowest(problem: PlanningProblem, node: int, num_layers: int, overcommit: bool) -> float:
    """Tokens per second of a node with so many layers, 0 if it cannot hold them."""
    kind = problem.kind(node)
    if num_layers <= kind.max_layers:
        return kind.tokens_per_s[num_layers]
    if not overcommit:
        return 0.0
    try:
        return problem.throughput.tokens_per_s(kind.machine_type, num_layers, kind.kv_token_layers)
    except PlacementError:
        return 0.0


def _pipeline(nodes: Sequence[int], sizes: Sequence[int]) -> dict[int, tuple[int, int]]:
    return dict(zip(nodes, pairwise(accumulate(sizes, initial=0)), strict=True))


# -- the pipeline of what is left over ---------------------------------------------------------


def _mixed_pipeline(problem: PlanningProblem, nodes: Sequence[int]) -> dict[int, tuple[int, int]]:
    """One pipeline of these nodes, in order, whose slowest node is as fast as possible; or none.

    Among the layers that nodes of that speed could hold, the last nodes hold fewer, or none.
    """
    rates = {rate for node in nodes for rate in problem.kind(node).tokens_per_s[1:]}
    for rate in sorted(rates, reverse=True):
        sizes = [_most_layers_at(problem, node, rate) for node in nodes]
        if sum(sizes) >= problem.num_layers:
            ends = [min(end, problem.num_layers) for end in accumulate(sizes, initial=0)]
            return {
                node: (start, end)
                for node, (start, end) in zip(nodes, pairwise(ends), strict=True)
                if end > start
            }
    return {}


def _most_layers_at(problem: PlanningProblem, node: int, rate: float) -> int:
    """The most layers with which a node still carries `rate` tokens per second."""
    rates = problem.kind(node).tokens_per_s
    return max((k for k in range(1, len(rates)) if rates[k] >= rate), default=0)


def _raise_nothing(problem: PlanningProblem, left: Sequence[int], mixed: bool) -> None:
    room = {kind.machine_type: 0 for kind in problem.kinds}
    for node in left:
        room[problem.kind(node).machine_type] += problem.max_layers(node)
    most = max(room.values())
    held = ", ".join(f"{name} {layers}" for name, layers in room.items())
    hint = "use another method" if mixed else "mix them (separate-mixed) or use another method"
    raise PlacementError(
        f"separate: no machine type holds the {problem.num_layers} layers of "
        f"{problem.llm.name} by itself, {problem.num_layers - most} are missing at least "
        f"({held}); {hint}"
    )

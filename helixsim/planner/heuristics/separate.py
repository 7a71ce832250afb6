"""Separate pipelines: one machine type per pipeline, and optionally one of the remaining nodes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from helixsim.errors import PlacementError
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
    """Names of the machine types whose nodes alone cannot hold the LLM."""
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


# -- pipelines of one kind ---------------------------------------------------------------------


def _best_pipelines(
    problem: PlanningProblem, nodes: Sequence[int], overcommit: bool
) -> dict[int, tuple[int, int]]:
    """Pipelines of these nodes, all of one kind, with the greatest total throughput, if any."""
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
    """Throughput in tokens/s of a node with `num_layers` layers, 0 if it cannot hold them."""
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


# -- the pipeline of the remaining nodes -------------------------------------------------------


def _mixed_pipeline(problem: PlanningProblem, nodes: Sequence[int]) -> dict[int, tuple[int, int]]:
    """One pipeline of these nodes, in order, whose slowest node is as fast as possible, if any.

    Every node holds the most layers at that throughput; the last nodes hold fewer, or none.
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
    """The most layers with which a node has a throughput of at least `rate` tokens/s."""
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
        f"{problem.llm.name} by itself; at least {problem.num_layers - most} are missing "
        f"({held}); {hint}"
    )

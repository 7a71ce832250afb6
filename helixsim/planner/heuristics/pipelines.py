"""Pipelines: nodes one behind another that hold all layers, of one kind or of several."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from helixsim.errors import PlacementError
from helixsim.planner.problem import PlanningProblem


def best_pipelines(
    problem: PlanningProblem,
    nodes: Sequence[int],
    *,
    overcommit: bool = False,
    least_share: float = 1.0,
) -> dict[int, tuple[int, int]]:
    """Pipelines of these nodes, all of one kind, with a great total throughput, if any.

    Nodes beyond the number of layers hold none.

    Parameters
    ----------
    problem, nodes
        The nodes.
    overcommit
        Whether nodes may hold more layers than their type should.
    least_share
        Of the numbers of pipelines whose total throughput is at least this share of the greatest,
        the largest: its pipelines are the shortest. With 1, the one of greatest throughput.
    """
    found = []
    for count in range(1, len(nodes) + 1):
        cuts = [len(nodes) * part // count for part in range(count + 1)]
        parts = [nodes[start:end] for start, end in pairwise(cuts)]
        sizes = [_even_sizes(problem.num_layers, len(part)) for part in parts]
        rates = [
            _slowest(problem, part[0], max(layers), overcommit)
            for part, layers in zip(parts, sizes, strict=True)
        ]
        if all(rates):
            found.append((sum(rates), parts, sizes))
    most = max((total for total, _, _ in found), default=0.0)
    if least_share < 1:
        found.reverse()
    for total, parts, sizes in found:
        if total >= least_share * most:
            pipelines = zip(parts, sizes, strict=True)
            return {node: span for each in pipelines for node, span in _pipeline(*each).items()}
    return {}


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
    """The layers of each node; of more nodes than layers, the first ones hold none."""
    spans = pairwise(accumulate(sizes, initial=0))
    return {
        node: (start, end) for node, (start, end) in zip(nodes, spans, strict=True) if end > start
    }


def mixed_pipeline(problem: PlanningProblem, nodes: Sequence[int]) -> dict[int, tuple[int, int]]:
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

"""How requests spread over the nodes of an aligned placement whose links never bind.

The nodes start and end at a few layers. With these as vertices and the nodes as edges, a placement
is a small graph, whose maximum flow is found quickly.
"""

from __future__ import annotations

from helixsim.planner.problem import PlanningProblem, Ranges

_NEGLIGIBLE = 1e-9
"""Share of the flow that counts as none."""


def node_shares(problem: PlanningProblem, ranges: Ranges) -> dict[int, float]:
    """Share of all requests that pass each node.

    Parameters
    ----------
    problem, ranges
        The placement; its links are assumed never to bind.

    Returns
    -------
    dict
        Number of a node -> share, 0 to 1, for the nodes that any requests pass; empty without a
        route through all layers. Nodes with the same layers share in proportion to their
        throughput.
    """
    capacity: dict[tuple[int, int], float] = {}
    for node, span in ranges.items():
        rate = problem.tokens_per_s(node, span[1] - span[0])
        capacity[span] = capacity.get(span, 0.0) + rate
    flow = _layer_flow(capacity, problem.num_layers)
    total = sum(value for (start, _), value in flow.items() if start == 0)
    if total <= 0:
        return {}
    return {
        node: flow[span] / total * (problem.tokens_per_s(node, span[1] - span[0]) / capacity[span])
        for node, span in ranges.items()
        if flow[span] > _NEGLIGIBLE * total
    }


def _layer_flow(
    capacity: dict[tuple[int, int], float], num_layers: int
) -> dict[tuple[int, int], float]:
    """Maximum flow from layer 0 to the last layer, by span ``(start, end)`` of layers.

    The widest augmenting path comes first, which spreads the flow and needs few rounds.
    """
    spans = sorted(capacity)
    left = {span: capacity[span] for span in spans}
    flow = dict.fromkeys(spans, 0.0)
    smallest = _NEGLIGIBLE * max(capacity.values(), default=0.0)
    while True:
        path = _widest_path(spans, left, flow, num_layers)
        if path is None:
            return flow
        amount = min(left[span] if forward else flow[span] for span, forward in path)
        if amount <= smallest:
            return flow
        for span, forward in path:
            change = amount if forward else -amount
            left[span] -= change
            flow[span] += change


def _widest_path(
    spans: list[tuple[int, int]],
    left: dict[tuple[int, int], float],
    flow: dict[tuple[int, int], float],
    num_layers: int,
) -> list[tuple[tuple[int, int], bool]] | None:
    """The augmenting path of greatest width as (span, forward); None without one."""
    width: dict[int, float] = {0: float("inf")}
    reached_by: dict[int, tuple[tuple[int, int], bool]] = {}
    changed = True
    while changed:
        changed = False
        for span in spans:
            start, end = span
            here = width.get(start, 0.0)
            if (wide := min(here, left[span])) > width.get(end, 0.0):
                width[end], reached_by[end], changed = wide, (span, True), True
            here = width.get(end, 0.0)
            if (wide := min(here, flow[span])) > width.get(start, 0.0):
                width[start], reached_by[start], changed = wide, (span, False), True
    if num_layers not in reached_by:
        return None
    path = []
    point = num_layers
    while point != 0:
        span, forward = reached_by[point]
        path.append((span, forward))
        point = span[0] if forward else span[1]
    return path

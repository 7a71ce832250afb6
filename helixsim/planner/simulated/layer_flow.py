"""How requests spread over the layers of an aligned placement whose links never bind.

The nodes start and end at a few layers. With these as vertices and the nodes as edges, a placement
is a small graph, whose maximum flow is found quickly.
"""

from __future__ import annotations

from collections.abc import Mapping

Span = tuple[int, int]
"""Layers ``(start, end)``: the first, and the one after the last."""

_NEGLIGIBLE = 1e-9
"""Share of the flow that counts as none."""


def span_shares(capacity: Mapping[Span, float], num_layers: int) -> dict[Span, float]:
    """Share of all requests that pass the nodes with the same layers.

    Parameters
    ----------
    capacity
        Span of layers -> throughput of all nodes that hold exactly these.
    num_layers
        Number of layers of the LLM.

    Returns
    -------
    dict
        Span -> share, 0 to 1, for the spans that any requests pass; empty without a route
        through all layers.
    """
    flow = _only_way(capacity, num_layers) or _layer_flow(dict(capacity), num_layers)
    total = sum(value for (start, _), value in flow.items() if start == 0)
    if total <= 0:
        return {}
    return {span: value / total for span, value in flow.items() if value > _NEGLIGIBLE * total}


def _only_way(capacity: Mapping[Span, float], num_layers: int) -> dict[Span, float]:
    """All of the flow over every span if they follow one another; empty if there are other ways."""
    at = 0
    for start, end in sorted(capacity):
        if start != at:
            return {}
        at = end
    return dict.fromkeys(capacity, 1.0) if at == num_layers else {}


def _layer_flow(capacity: dict[Span, float], num_layers: int) -> dict[Span, float]:
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
    spans: list[Span],
    left: dict[Span, float],
    flow: dict[Span, float],
    num_layers: int,
) -> list[tuple[Span, bool]] | None:
    """The augmenting path of greatest width as (span, forward); None without one."""
    width: dict[int, float] = {0: float("inf")}
    reached_by: dict[int, tuple[Span, bool]] = {}
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

"""How full the KV caches really are: what the requests in the cluster hold of them.

Nothing in the paper's physics depends on it (admission goes by expectation), so it is worked out
when somebody wants to know, not with every token.
"""

from __future__ import annotations

from collections.abc import Iterable

from helixsim.requests import Request, Route


def kv_use(requests: Iterable[Request], num_nodes: int) -> list[int]:
    """KV use of every node, in tokens x layers.

    A request holds, on each layer of its route, its context and the tokens of the pass it is
    in, from the moment that pass leaves the coordinator.
    """
    tokens: dict[Route, int] = {}
    for request in requests:
        route = request.route
        if route is not None:
            held = request.context_tokens + request.step_tokens
            tokens[route] = tokens.get(route, 0) + held
    use = [0] * num_nodes
    for route, held in tokens.items():
        for stage in route.stages:
            use[stage.node] += held * stage.num_layers
    return use

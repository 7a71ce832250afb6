"""How full the KV caches really are: what the requests in the cluster hold of them.

Nothing in the paper's physics depends on it (admission goes by expectation), so it is worked out
when somebody wants to know, not with every token.
"""

from __future__ import annotations

from collections.abc import Iterable

from helixsim.requests import Request


def kv_use(requests: Iterable[Request], num_nodes: int) -> list[int]:
    """KV use of every node, in tokens x layers.

    A request holds, on each layer of its route, its context and the tokens of the pass it is
    in, from the moment that pass leaves the coordinator.
    """
    use = [0] * num_nodes
    for request in requests:
        if request.route is not None:
            tokens = request.context_tokens + request.step_tokens
            for stage in request.route.stages:
                use[stage.node] += tokens * (stage.end_layer - stage.start_layer)
    return use

"""How full the KV caches are, by what requests really hold, and how much fuller they may get.

A request counts with the tokens that it holds, in whole blocks, on every layer of its route, and
with each decode by one more. How long answers will be is not known, so admission leaves a margin
for the growth of all requests together, which follows what was measured.

Requests that generate until they end with probability ``1 / m`` after each token hold, on a layer,
``N e^(-t/m) (h + t)`` after t more decodes, where N of them hold h tokens each on average. That
is at its most ``N m e^(h/m - 1)`` where ``h < m``; otherwise it falls from the start: for each
request that ends, more room comes free than the others take. ``m`` is the tokens generated so far
over the requests that have ended: the maximum-likelihood estimate, which counts what unfinished
requests have generated, so that it grows when answers get longer before the first of them ends. On
top comes room for a few requests: their ends are random. It doubles when requests were preempted,
and halves again as requests end without.
"""

from __future__ import annotations

from collections.abc import Collection
from math import exp

from helixsim.placement.topology import Topology
from helixsim.profiles.kv_memory import BLOCK_TOKENS
from helixsim.requests import Request, Route

_PRIOR_REQUESTS = 20
"""The expected answer counts like this number of requests that have ended."""
_REMEMBERED_REQUESTS = 500
_SPARE_REQUESTS = 2.0
_MOST_SPARE_REQUESTS = 16.0
_FORGIVING_ENDS = 50
"""The room that preemptions added halves after this number of requests ended without any."""


class KvHeld:
    """KV use per node and per layer, as requests hold it.

    Parameters
    ----------
    topology
        Nodes with their capacity.
    high_water_mark
        Share of a node's capacity that may fill when a request is admitted, its margin included.
    expected_output_tokens
        What an answer is expected to have before any has ended.
    """

    def __init__(
        self, topology: Topology, high_water_mark: float, expected_output_tokens: float
    ) -> None:
        nodes = self._nodes = topology.nodes
        self._capacity = [node.capacity.kv_token_layers for node in nodes]
        self._limit = [high_water_mark * capacity for capacity in self._capacity]
        self._generated = _PRIOR_REQUESTS * max(expected_output_tokens, 1.0)
        self._num_ended = float(_PRIOR_REQUESTS)
        self._spare_requests = _SPARE_REQUESTS
        self._calm_ends = 0
        self.expected_tokens = [0] * len(nodes)
        """For every node, what requests hold, in tokens x layers."""
        self._num_requests = [0] * len(nodes)
        self._booked: dict[Request, None] = {}
        holders = {
            tuple(node.index for node in nodes if node.start_layer <= layer < node.end_layer)
            for layer in range(topology.llm.num_layers)
        }
        self._holders = sorted(holders - {()})

    # -- admission ---------------------------------------------------------------------------------

    def tokens(self, request: Request) -> int:
        """What a request holds on one layer when its prefill is through, in whole blocks."""
        return request.num_tokens + BLOCK_TOKENS

    def fits(self, node: int, tokens: int) -> bool:
        """Whether `tokens` more on all layers of a node, and growth, stay below the mark."""
        num_layers = self._nodes[node].num_layers
        held = self.expected_tokens[node] + tokens * num_layers
        if not self._num_requests[node]:  # there is no other one whose end could make room
            return held - BLOCK_TOKENS * num_layers <= self._capacity[node]
        num_requests = self._num_requests[node] + 1
        per_request = held / (num_layers * num_requests)
        mean = self._generated / self._num_ended
        most = float(held)
        if per_request < mean:
            most = num_layers * num_requests * mean * exp(per_request / mean - 1)
        return most + self._spare_requests * per_request * num_layers <= self._limit[node]

    def book(self, request: Request, route: Route) -> None:
        """Count a request in, with the layers that its route runs on each node."""
        self._booked[request] = None
        self._add(route, self.tokens(request), 1)

    def release(self, request: Request) -> None:
        """Count a request out again, with the decodes that were counted by :meth:`grow`."""
        assert request.route is not None
        del self._booked[request]
        self._add(request.route, -self.tokens(request), -1)
        if request.num_output_tokens == request.num_decodes:
            self._count_end()

    def grow(self, route: Route, num_decodes: int) -> None:
        """Count decodes on a route, each of which leaves one token more on every layer."""
        for stage in route.stages:
            self.expected_tokens[stage.node] += num_decodes * stage.num_layers
        self._generated += num_decodes

    # -- preemption --------------------------------------------------------------------------------

    def headroom_tokens(self) -> int:
        """How many decodes there may be, whatever their routes, before some node is too full."""
        return min(
            -excess // node.num_layers
            for excess, node in zip(self._excess(), self._nodes, strict=True)
        )

    def fullest(self) -> int | None:
        """The number of a node that holds more than it has room for; None if there is none."""
        excess = self._excess()
        most = max(excess)
        return excess.index(most) if most > 0 else None

    def _excess(self) -> list[int]:
        """For every node, tokens x layers beyond its room, blocks that are not full left out."""
        return [
            held - number * BLOCK_TOKENS * node.num_layers - capacity
            for held, number, node, capacity in zip(
                self.expected_tokens, self._num_requests, self._nodes, self._capacity, strict=True
            )
        ]

    def preempted(self) -> None:
        """Take note that requests were preempted: the margin was too small."""
        self._spare_requests = min(2 * self._spare_requests, _MOST_SPARE_REQUESTS)
        self._calm_ends = 0

    # -- figures -----------------------------------------------------------------------------------

    def bottleneck_share(self) -> float:
        """Use of the fullest layer over all nodes that hold it, as a share."""
        use = [
            held / node.num_layers
            for held, node in zip(self.expected_tokens, self._nodes, strict=True)
        ]
        room = [
            capacity / node.num_layers
            for capacity, node in zip(self._capacity, self._nodes, strict=True)
        ]
        return max(
            sum(use[node] for node in holders) / sum(room[node] for node in holders)
            for holders in self._holders
        )

    def validate(self, active: Collection[Request]) -> None:
        """Check the invariant ``kv-conserved``.

        Raises
        ------
        AssertionError
            If other requests than the active ones are booked, or the counts are not their sum.
        """
        assert self._booked.keys() == set(active), "kv-conserved: booked and active differ"
        held = [0] * len(self._nodes)
        for request in self._booked:
            assert request.route is not None
            for stage in request.route.stages:
                held[stage.node] += self.tokens(request) * stage.num_layers
        assert held == self.expected_tokens, "kv-conserved: counts are not what requests hold"

    def _add(self, route: Route, tokens: int, num_requests: int) -> None:
        for stage in route.stages:
            self.expected_tokens[stage.node] += tokens * stage.num_layers
            self._num_requests[stage.node] += num_requests

    def _count_end(self) -> None:
        self._num_ended += 1
        if self._num_ended > _REMEMBERED_REQUESTS:
            self._num_ended /= 2
            self._generated /= 2
        self._calm_ends += 1
        if self._calm_ends == _FORGIVING_ENDS:
            self._calm_ends = 0
            self._spare_requests = max(self._spare_requests / 2, _SPARE_REQUESTS)

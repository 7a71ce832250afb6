"""How full the KV caches are expected to get with the requests that are in.

The length of an answer is not known beforehand, so a request is counted with its prompt and an
expected output from admission to its end, in tokens x layers on every node of its route.
"""

from __future__ import annotations

from collections.abc import Collection
from math import lcm

from helixsim.placement.topology import Topology
from helixsim.requests import Request, Route


class KvExpectation:
    """Expected KV use per node and per layer.

    Parameters
    ----------
    topology
        Nodes with their capacity.
    high_water_mark
        Share of a node's capacity that may be expected to fill.
    expected_output_tokens
        What an answer is expected to have.
    """

    def __init__(
        self, topology: Topology, high_water_mark: float, expected_output_tokens: float
    ) -> None:
        self._nodes = topology.nodes
        self._output_tokens = expected_output_tokens
        self._limit = [high_water_mark * node.capacity.kv_token_layers for node in topology.nodes]
        self.expected_tokens = [0] * len(topology.nodes)
        """For every node, expected use in tokens x layers."""
        self._booked: dict[Request, int] = {}
        # Per layer, in units that are whole numbers: a node's use spreads evenly over its layers.
        unit = lcm(*{node.num_layers for node in topology.nodes})
        self._weight = [unit // node.num_layers for node in topology.nodes]
        self._layer_use = [0] * topology.llm.num_layers
        self._layer_capacity = [0] * topology.llm.num_layers
        for node in topology.nodes:
            share = node.capacity.kv_token_layers * self._weight[node.index]
            for layer in range(node.start_layer, node.end_layer):
                self._layer_capacity[layer] += share

    def tokens(self, request: Request) -> int:
        """What a request is expected to hold on one layer at its end, in tokens."""
        return max(int(request.prompt_tokens + self._output_tokens), request.num_tokens)

    def fits(self, node: int, tokens: int) -> bool:
        """Whether `tokens` more on all layers of a node stay below the high-water mark."""
        asked = tokens * self._nodes[node].num_layers
        return self.expected_tokens[node] + asked <= self._limit[node]

    def book(self, request: Request, route: Route) -> None:
        """Count a request in, with the layers that its route runs on each node."""
        tokens = self.tokens(request)
        self._booked[request] = tokens
        self._add(route, tokens)

    def release(self, request: Request) -> None:
        """Count a request out again."""
        assert request.route is not None
        self._add(request.route, -self._booked.pop(request))

    def _add(self, route: Route, tokens: int) -> None:
        for stage in route.stages:
            amount = tokens * stage.num_layers
            self.expected_tokens[stage.node] += amount
            node = self._nodes[stage.node]
            per_layer = amount * self._weight[stage.node]
            for layer in range(node.start_layer, node.end_layer):
                self._layer_use[layer] += per_layer

    def validate(self, active: Collection[Request]) -> None:
        """Check the invariant ``kv-conserved``.

        Raises
        ------
        AssertionError
            If other requests than the active ones are booked, or the counts are not their sum.
        """
        assert self._booked.keys() == set(active), "kv-conserved: booked and active differ"
        expected = [0] * len(self._nodes)
        for request, tokens in self._booked.items():
            assert request.route is not None
            for stage in request.route.stages:
                expected[stage.node] += tokens * stage.num_layers
        assert expected == self.expected_tokens, "kv-conserved: counts are not the sum of bookings"

    def bottleneck_share(self) -> float:
        """Expected use of the fullest layer over all nodes that hold it, as a share."""
        return max(
            use / capacity
            for use, capacity in zip(self._layer_use, self._layer_capacity, strict=True)
        )

"""The value of a placement's maximum flow, by Dinic's algorithm, in O(V^2 E).

The value is that of the flow graph in :mod:`helixsim.placement.flow`. Planners need only the
value, thousands of times; schedulers need the flow over each link, which that module finds. Here
a node's two network interfaces and its compute are one edge. Where links never bind, all nodes
with the same layers are one edge too.
"""

from __future__ import annotations

import numpy as np

from helixsim.placement.front_end_shares import greatest_total
from helixsim.planner.problem import PlanningProblem, Ranges

_NOTHING = 1e-12
"""Share of the largest capacity below which a residual capacity counts as zero."""


class FlowNetwork:
    """A directed graph with vertices 0 to n - 1 and edge capacities."""

    def __init__(self, num_vertices: int) -> None:
        self.edges_of: list[list[int]] = [[] for _ in range(num_vertices)]
        self.head: list[int] = []
        self.left: list[float] = []

    def add(self, tail: int, head: int, capacity: float) -> None:
        """Add an edge: the i-th one gets the number 2 i, its reverse 2 i + 1."""
        for a, b, room in ((tail, head, capacity), (head, tail, 0.0)):
            self.edges_of[a].append(len(self.head))
            self.head.append(b)
            self.left.append(room)

    def max_flow(self, source: int, sink: int) -> float:
        """Find the value of the maximum flow; the residual capacities remain in `left`."""
        least = _NOTHING * max(self.left, default=0.0)
        total = 0.0
        while (level := self._levels(source, sink, least))[sink] >= 0:
            total += self._blocking_flow(source, sink, level, least)
        return total

    def reachable(self, source: int) -> set[int]:
        """The vertices to which edges with room lead; after a maximum flow, a side of its cut."""
        least = _NOTHING * max(self.left, default=0.0)
        reached, queue = {source}, [source]
        for vertex in queue:
            for edge in self.edges_of[vertex]:
                if self.left[edge] > least and self.head[edge] not in reached:
                    reached.add(self.head[edge])
                    queue.append(self.head[edge])
        return reached

    def _levels(self, source: int, sink: int, least: float) -> list[int]:
        """Distance of every vertex from the source in edges; -1 if not found before the sink."""
        level = [-1] * len(self.edges_of)
        level[source] = 0
        queue = [source]
        for vertex in queue:
            if level[sink] >= 0:
                break
            for edge in self.edges_of[vertex]:
                head = self.head[edge]
                if level[head] < 0 and self.left[edge] > least:
                    level[head] = level[vertex] + 1
                    queue.append(head)
        return level

    def _blocking_flow(self, source: int, sink: int, level: list[int], least: float) -> float:
        """Saturate an edge on every shortest path; the value that this adds to the flow."""
        edges_of, head, left = self.edges_of, self.head, self.left
        next_edge = [0] * len(edges_of)
        path: list[int] = []
        total, vertex = 0.0, source
        while True:
            if vertex == sink:
                amount = min(left[edge] for edge in path)
                total += amount
                keep = len(path)
                for place, edge in enumerate(path):
                    left[edge] -= amount
                    left[edge ^ 1] += amount
                    if left[edge] <= least:
                        keep = min(keep, place)
                vertex = head[path[keep] ^ 1]
                del path[keep:]
            edges, at = edges_of[vertex], next_edge[vertex]
            while at < len(edges):
                edge = edges[at]
                if left[edge] > least and level[head[edge]] == level[vertex] + 1:
                    break
                at += 1
            next_edge[vertex] = at
            if at < len(edges):
                path.append(edges[at])
                vertex = head[edges[at]]
            elif path:
                edge = path.pop()
                vertex = head[edge ^ 1]
                next_edge[vertex] += 1
            else:
                return total


def flow_value(problem: PlanningProblem, ranges: Ranges) -> float:
    """Value of a placement's maximum flow in tokens per second; 0.0 if there is no route.

    Equal to the value of :meth:`.PlanningProblem.flow` up to rounding.
    """
    if problem.links_never_bind:
        return _over_layers(problem, ranges)
    return _over_links(problem, ranges)


def _over_layers(problem: PlanningProblem, ranges: Ranges) -> float:
    """The value where links never bind: layers are vertices, nodes lead from layer to layer."""
    num_layers = problem.num_layers
    totals: dict[tuple[int, int], float] = {}
    for node in sorted(ranges):
        start, end = ranges[node]
        rate = problem.tokens_per_s(node, end - start)
        totals[start, end] = totals.get((start, end), 0.0) + rate
    network = FlowNetwork(num_layers + 1 + len(totals))
    for index, ((start, end), rate) in enumerate(totals.items()):
        if not problem.partial_inference:
            network.add(start, end, rate)
            continue
        entrance = num_layers + 1 + index
        network.add(entrance, end, rate)
        for layer in range(start, end):
            network.add(layer, entrance, rate)
    return network.max_flow(0, num_layers)


def _over_links(problem: PlanningProblem, ranges: Ranges) -> float:
    """The value where links may bind: a node is one edge, and so is each link."""
    front_ends, joins = problem.cluster.front_ends, problem.front_end_links
    if len(front_ends) == 1:
        outbound, inbound = joins.outbound.tolist(), joins.inbound.tolist()
        network, source, sink = _link_network(problem, ranges, outbound, inbound)
        return network.max_flow(source, sink)
    whole = sum(front_end.share for front_end in front_ends)
    shares = [front_end.share / whole for front_end in front_ends]

    def cut_at(total: float) -> tuple[float, float]:
        parts = [share * total for share in shares]
        network, source, sink = _link_network(
            problem,
            ranges,
            np.minimum(joins.outbound, parts).tolist(),
            np.minimum(joins.inbound, parts).tolist(),
        )
        value = network.max_flow(source, sink)
        before = network.reachable(source)
        cut = 0.0
        for number, (share, part) in enumerate(zip(shares, parts, strict=True)):
            cut += share * (joins.outbound[number] > part and _begin(sink, number) not in before)
            cut += share * (joins.inbound[number] > part and _end(sink, number) in before)
        return value, cut

    network, source, sink = _link_network(
        problem, ranges, joins.outbound.tolist(), joins.inbound.tolist()
    )
    return greatest_total(network.max_flow(source, sink), cut_at)


def _begin(sink: int, front_end: int) -> int:
    return sink + 1 + 2 * front_end


def _end(sink: int, front_end: int) -> int:
    return sink + 2 + 2 * front_end


def _link_network(
    problem: PlanningProblem, ranges: Ranges, outbound: list[float], inbound: list[float]
) -> tuple[FlowNetwork, int, int]:
    """The network in which a node is one edge, and so is each link; its source and its sink.

    `outbound` and `inbound` are what each front end may send and get back.
    """
    coordinator, joins = len(problem), problem.front_end_links
    pairs = problem.front_end_pairs(ranges)
    from_others = {b for a, b in pairs if a < coordinator}
    to_others = {a for a, b in pairs if b < coordinator}
    number = {node: index for index, node in enumerate(sorted(ranges))}
    source, sink = 2 * len(number), 2 * len(number) + 1
    network = FlowNetwork(2 * len(number) + 2 + 2 * len(outbound))
    for front_end, (sent, returned) in enumerate(zip(outbound, inbound, strict=True)):
        network.add(source, _begin(sink, front_end), sent)
        network.add(_end(sink, front_end), sink, returned)
    for node, index in number.items():
        start, end = ranges[node]
        into = problem.inbound_tokens_per_s if node in from_others else None
        out = problem.outbound_tokens_per_s if node in to_others else None
        carries = min(
            problem.tokens_per_s(node, end - start),
            float((problem.token_inbound_tokens_per_s if into is None else into)[node]),
            float((problem.token_outbound_tokens_per_s if out is None else out)[node]),
        )
        network.add(2 * index, 2 * index + 1, carries)
    for a, b in pairs:
        if a >= coordinator:
            rate = float(joins.out[a - coordinator, b])
            network.add(_begin(sink, a - coordinator), 2 * number[b], rate)
        elif b >= coordinator:
            rate = float(joins.into[b - coordinator, a])
            network.add(2 * number[a] + 1, _end(sink, b - coordinator), rate)
        else:
            rate = float(problem.link_tokens_per_s[a, b])
            network.add(2 * number[a] + 1, 2 * number[b], rate)
    return network, source, sink


def longest_route(problem: PlanningProblem, ranges: Ranges) -> int:
    """Most stages of any route that the layers allow, whether linked or not; 0 without a route."""
    most = [0] + [-problem.num_layers] * problem.num_layers
    for start, end in sorted(set(ranges.values())):
        entries = most[start:end] if problem.partial_inference else most[start : start + 1]
        most[end] = max(most[end], 1 + max(entries))
    return max(0, most[problem.num_layers])

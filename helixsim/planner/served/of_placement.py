"""The most that a placement serves, however requests are routed and batched: a linear program.

Unknown are the requests per second over each link. What enters a node leaves it; each node has one
second of work a second, its KV cache has room for its tokens, each link and network interface
carries its bytes. The bound holds for requests in the workload's proportion on each node, as
policies that do not sort requests by length give them in the long run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from helixsim.control.control_plane import performance_model, placed_topology
from helixsim.placement.topology import PlacedLink, PlacedNode, Topology
from helixsim.planner.served.node_rates import NodeCosts, Room
from helixsim.planner.served.occupancy import Tangent
from helixsim.planner.served.request_mix import RequestMix, request_mix
from helixsim.planner.solver import MAXIMIZE, add_silencer, new_model
from helixsim.scenario.resolved import Scenario

if TYPE_CHECKING:
    import mip

_SAFETY = 1e-6
"""Relative error of the solver's optimum."""
_FULL = 1e-4
"""A resource counts as full if no more than this share of it is left."""
_NEVER_BINDS = 1e-6
"""A resource of which the whole flow uses less than this share is left out."""
FLOW_POLICIES = ("maxflow", "adaptive")
"""Policies under which links share out network interfaces, and admission knows KV caches."""


@dataclass(frozen=True, slots=True)
class ServedBound:
    """A bound on what is served.

    Attributes
    ----------
    requests_per_s
        No more requests of the workload can be served per second.
    decodes_per_request
        Decodes of a request, on average.
    limited_by
        The kinds of resources that limit it, the strongest first: ``machines``, ``KV cache``,
        ``links``, ``network interfaces``.
    """

    requests_per_s: float
    decodes_per_request: float
    limited_by: tuple[str, ...] = ()

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens of decodes per second."""
        return self.requests_per_s * self.decodes_per_request

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens of decodes, and the one of each prefill."""
        return self.requests_per_s * (self.decodes_per_request + 1)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
            "requests_per_s": self.requests_per_s,
            "limited_by": list(self.limited_by),
        }


def served_bound_of_placement(
    scenario: Scenario, mix: RequestMix | None = None, *, solver: str = "CBC"
) -> ServedBound:
    """Bound what the placement of a scenario serves in the long run.

    Parameters
    ----------
    scenario
        With a placement.
    mix
        The requests as means; the requests of its workload if not given.
    solver
        See :func:`helixsim.planner.solver.new_model`.

    Raises
    ------
    UnboundedError
        If steps of its physics or node scheduler cannot be bounded.
    ScenarioError, NoRouteError
        If it has no placement, or that no route.
    """
    costs = NodeCosts(scenario, mix or request_mix(scenario))
    costs.check()
    return _solve(_Limits(placed_topology(scenario), costs), solver)


class _Limits:
    """The coefficients of the program.

    Attributes
    ----------
    topology, costs
        As given.
    """

    def __init__(self, topology: Topology, costs: NodeCosts) -> None:
        self.topology = topology
        self.costs = costs
        self._streams = costs.scenario.scheduler.stream_chunks
        self._sending = performance_model(costs.scenario).sending
        self._costs_of = [costs.costs(node.profile, node.capacity) for node in topology.nodes]
        self.decode_round_s = self._rounds(self._decode_hop_s)
        self.prompt_round_s = self._rounds(self._prompt_hop_s)

    # -- one request over a link, and in the node at its end ---------------------------------------

    def layers(self, link: PlacedLink) -> int:
        """Layers that a request from this link runs at its target; 0 at the coordinator."""
        nodes = self.topology.nodes
        return 0 if link.target == len(nodes) else nodes[link.target].end_layer - link.entry_layer

    def num_bytes(self, link: PlacedLink) -> float:
        """Bytes that all passes of a request take over a link, at least."""
        mix, coordinator = self.costs.mix, self.topology.coordinator
        tokens = mix.tokens
        if link.target == coordinator:
            tokens = mix.decodes + 1
        elif link.source == coordinator and self.costs.decodes_loop:
            tokens = mix.prompt_tokens
        return tokens * link.bytes_per_token

    def node_s(self, link: PlacedLink, layer_s: float) -> float:
        """Time of the target for all passes of a request."""
        target = self.topology.nodes[link.target]
        found, tokens = self._costs_of[link.target], self.costs.mix.tokens
        seconds = self.layers(link) * layer_s
        if 0 < link.entry_layer == target.start_layer:
            seconds += tokens * found.copy_in_s
        if target.end_layer < self.topology.llm.num_layers:
            seconds += tokens * found.copy_out_s
        return seconds

    def _decode_hop_s(self, link: PlacedLink) -> float:
        coordinator = self.topology.coordinator
        way_s = link.latency_s + link.bytes_per_token / link.bandwidth_bytes_per_s
        if self.costs.decodes_loop and coordinator in (link.source, link.target):
            way_s = 0.0  # tokens go straight from the last node to the first
        if link.target == coordinator:
            return way_s
        return way_s + self.layers(link) * self._costs_of[link.target].least_decode_s

    def _prompt_hop_s(self, link: PlacedLink) -> float:
        """For each token of a prompt; chunks in a stream are on several nodes at a time."""
        if self._streams or link.target == self.topology.coordinator:
            return 0.0
        node = self.topology.nodes[link.target]
        way_s = link.bytes_per_token / link.bandwidth_bytes_per_s
        return way_s + self.layers(link) * self.costs.prompt_token_s(node.profile, node.capacity)

    def _rounds(self, hop_s: Callable[[PlacedLink], float]) -> list[float]:
        """For each node, the least sum over the hops of a route through it; infinite without."""
        topology = self.topology
        number = len(topology.nodes)
        seconds = [hop_s(link) for link in topology.links]
        # A node's links come from nodes that end earlier, so one sweep by ends is enough.
        by_end = sorted(range(number), key=lambda index: topology.nodes[index].end_layer)
        there = [inf] * number + [0.0]
        for index in by_end:
            there[index] = min(
                (there[link.source] + seconds[link.index] for link in topology.incoming[index]),
                default=inf,
            )
        back = [inf] * number + [0.0]
        for index in reversed(by_end):
            back[index] = min(
                (back[link.target] + seconds[link.index] for link in topology.outgoing[index]),
                default=inf,
            )
        return [there[index] + back[index] for index in range(number)]

    # -- resources: coefficients of links, and what there is ---------------------------------------

    def resources(self) -> Iterator[tuple[str, dict[int, float], float]]:
        """Kind of the resource, link -> use for each request, and the amount."""
        topology = self.topology
        for link in topology.links:
            yield "links", {link.index: self.num_bytes(link)}, link.bandwidth_bytes_per_s
        for node in topology.nodes:
            incoming = topology.incoming[node.index]
            if not incoming:
                continue
            fewest = min(map(self.layers, incoming))
            layer_s = self.costs.layer_s(node.profile, node.capacity, fewest)
            work = {link.index: self.node_s(link, layer_s) for link in incoming}
            yield "machines", work, 1.0
            yield from self._kv(node, incoming)
        if self._shares_interfaces():
            yield from self._interfaces()

    def _kv(
        self, node: PlacedNode, incoming: Sequence[PlacedLink]
    ) -> Iterator[tuple[str, dict[int, float], float]]:
        mix, index = self.costs.mix, node.index
        if self.decode_round_s[index] == inf:
            return
        for room in self.costs.rooms(node.capacity, node.num_layers):
            held = (
                mix.decodes * room.per_decode * self.decode_round_s[index]
                + mix.prompt_tokens * room.per_prompt_token * self.prompt_round_s[index]
            )
            token_layers = {link.index: held * self.layers(link) for link in incoming}
            yield "KV cache", token_layers, room.token_layers

    # -- decodes in execution, and room for them -----------------------------------------------

    def in_execution(self) -> Iterator[tuple[dict[int, float], list[Tangent]]]:
        """Link -> layers of a request at the link's target, and the tangents of that node."""
        for node in self.topology.nodes:
            if incoming := self.topology.incoming[node.index]:
                layer_s = self.costs.layer_s(
                    node.profile, node.capacity, min(map(self.layers, incoming))
                )
                layers = {link.index: float(self.layers(link)) for link in incoming}
                yield layers, self.costs.tangents(node.profile, node.capacity, 1 / layer_s)

    def elsewhere(self, link: PlacedLink, room: Room) -> float:
        """Tokens x seconds that a request holds on each layer on links, or in its prefill."""
        mix = self.costs.mix
        decode_s = self._decode_hop_s(link)
        prompt_s = self._prompt_hop_s(link)
        if link.target != self.topology.coordinator:
            decode_s -= self.layers(link) * self._costs_of[link.target].least_decode_s
        return (
            mix.decodes * decode_s * room.per_decode
            + mix.prompt_tokens * prompt_s * room.per_prompt_token
        )

    def shared_rooms(self) -> Iterator[tuple[Room, float]]:
        """Rooms of which all requests share the same, and its tokens on each layer."""
        nodes = self.topology.nodes
        rooms = [self.costs.rooms(node.capacity, node.num_layers) for node in nodes]
        aligned = all(
            link.entry_layer == nodes[link.target].start_layer
            for link in self.topology.links
            if link.target != self.topology.coordinator
        )
        for number, room in enumerate(rooms[0]):
            held = [each[number].token_layers for each in rooms]
            if not aligned:  # a node may hold all of its tokens on few of its layers
                yield room, sum(held) / self.topology.llm.num_layers
                continue
            cuts = {node.start_layer for node in nodes}
            yield (
                room,
                min(
                    sum(
                        tokens / node.num_layers
                        for node, tokens in zip(nodes, held, strict=True)
                        if node.start_layer <= layer < node.end_layer
                    )
                    for layer in cuts
                ),
            )

    def _shares_interfaces(self) -> bool:
        """Whether links together send no more than their interface: others each use all of it."""
        return self._sending is not None or self.costs.scenario.scheduler.policy in FLOW_POLICIES

    def _interfaces(self) -> Iterator[tuple[str, dict[int, float], float]]:
        topology = self.topology
        for machine in range(topology.coordinator + 1):
            nic = topology.nic(machine)
            into = {link.index: self.num_bytes(link) for link in topology.incoming[machine]}
            yield "network interfaces", into, nic.inbound_bytes_per_s
            # Where decodes loop, tokens for the coordinator go by a way of their own.
            out = {
                link.index: self.num_bytes(link)
                for link in topology.outgoing[machine]
                if not (self.costs.decodes_loop and link.target == topology.coordinator)
            }
            most = nic.outbound_bytes_per_s
            if self._sending is not None:
                most = min(most, self._sending.bytes_per_s)
            yield "network interfaces", out, most


def _solve(limits: _Limits, solver: str) -> ServedBound:
    topology = limits.topology
    resources = [each for each in limits.resources() if each[1]]
    # In units near the optimum: solvers know tolerances, not requests per second.
    scale = min(
        sum(amount / max(use.values()) for kind, use, amount in resources if kind == name)
        for name in {kind for kind, _, _ in resources if kind in ("machines", "KV cache")}
    )
    model = new_model(MAXIMIZE, solver)
    add_silencer(model)
    first = {link.index for link in topology.outgoing[topology.coordinator]}
    rate = [model.add_var(lb=0, obj=float(link.index in first)) for link in topology.links]
    for node in topology.nodes:
        into, out = topology.incoming[node.index], topology.outgoing[node.index]
        if into or out:
            through = sum(rate[link.index] for link in into)
            model += through - sum(rate[link.index] for link in out) == 0
    for _, use, amount in resources:
        shares = {link: each * scale / amount for link, each in use.items()}
        if sum(shares.values()) > _NEVER_BINDS:
            model += sum(share * rate[link] for link, share in shares.items()) <= 1
    full_rooms = _add_rooms(model, rate, limits, scale)
    model.optimize()
    found = [max(0.0, float(each.x)) for each in rate]
    full = [
        kind
        for kind, use, amount in resources
        if sum(each * found[link] for link, each in use.items()) * scale >= amount * (1 - _FULL)
    ]
    full += ["KV cache" for use, room in full_rooms if float(use.x) >= room * (1 - _FULL)]
    kinds = sorted(dict.fromkeys(full), key=lambda kind: -full.count(kind))
    value = float(model.objective_value) * scale * (1 + _SAFETY)
    return ServedBound(value, limits.costs.mix.decodes, tuple(kinds))


def _add_rooms(
    model: mip.Model, rate: Sequence[mip.Var], limits: _Limits, scale: float
) -> list[tuple[mip.LinExpr, float]]:
    """Limit what all requests hold together; what is held, and the room for it."""
    rooms = list(limits.shared_rooms())
    if not rooms:
        return []
    executing = []
    for layers, curve in limits.in_execution():
        count = model.add_var(lb=0)
        work = sum(each * rate[link] for link, each in layers.items())
        for tangent in curve:
            if tangent.slope > 0:
                model += count >= tangent.slope * scale * work + tangent.at_zero
        executing.append(count)
    found = []
    for room, tokens in rooms:
        if not room.per_decode or not tokens:
            continue
        away = [
            (limits.elsewhere(link, room) / room.per_decode * scale, rate[link.index])
            for link in limits.topology.links
        ]
        held = sum(executing) + sum(each * variable for each, variable in away)
        model += held <= tokens / room.per_decode
        found.append((held, tokens / room.per_decode))
    return found

"""What a placement serves, by a formula: quick enough to judge thousands of placements.

The maximum flow says what machines can do with full batches. What they do serve follows from
how many requests are in flight and how long a token takes:

- The KV cache of the tightest layer bounds the requests in flight. By Little's law, requests in
  flight = requests per second x (prompt latency + output tokens x decode latency).
- A decode mostly waits for prompts. A prompt takes a machine, or a slow link, many times as long
  as a decode does, and nobody overtakes: a decode that has come up behind a prompt stays behind
  it for as long as both go the same way. Where routes part, it may get free. So decodes travel
  in convoys, at the speed of the prompts, and what makes a cluster fast is quick prompts on the
  whole route and several ways past each slow machine.

The estimate follows one prompt and one decode along all routes at once, node by node in the
order of layers, with the chance that the decode is behind a prompt as its only memory. It sees
no distribution, only means. Compared with simulations of the published clusters it is some 5 to
25 % too high in throughput, and it orders placements mostly as the simulation does, which the
benchmark ``tests/bench/plan.py estimate`` shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from helixsim.cluster import COORDINATOR
from helixsim.physics import PHYSICS_PROFILES
from helixsim.physics.paper import COPY_S_PER_BYTE
from helixsim.placement.check import node_capacity
from helixsim.placement.flow import Flow, used_links
from helixsim.placement.topology import Topology
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.simulated.blocking import Convoys, Hop, PassedNode
from helixsim.planner.simulated.layer_flow import visits
from helixsim.scenario.resolved import Scenario

_ROUNDS = 14
"""Bisections of the request rate: to within 1/16,000 of its range."""
_OVERFLOW = 1.25
"""A node that is full passes requests on to its neighbours: so much more than its share of the
flow is in flight before a node binds."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a placement would serve.

    Attributes
    ----------
    decode_tokens_per_s
        Output tokens per second; 0 if nothing gets through.
    decode_latency_s, prompt_latency_s
        Means; infinite if nothing gets through.
    requests_in_flight
        How many there are at a time.
    """

    decode_tokens_per_s: float
    decode_latency_s: float
    prompt_latency_s: float
    requests_in_flight: float


NOTHING = Estimate(0.0, inf, inf, 0.0)


class Surrogate:
    """Estimates what placements of one problem serve under one scenario's workload.

    Parameters
    ----------
    scenario
        Its workload's mean lengths, offered load and KV settings count.
    problem
        What is planned.
    mean_prompt_tokens, mean_output_tokens
        Lengths of the mean request that is really sent; from the workload's settings if not
        given.
    """

    def __init__(
        self,
        scenario: Scenario,
        problem: PlanningProblem,
        *,
        mean_prompt_tokens: float | None = None,
        mean_output_tokens: float | None = None,
    ) -> None:
        workload = scenario.workload
        self.problem = problem
        self.prompt_tokens = mean_prompt_tokens or workload.mean_prompt_tokens
        self.output_tokens = mean_output_tokens or workload.mean_output_tokens
        scheduler = scenario.scheduler
        expected = workload.mean_output_tokens * scheduler.kv.expected_output_ratio
        self._kv_tokens = self.prompt_tokens + expected
        self._kv_share = scheduler.kv.high_water_mark
        if workload.mode == "offline":
            self._kv_share = min(self._kv_share, scheduler.feed_high_water_mark)
        self._node_kv_share = scheduler.kv.high_water_mark
        self._offered = _offered_requests_per_s(scenario, self.prompt_tokens + self.output_tokens)
        profiles = scenario.profiles()
        llm = problem.llm
        self._activation_bytes = llm.activation_bytes_per_token
        self._prefill_s: list[float] = []
        self._decode_s: list[list[float]] = []
        self._kv_per_layer: list[list[float]] = []
        nodes = list(problem.cluster)
        for number, kind in enumerate(problem.kinds):
            profile = profiles[kind.machine_type]
            node = nodes[problem.kind_of.index(number)]
            rows = [node_capacity(node, profile, k) for k in range(1, kind.max_layers + 1)]
            most = max(row.max_decode_tokens for row in rows)
            self._prefill_s.append(profile.prefill(round(self.prompt_tokens)))
            self._decode_s.append([profile.decode(max(1, n)) for n in range(most + 1)])
            self._kv_per_layer.append(
                [0.0, *(row.kv_token_layers / k for k, row in enumerate(rows, start=1))]
            )
        self._links = _LinkTable(problem)
        self._uses_small_shares_alone = PHYSICS_PROFILES[scenario.physics].requests_wait
        # None where copies cost what the published simulator charges.
        self._engine_copy_s_per_byte = (
            None if scenario.physics == "paper" else 1 / scenario.engine.copy_bytes_per_s
        )

    # -- two ways in -------------------------------------------------------------------------

    def of_ranges(self, ranges: Ranges) -> Estimate:
        """Estimate a placement of which only the ranges are known.

        Requests are taken to spread over the nodes as their throughput allows, and from each
        over all that come next.
        """
        share = visits(self.problem, ranges)
        if not share:
            return NOTHING
        home = len(self.problem)
        starts: dict[int, list[int]] = {}
        for node in share:
            starts.setdefault(ranges[node][0], []).append(node)
        into = {layer: sum(share[node] for node in nodes) for layer, nodes in starts.items()}
        outgoing: dict[int, list[tuple[int, float]]] = {
            home: [(node, share[node]) for node in starts[0]]
        }
        for node in share:
            end = ranges[node][1]
            after = starts.get(end)
            outgoing[node] = (
                [(home, 1.0)]
                if after is None
                else [(other, share[other] / into[end]) for other in after]
            )
        return self._estimate(ranges, share, outgoing, None)

    def of_flow(self, topology: Topology, flow: Flow, min_flow_share: float = 0.05) -> Estimate:
        """Estimate a placement whose requests follow a maximum flow, as they will be routed."""
        carried = flow.link_tokens_per_s
        numbers = self.problem.numbers
        number = [*(numbers[node.name] for node in topology.nodes), len(self.problem)]
        outgoing: dict[int, list[tuple[int, float]]] = {}
        bandwidth: dict[tuple[int, int], float] = {}
        outflow = [sum(carried[link.index] for link in out) for out in topology.outgoing]
        inflow = [sum(carried[link.index] for link in into) for into in topology.incoming]
        for machine, links in enumerate(topology.outgoing):
            used = used_links(
                links, carried, min_flow_share, all_if_none=self._uses_small_shares_alone
            )
            total = sum(carried[link.index] for link in used)
            outgoing[number[machine]] = [
                (number[link.target], carried[link.index] / total) for link in used
            ]
            for link in used:
                bandwidth[number[machine], number[link.target]] = min(
                    link.bandwidth_bytes_per_s,
                    topology.nic(machine).outbound_bytes_per_s
                    * (carried[link.index] / outflow[machine]),
                    topology.nic(link.target).inbound_bytes_per_s
                    * (carried[link.index] / inflow[link.target]),
                )
        home = number[-1]
        ranges = {number[n.index]: (n.start_layer, n.end_layer) for n in topology.nodes}
        share = dict.fromkeys(ranges, 0.0)
        for machine in (home, *sorted(ranges, key=lambda n: ranges[n][1])):
            here = 1.0 if machine == home else share[machine]
            for target, part in outgoing.get(machine, ()):
                if target != home:
                    share[target] += here * part
        share = {node: value for node, value in share.items() if value > 0}
        if not share:
            return NOTHING
        return self._estimate(ranges, share, outgoing, bandwidth)

    # -- the model ---------------------------------------------------------------------------

    def _estimate(
        self,
        ranges: Ranges,
        share: Mapping[int, float],
        outgoing: Mapping[int, Sequence[tuple[int, float]]],
        bandwidth: Mapping[tuple[int, int], float] | None,
    ) -> Estimate:
        hops = self._hops(share, outgoing, bandwidth)
        if not hops:
            return NOTHING
        passing = Convoys(
            self._passed_nodes(ranges, share, hops),
            hops[len(self.problem)],
            self.output_tokens,
            len(self.problem) + 1,
        )
        in_flight = self._most_in_flight(ranges, share)
        low, high = 0.0, min(self._offered, passing.most_requests_per_s())
        if high <= 0:
            return NOTHING
        best = passing.latencies(high)
        rate = high
        if best is None or high * (best[0] + self.output_tokens * best[1]) > in_flight:
            best = None
            for _ in range(_ROUNDS):
                rate = (low + high) / 2
                found = passing.latencies(rate)
                if found is None or rate * (found[0] + self.output_tokens * found[1]) > in_flight:
                    high = rate
                else:
                    low, best = rate, found
            rate = low
        if best is None:
            return NOTHING
        prompt_s, decode_s = best
        return Estimate(
            rate * self.output_tokens,
            decode_s,
            prompt_s,
            rate * (prompt_s + self.output_tokens * decode_s),
        )

    def prompt_copy_s(self, start: int, end: int) -> float:
        """Time in seconds that a node with layers ``[start, end)`` spends on copying a mean prompt.

        ``paper``: the activations of all tokens that the node receives pass the host's memory.
        ``calibrated``: the activations are copied into the GPU on all nodes but the first of a
        route, and out of it on all but the last.
        """
        num_bytes = self.prompt_tokens * self._activation_bytes
        if self._engine_copy_s_per_byte is None:
            return num_bytes * COPY_S_PER_BYTE
        copies = (start > 0) + (end < self.problem.num_layers)
        return num_bytes * copies * self._engine_copy_s_per_byte

    def _passed_nodes(
        self, ranges: Ranges, share: Mapping[int, float], hops: Mapping[int, list[Hop]]
    ) -> list[PassedNode]:
        found = []
        for node in sorted(share, key=lambda node: (ranges[node][1], node)):
            start, end = ranges[node]
            kind = self.problem.kind_of[node]
            prompt_s = (end - start) * self._prefill_s[kind] + self.prompt_copy_s(start, end)
            found.append(
                PassedNode(
                    node,
                    share[node],
                    prompt_s,
                    end - start,
                    self._decode_s[kind],
                    hops.get(node, []),
                )
            )
        return found

    def _hops(
        self,
        share: Mapping[int, float],
        outgoing: Mapping[int, Sequence[tuple[int, float]]],
        bandwidth: Mapping[tuple[int, int], float] | None,
    ) -> dict[int, list[Hop]]:
        links, home = self._links, len(self.problem)
        hops: dict[int, list[Hop]] = {}
        for source, targets in outgoing.items():
            here = 1.0 if source == home else share.get(source, 0.0)
            if here <= 0:
                continue
            hops[source] = []
            joined = [(target, part, *links.link(source, target)) for target, part in targets]
            whole = sum(part for _, part, own_bandwidth, _ in joined if own_bandwidth > 0)
            if whole <= 0:
                return {}
            for target, part_of_all, own_bandwidth, latency_s in joined:
                if own_bandwidth <= 0:
                    continue
                part = part_of_all / whole
                at = own_bandwidth if bandwidth is None else bandwidth[source, target]
                weight = self.problem.llm.token_bytes
                if home not in (source, target):
                    weight += self._activation_bytes
                hops[source].append(
                    Hop(
                        target,
                        here * part,
                        part,
                        latency_s,
                        weight * self.prompt_tokens / at,
                        weight / at,
                    )
                )
        return hops

    def _most_in_flight(self, ranges: Ranges, share: Mapping[int, float]) -> float:
        """Requests that the KV caches take: as a whole per layer, and on each node by its share."""
        problem = self.problem
        room = [0.0] * problem.num_layers
        least = inf
        for node, (start, end) in ranges.items():
            kv = self._kv_per_layer[problem.kind_of[node]][end - start]
            for layer in range(start, end):
                room[layer] += kv
            if (used := share.get(node, 0.0)) > 0:
                least = min(least, _OVERFLOW * self._node_kv_share * kv / used)
        return min(self._kv_share * min(room), least) / self._kv_tokens


class _LinkTable:
    """Bandwidth and latency of links, looked up once."""

    def __init__(self, problem: PlanningProblem) -> None:
        self._network = problem.cluster.network
        self._names = [*problem.names, COORDINATOR]
        self._allowed = problem.link_tokens_per_s
        self._nics = [problem.cluster.nic(name) for name in self._names]
        self._known: dict[tuple[int, int], tuple[float, float]] = {}

    def link(self, source: int, target: int) -> tuple[float, float]:
        """Bandwidth, 0 where there is no link, and latency."""
        found = self._known.get((source, target))
        if found is None:
            link = self._network.link(self._names[source], self._names[target])
            if link is None or self._allowed[source, target] <= 0:
                found = (0.0, 0.0)
            else:
                bandwidth = min(
                    link.bandwidth_bytes_per_s,
                    self._nics[source].outbound_bytes_per_s,
                    self._nics[target].inbound_bytes_per_s,
                )
                found = (bandwidth, link.latency_s)
            self._known[source, target] = found
        return found


def _offered_requests_per_s(scenario: Scenario, tokens_per_request: float) -> float:
    workload = scenario.workload
    if workload.mode == "offline":
        return inf
    if workload.trace is not None:
        return workload.trace.rate_per_s * workload.rate_scale
    return (workload.mean_tokens_per_s or inf) / tokens_per_request

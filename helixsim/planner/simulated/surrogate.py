"""A surrogate of the simulation: the throughput and latencies of a placement, by a formula.

It is quick enough to evaluate thousands of placements. The maximum flow says what machines can do
with full batches. The achieved throughput depends on the requests in flight and on the latency:

- The KV cache of the layer with the least room bounds the requests in flight. By Little's law,
  requests in flight = requests per second x (prompt latency + output tokens x decode latency).
- A decode mostly waits for prompts (head-of-line blocking). A prompt occupies a machine, or a slow
  link, many times as long as a decode does, and requests do not overtake: a decode behind a prompt
  stays behind it for as long as both take the same route. So decodes move at the speed of prompts,
  and a cluster is fast if prompts are quick on the whole route and several routes pass each slow
  machine.

Where prefills leave as a stream of chunks and steps are limited (``scheduler.preset: tuned``),
decodes run between chunks: none stays behind a prompt on a node, and a prompt takes a chunk's time
on each node, and the slowest node's for each further chunk.

The estimate follows one prompt and one decode along all routes at once, node by node in the order
of layers. Its only state is the probability that the decode is behind a prompt. It computes means,
not distributions. Compared with simulations of the published clusters, its throughput is 5 to 25 %
too high, and it mostly ranks placements as the simulation does (see the benchmark
``tests/bench/serve.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from helixsim.control.control_plane import (
    FEWEST_CHUNK_TOKENS,
    mixes_batches,
    node_scheduler_name,
    performance_model,
)
from helixsim.control.node_schedulers import NODE_SCHEDULERS, composes_steps
from helixsim.control.node_schedulers.composition import AUTO
from helixsim.physics.paper import COPY_S_PER_BYTE, PaperModel
from helixsim.placement.flow import Flow, used_links
from helixsim.placement.placement import node_capacity
from helixsim.placement.topology import Topology
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.simulated.blocking import BlockingModel, LinkModel, NodeModel
from helixsim.planner.simulated.layer_flow import node_shares
from helixsim.planner.simulated.link_table import LinkTable
from helixsim.scenario.offered_load import offered_requests_per_s
from helixsim.scenario.resolved import Scenario

_RATE_BISECTIONS = 14
"""Bisections of the request rate: to 1/16,000 of its range, finer than the model's error."""
_OVERFLOW = 1.25
"""Requests in flight at which the KV cache of a single node binds, over its share of the flow: a
node whose cache is full is passed over in favour of its neighbours."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected performance of a placement.

    Attributes
    ----------
    decode_tokens_per_s
        Output tokens per second; 0 if no request can pass.
    decode_latency_s, prompt_latency_s
        Means in seconds; infinite if no request can pass.
    requests_in_flight
        Mean number of requests in flight.
    """

    decode_tokens_per_s: float
    decode_latency_s: float
    prompt_latency_s: float
    requests_in_flight: float


NOTHING = Estimate(0.0, inf, inf, 0.0)
"""The estimate for a placement that no request can pass."""


class Surrogate:
    """Estimates the performance of placements under the workload of one scenario.

    Parameters
    ----------
    scenario
        Gives the mean request, the offered load, the KV settings and the physics.
    problem
        The planning problem.
    mean_prompt_tokens, mean_output_tokens
        Lengths of the mean request if they differ from the workload's settings.
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
        # What requests hold is on average half of what they come to hold of their answers.
        is_exact = scheduler.kv.admission == "exact"
        self._kv_tokens = self.prompt_tokens + (expected / 2 if is_exact else expected)
        self._num_chunks = _num_chunks(scenario, self.prompt_tokens)
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
        self._links = LinkTable(problem)
        performance = performance_model(scenario)
        self._uses_small_shares_alone = performance.requests_wait
        # None under paper physics, which charges every token that a node receives.
        self._engine_copy_s_per_byte = (
            None if isinstance(performance, PaperModel) else 1 / scenario.engine.copy_bytes_per_s
        )

    # -- estimates ---------------------------------------------------------------------------

    def of_ranges(self, ranges: Ranges) -> Estimate:
        """Estimate a placement from its ranges alone.

        Requests are assumed to spread over the nodes by throughput (:func:`.node_shares`), and
        from each node over all nodes that hold the next layer.
        """
        share = node_shares(self.problem, ranges)
        if not share:
            return NOTHING
        coordinator = len(self.problem)
        starts: dict[int, list[int]] = {}
        for node in share:
            starts.setdefault(ranges[node][0], []).append(node)
        into = {layer: sum(share[node] for node in nodes) for layer, nodes in starts.items()}
        outgoing: dict[int, list[tuple[int, float]]] = {
            coordinator: [(node, share[node]) for node in starts[0]]
        }
        for node in share:
            end = ranges[node][1]
            after = starts.get(end)
            outgoing[node] = (
                [(coordinator, 1.0)]
                if after is None
                else [(other, share[other] / into[end]) for other in after]
            )
        return self._estimate(ranges, share, outgoing, None)

    def of_flow(self, topology: Topology, flow: Flow, min_flow_share: float = 0.05) -> Estimate:
        """Estimate a placement whose requests follow a maximum flow, as the scheduler routes them.

        Parameters
        ----------
        topology, flow
            The placement on its cluster, and the flow over its links.
        min_flow_share
            See :func:`~helixsim.placement.flow.used_links`.
        """
        carried = flow.link_tokens_per_s
        numbers = self.problem.numbers
        coordinator = len(self.problem)  # all front ends, taken as one
        number = [numbers[node.name] for node in topology.nodes]
        number += [coordinator] * len(topology.front_ends)
        outgoing: dict[int, dict[int, float]] = {}
        bandwidth: dict[tuple[int, int], float] = {}
        outflow = [sum(carried[link.index] for link in out) for out in topology.outgoing]
        inflow = [sum(carried[link.index] for link in into) for into in topology.incoming]
        for machine, links in enumerate(topology.outgoing):
            used = used_links(
                links, carried, min_flow_share, all_if_none=self._uses_small_shares_alone
            )
            total = sum(carried[link.index] for link in used)
            parts = outgoing.setdefault(number[machine], {})
            weight = 1.0
            if topology.is_front_end(machine):
                weight = topology.front_ends[machine - topology.coordinator].share
            for link in used:
                target = number[link.target]
                part = weight * (carried[link.index] / total)
                parts[target] = parts.get(target, 0.0) + part
                bandwidth[number[machine], number[link.target]] = min(
                    link.bandwidth_bytes_per_s,
                    topology.nic(machine).outbound_bytes_per_s
                    * (carried[link.index] / outflow[machine]),
                    topology.nic(link.target).inbound_bytes_per_s
                    * (carried[link.index] / inflow[link.target]),
                )
        ranges = {number[n.index]: (n.start_layer, n.end_layer) for n in topology.nodes}
        share = dict.fromkeys(ranges, 0.0)
        for machine in (coordinator, *sorted(ranges, key=lambda n: ranges[n][1])):
            here = 1.0 if machine == coordinator else share[machine]
            for target, part in outgoing.get(machine, {}).items():
                if target != coordinator:
                    share[target] += here * part
        share = {node: value for node, value in share.items() if value > 0}
        if not share:
            return NOTHING
        parts_of = {machine: list(parts.items()) for machine, parts in outgoing.items()}
        return self._estimate(ranges, share, parts_of, bandwidth)

    # -- the model ---------------------------------------------------------------------------

    def _estimate(
        self,
        ranges: Ranges,
        share: Mapping[int, float],
        outgoing: Mapping[int, Sequence[tuple[int, float]]],
        bandwidth: Mapping[tuple[int, int], float] | None,
    ) -> Estimate:
        link_models = self._link_models(share, outgoing, bandwidth)
        if not link_models:
            return NOTHING
        model = BlockingModel(
            self._node_models(ranges, share, link_models),
            link_models[len(self.problem)],
            self.output_tokens,
            len(self.problem) + 1,
            self._num_chunks,
        )
        in_flight = self._most_in_flight(ranges, share)
        low, high = 0.0, min(self._offered, model.most_requests_per_s())
        if high <= 0:
            return NOTHING
        best = model.latencies(high)
        rate = high
        if best is None or high * (best[0] + self.output_tokens * best[1]) > in_flight:
            best = None
            for _ in range(_RATE_BISECTIONS):
                rate = (low + high) / 2
                found = model.latencies(rate)
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

    def _node_models(
        self, ranges: Ranges, share: Mapping[int, float], link_models: Mapping[int, list[LinkModel]]
    ) -> list[NodeModel]:
        found = []
        for node in sorted(share, key=lambda node: (ranges[node][1], node)):
            start, end = ranges[node]
            kind = self.problem.kind_of[node]
            prompt_s = (end - start) * self._prefill_s[kind] + self.prompt_copy_s(start, end)
            found.append(
                NodeModel(
                    node,
                    share[node],
                    prompt_s,
                    end - start,
                    self._decode_s[kind],
                    link_models.get(node, []),
                )
            )
        return found

    def _link_models(
        self,
        share: Mapping[int, float],
        outgoing: Mapping[int, Sequence[tuple[int, float]]],
        bandwidth: Mapping[tuple[int, int], float] | None,
    ) -> dict[int, list[LinkModel]]:
        links, coordinator = self._links, len(self.problem)
        link_models: dict[int, list[LinkModel]] = {}
        for source, targets in outgoing.items():
            here = 1.0 if source == coordinator else share.get(source, 0.0)
            if here <= 0:
                continue
            link_models[source] = []
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
                if coordinator not in (source, target):
                    weight += self._activation_bytes
                link_models[source].append(
                    LinkModel(
                        target,
                        here * part,
                        part,
                        latency_s,
                        weight * self.prompt_tokens / at,
                        weight / at,
                    )
                )
        return link_models

    def _most_in_flight(self, ranges: Ranges, share: Mapping[int, float]) -> float:
        """Most requests that the KV caches hold, limited by layers and by single nodes."""
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


def _num_chunks(scenario: Scenario, prompt_tokens: float) -> float | None:
    """Chunks of a mean prompt that leave in a stream; None where prompts do not."""
    scheduler = scenario.scheduler
    factory = NODE_SCHEDULERS.get(node_scheduler_name(scenario))
    if not (scheduler.stream_chunks and composes_steps(factory)):
        return None
    tokens = scheduler.prefill_chunk_tokens
    if tokens is None or scheduler.step.max_prefill_tokens is None:
        return None
    if tokens == AUTO:
        tokens = FEWEST_CHUNK_TOKENS // 2 if mixes_batches(scenario) else FEWEST_CHUNK_TOKENS
    return max(prompt_tokens / tokens, 1.0)


def _offered_requests_per_s(scenario: Scenario, tokens_per_request: float) -> float:
    workload = scenario.workload
    if workload.mode == "online" and workload.mean_tokens_per_s is not None:
        return workload.mean_tokens_per_s / tokens_per_request
    rate = offered_requests_per_s(workload, scenario.run.duration_s)
    return inf if rate is None else rate

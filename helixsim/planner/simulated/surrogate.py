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

Where decodes go on at the nodes by themselves (``node: vllm``), they pass no link with a front end,
and a node that holds all layers goes on with its decodes as soon as it has run a prompt.

Where prefills leave as a stream of chunks and steps are limited (``scheduler.preset: tuned``),
decodes run between chunks: none stays behind a prompt on a node, and a prompt takes a chunk's time
on each node, and the slowest node's for each further chunk.

The estimate follows one prompt and one decode along all routes at once, node by node in the order
of layers. Its only state is the probability that the decode is behind a prompt. It computes means,
not distributions. Several front ends count as one, with the links of the nearest of them to each
node. The scenario's performance model gives the times of nodes (:mod:`.step_times`), and alike
nodes with the same layers are computed once (:mod:`.spread`). Compared with simulations of the
published clusters, its throughput is up to 15 % off, and it mostly ranks placements as the
simulation does; a search corrects it by what it has simulated (:mod:`.correction`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from helixsim.control.control_plane import node_scheduler_name, performance_model
from helixsim.control.node_schedulers import NODE_SCHEDULERS, decodes_loop
from helixsim.physics.performance_model import SendingCosts
from helixsim.placement.flow import Flow, used_links
from helixsim.placement.topology import Topology
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.simulated.alike import SIMILAR, alike_nodes
from helixsim.planner.simulated.blocking import BlockingModel, LinkModel, NodeModel
from helixsim.planner.simulated.demand import (
    num_chunks,
    offered_requests_per_s,
    prompt_spread,
)
from helixsim.planner.simulated.estimates import NOTHING, Estimate, Loaded, Traits
from helixsim.planner.simulated.link_models import LinkModels
from helixsim.planner.simulated.spread import ClassLinks, Group, groups_of, passed_on
from helixsim.planner.simulated.step_times import DecodeTimes, StepTimes
from helixsim.scenario.resolved import Scenario

_MOST_ROUNDS = 20
"""Most rounds of the search for the request rate; it usually ends after five."""
_PRECISION = 1e-3
"""Share of the requests in flight that the rate may fall short of: finer than the model's error."""
_OVERFLOW = 1.25
"""Requests in flight at which the KV cache of a single node binds, over its share of the flow: a
node whose cache is full is passed over in favour of its neighbours."""


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

    Attributes
    ----------
    alike
        Classes of nodes that the surrogate does not tell apart.
    site_of
        For every class, the number of its site: slow links lead from one site to another.
    uses_small_shares
        Whether half of an equal share of the flow is enough for a successor in any case.
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
        self._num_chunks = num_chunks(scenario, self.prompt_tokens)
        self._prompt_spread = prompt_spread(workload, scenario.run.duration_s)
        self._kv_share = scheduler.kv.high_water_mark
        if workload.mode == "offline":
            self._kv_share = min(self._kv_share, scheduler.feed_high_water_mark)
        self._node_kv_share = scheduler.kv.high_water_mark
        self._offered = offered_requests_per_s(scenario, self.prompt_tokens + self.output_tokens)
        self._run_s = scenario.run.duration_s
        self.times = StepTimes(scenario, problem, self.prompt_tokens, self.output_tokens)
        self.alike = alike_nodes(problem, SIMILAR)
        per_pass = (self.prompt_tokens + self.output_tokens) / (1 + self.output_tokens)
        performance = performance_model(scenario)
        self._links = LinkModels(
            ClassLinks(problem, self.alike, per_pass),
            problem.llm,
            performance.sending or SendingCosts(bytes_per_s=inf),
            self.prompt_tokens,
        )
        self.site_of = self._links.between.site_of
        self._stays = scheduler.policy in ("maxflow", "adaptive")
        self.uses_small_shares = performance.requests_wait
        factory = NODE_SCHEDULERS.get(node_scheduler_name(scenario))
        self._decodes_loop = decodes_loop(factory)

    # -- estimates ---------------------------------------------------------------------------

    def of_ranges(self, ranges: Ranges) -> Estimate:
        """Estimate a placement from its ranges alone, see :meth:`loaded`."""
        loaded = self.loaded(ranges)
        return NOTHING if loaded is None else self.estimate(loaded)

    def loaded(self, ranges: Ranges) -> Loaded | None:
        """The queueing model of a placement; None if no request can pass it.

        Nodes with the same layers are assumed to share requests by throughput, and requests to
        cross slow links only where they must, as under a balanced flow.
        """
        groups = groups_of(self.problem, self.alike, ranges)
        if not groups:
            return None
        num_layers = self.problem.num_layers
        host = Group(len(self.alike.members), 0, 0, 1, 1.0)
        ending: dict[int, list[int]] = {}
        starting: dict[int, list[int]] = {}
        for number, group in enumerate(groups):
            starting.setdefault(group.start, []).append(number)
            ending.setdefault(group.end, []).append(number)
        everything = [*groups, host]
        links: list[list[LinkModel]] = [[] for _ in everything]
        site_of = self.site_of
        crossings = 0.0
        for layer, targets in starting.items():
            sources = ending.get(layer, []) if layer else [len(groups)]
            amounts = (
                passed_on(
                    [everything[n] for n in sources],
                    [groups[n] for n in targets],
                    site_of,
                    stays=self._stays,
                )
                if layer
                else [[groups[n].whole for n in targets]]
            )
            for source, row in zip(sources, amounts, strict=True):
                if not self._links.connect(everything, links, source, targets, row):
                    return None
                crossings += sum(
                    amount
                    for target, amount in zip(targets, row, strict=True)
                    if layer and site_of[groups[source].kind] != site_of[groups[target].kind]
                )
        for source in ending[num_layers]:
            if not self._links.connect(
                everything, links, source, [len(groups)], [groups[source].whole]
            ):
                return None
        nodes = []
        for number, group in enumerate(groups):
            prompt_s, decodes, _ = self._times(group)
            nodes.append(
                NodeModel(number, group.share, prompt_s, decodes, links[number], group.count)
            )
        return self._loaded(nodes, links[-1], groups, ranges, crossings)

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
        coordinator = topology.coordinator
        outflow = [sum(carried[link.index] for link in out) for out in topology.outgoing]
        inflow = [sum(carried[link.index] for link in into) for into in topology.incoming]
        share = [0.0] * coordinator + [each.share for each in topology.front_ends]
        links: list[list[LinkModel]] = [[] for _ in share]
        crossings = 0.0
        numbers, class_of = self.problem.numbers, self.alike.class_of
        site = [self.site_of[class_of[numbers[node.name]]] for node in topology.nodes]
        order = sorted(range(coordinator), key=lambda n: topology.nodes[n].end_layer)
        for machine in (*topology.front_end_machines, *order):
            used = used_links(
                topology.outgoing[machine],
                carried,
                min_flow_share,
                half_of_equal_is_enough=self.uses_small_shares,
                replicas=topology.replicas if self.uses_small_shares else (),
            )
            total = sum(carried[link.index] for link in used)
            for link in used:
                if share[machine] <= 0 or total <= 0:
                    continue
                part = carried[link.index] / total
                bandwidth = min(
                    link.bandwidth_bytes_per_s,
                    topology.nic(machine).outbound_bytes_per_s
                    * (carried[link.index] / outflow[machine]),
                    topology.nic(link.target).inbound_bytes_per_s
                    * (carried[link.index] / inflow[link.target]),
                )
                links[machine].append(
                    self._links.link(
                        link.target,
                        share[machine] * part,
                        part,
                        link.latency_s,
                        1 / bandwidth,
                        to_host=max(machine, link.target) >= coordinator,
                    )
                )
                if link.target < coordinator:
                    share[link.target] += share[machine] * part
                    if machine < coordinator and site[machine] != site[link.target]:
                        crossings += share[machine] * part
        groups, nodes, ranges = [], [], {}
        for number in order:
            node = topology.nodes[number]
            ranges[numbers[node.name]] = (node.start_layer, node.end_layer)
            if share[number] <= 0:
                continue
            kind = class_of[numbers[node.name]]
            group = Group(kind, node.start_layer, node.end_layer, 1, share[number])
            prompt_s, decodes, _ = self._times(group)
            groups.append(group)
            nodes.append(NodeModel(number, group.share, prompt_s, decodes, links[number]))
        if not nodes:
            return NOTHING
        first_links = [link for home in topology.front_end_machines for link in links[home]]
        return self.estimate(self._loaded(nodes, first_links, groups, ranges, crossings))

    # -- the model ---------------------------------------------------------------------------

    def estimate(self, loaded: Loaded) -> Estimate:
        """The estimate at the highest rate of requests that the KV caches allow."""
        found = self._most_requests_per_s(loaded)
        if found is None:
            return NOTHING
        rate, prompt_s, decode_s = found
        return Estimate(
            rate * self.output_tokens,
            decode_s,
            prompt_s,
            rate * (prompt_s + self.output_tokens * decode_s),
            loaded.traits,
            0.0 if self._offered == inf else self._run_s * max(0.0, 1 - rate / self._offered),
        )

    def reaches(self, loaded: Loaded, decode_tokens_per_s: float) -> bool:
        """Whether a placement has at least this throughput: quicker than its estimate."""
        rate = decode_tokens_per_s / self.output_tokens
        return rate <= loaded.most_per_s and self._spare(loaded, rate)[0] >= 0

    def _spare(self, loaded: Loaded, rate: float) -> tuple[float, float, float]:
        """Requests in flight that still fit the KV caches at a rate; prompt and decode latency.

        -infinity if some node cannot process that many.
        """
        found = loaded.model.latencies(rate)
        if found is None:
            return -inf, inf, inf
        prompt_s, decode_s = found
        in_flight = rate * (prompt_s + self.output_tokens * decode_s)
        return loaded.traits.most_in_flight - in_flight, prompt_s, decode_s

    def _most_requests_per_s(self, loaded: Loaded) -> tuple[float, float, float] | None:
        """The highest rate at which requests in flight fit, with prompt and decode latency.

        Regula falsi with bisections where it is slow, as the Illinois method has it.
        """
        high = loaded.most_per_s
        if high <= 0:
            return None
        at_high, prompt_s, decode_s = self._spare(loaded, high)
        if at_high >= 0:
            return high, prompt_s, decode_s
        low, at_low = 0.0, loaded.traits.most_in_flight
        best = None
        enough = _PRECISION * loaded.traits.most_in_flight
        for _ in range(_MOST_ROUNDS):
            if at_high == -inf:
                rate = (low + high) / 2
            else:
                # Aims within the precision, so that the rate is feasible.
                aim = enough / 2
                rate = low + (high - low) * (at_low - aim) / (at_low - at_high)
            spare, prompt_s, decode_s = self._spare(loaded, rate)
            if spare >= 0:
                if best is not None and at_high != -inf:
                    at_high /= 2
                low, at_low, best = rate, spare, (rate, prompt_s, decode_s)
                if spare <= enough:
                    break
            else:
                high, at_high = rate, spare
        return best

    def _loaded(
        self,
        nodes: Sequence[NodeModel],
        first_links: list[LinkModel],
        groups: Sequence[Group],
        ranges: Ranges,
        crossings: float,
    ) -> Loaded:
        if self._decodes_loop:
            self._links.let_decodes_loop(nodes, groups, first_links, self.problem.num_layers)
        numbers = 1 + max(node.node for node in nodes)
        host = max(link.target for node in nodes for link in node.links)
        model = BlockingModel(
            nodes,
            first_links,
            self.output_tokens,
            max(numbers, host + 1),
            self._num_chunks,
            self._prompt_spread,
        )
        stages = sum(group.whole for group in groups)
        traits = Traits(stages, crossings, self._most_in_flight(groups, ranges))
        return Loaded(model, min(self._offered, model.most_requests_per_s()), traits)

    def _times(self, group: Group) -> tuple[float, DecodeTimes, float]:
        node = self.alike.members[group.kind][0]
        return self.times.of(self.problem.kind_of[node], group.start, group.end)

    def _most_in_flight(self, groups: Sequence[Group], ranges: Ranges) -> float:
        """Most requests that the KV caches hold, limited by layers and by single nodes."""
        change: dict[int, float] = {}
        kinds = self.problem.kind_of
        for node, (start, end) in ranges.items():
            kv = self.times.of(kinds[node], start, end)[2]
            change[start] = change.get(start, 0.0) + kv
            change[end] = change.get(end, 0.0) - kv
        room, least_room = 0.0, inf
        for layer in sorted(change)[:-1]:
            room += change[layer]
            least_room = min(least_room, room)
        least = inf
        for group in groups:
            kv = self._times(group)[2]
            least = min(least, _OVERFLOW * self._node_kv_share * kv / group.share)
        return min(self._kv_share * least_room, least) / self._kv_tokens

"""The most that any placement of a cluster serves in simulations, however requests are batched.

A maximum flow estimates machines at typical batches, so placements can serve more. This bound
takes the best batches that a node may ever run (:mod:`helixsim.planner.served`). What a node serves
with k layers takes the place of its throughput in the configuration program of
:mod:`helixsim.planner.max_flow.upper_bound`, which bounds every placement in which nodes start
where others end. With partial inference a node may serve some of its layers more than others, so
there only all work together, and all KV caches together, bound what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from helixsim.placement.placement import node_capacity
from helixsim.planner.max_flow.cover_program import NodeClass
from helixsim.planner.max_flow.region_cuts import (
    crossing_tokens_per_s,
    least_crossings,
    partitions,
)
from helixsim.planner.max_flow.upper_bound import Bound, cover_bound
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.served.least_ways import least_ways
from helixsim.planner.served.node_rates import NodeCosts, Room
from helixsim.planner.served.occupancy import Choice, most_requests, segments
from helixsim.planner.served.of_placement import ServedBound, served_bound_of_placement
from helixsim.planner.served.request_mix import RequestMix, request_mix
from helixsim.profiles.machine import Capacity, MachineProfile
from helixsim.scenario.resolved import Scenario

__all__ = ["ServedBound", "served_bound", "served_bound_of_placement"]


def served_bound(
    scenario: Scenario,
    problem: PlanningProblem,
    mix: RequestMix | None = None,
    *,
    max_stages: int | None = None,
    solver: str = "CBC",
    budget: SearchBudget = DEFAULT_BUDGET,
) -> ServedBound:
    """Bound what any placement of a cluster serves in the long run.

    The bound holds for requests in the workload's proportion on each node, as policies that do not
    sort requests by length give them. Aligned placements, in which nodes start where others end,
    are bounded more closely than placements with partial inference, if the problem allows these.

    Parameters
    ----------
    scenario
        Physics, scheduler, workload; its placement does not matter.
    problem
        Its planning problem.
    mix
        The requests as means; the workload's if not given.
    max_stages, solver, budget
        As of :func:`helixsim.planner.max_flow.upper_bound.upper_bound`.

    Raises
    ------
    UnboundedError
        If steps of its physics or node scheduler cannot be bounded.
    """
    costs = NodeCosts(scenario, mix or request_mix(scenario))
    costs.check()
    cluster = _ClusterRates(problem, costs)
    nodes = problem.usable_nodes()
    best = cluster.bound(nodes, max_stages, solver, budget)
    most = np.array([max(cluster.rates(node)) for node in range(len(problem))])
    tokens = costs.mix.tokens
    for groups in partitions(problem):
        crossings = max(least_crossings(problem, groups), 1)
        value = crossing_tokens_per_s(problem, groups, most * tokens) / tokens / crossings
        limit = "links between regions"
        for group in groups:
            if value >= best.tokens_per_s:
                break
            inside = [node for node in group if node in set(nodes)]
            if sum(map(problem.max_layers, inside)) >= problem.num_layers:
                value += cluster.bound(inside, max_stages, solver, budget).tokens_per_s
        if value < best.tokens_per_s:
            best = Bound(value, limit)
    return ServedBound(best.tokens_per_s, costs.mix.decodes, (best.limit,))


@dataclass
class _ClusterRates:
    """Requests per second that each node serves at most, by the layers that it holds."""

    problem: PlanningProblem
    costs: NodeCosts

    def __post_init__(self) -> None:
        self._profiles = self.costs.scenario.profiles()
        self._known: dict[tuple[int, float], tuple[float, ...]] = {}
        self._ways = least_ways(self.problem)
        self._way_s = self._ways.decode_s
        if not self.costs.decodes_loop:  # else tokens go straight from the last node to the first
            self._way_s += self._ways.ends_s
        self._decode_round_s, self._prompt_round_s = self._least_rounds()
        self._caps = [inf] * len(self.problem)
        caps = self._network_caps()
        self._caps = [inf if cap >= max(self.rates(node)) else cap for node, cap in enumerate(caps)]

    def bound(
        self, nodes: Sequence[int], max_stages: int | None, solver: str, budget: SearchBudget
    ) -> Bound:
        """The bound for placements on some of the nodes, as requests per second."""
        problem = self.problem
        counts: dict[tuple[str, tuple[float, ...]], int] = {}
        for node in nodes:
            key = (problem.kind(node).machine_type, self.rates(node))
            counts[key] = counts.get(key, 0) + 1
        classes = [NodeClass(kind, rates, count) for (kind, rates), count in counts.items()]
        work = sum(
            each.count * max(k * rate for k, rate in enumerate(each.tokens_per_s))
            for each in classes
        )
        best = Bound(work / problem.num_layers * (1 + 1e-9), "machines")
        held = self._kv_bound(nodes, best.tokens_per_s) * (1 + 1e-9)
        if held < best.tokens_per_s:
            best = Bound(held, "KV cache")
        if problem.partial_inference or len(classes) > budget.bound_classes:
            return best
        return cover_bound(
            classes,
            problem.num_layers,
            best,
            max_stages=max_stages,
            solver=solver,
            budget=budget,
        )

    def _kv_bound(self, nodes: Sequence[int], most: float) -> float:
        """Requests per second for which all KV caches together have room, at most `most`."""
        mix = self.costs.mix
        counts: dict[tuple[int, float], int] = {}
        example: dict[tuple[int, float], int] = {}
        for node in nodes:
            key = (self.problem.kind_of[node], self._caps[node])
            counts[key] = counts.get(key, 0) + 1
            example.setdefault(key, node)
        choices = {key: self._choices(node) for key, node in example.items()}
        number = min(map(len, choices.values()), default=0)
        for index in range(number):
            room = self._rooms(nodes[0], 1)[index]
            away = mix.decodes * self._way_s * room.per_decode
            away += mix.prompt_tokens * self._prompt_round_s * room.per_prompt_token
            alike = [(counts[key], choices[key][index]) for key in counts]
            each = away / room.per_decode
            most = most_requests(alike, self.problem.num_layers, each, most)
        return most

    def _choices(self, node: int) -> list[list[Choice]]:
        """For each limit on what requests hold, a node's choices; none without decodes."""
        machine = self.problem.cluster.nodes[node]
        profile = self._profiles[machine.machine_type]
        found: list[list[Choice]] = []
        rates = self.rates(node)
        for k in range(1, self.problem.max_layers(node) + 1):
            most = k * rates[k]
            curve = self.costs.tangents(profile, node_capacity(machine, profile, k), most)
            stretches = tuple(segments(curve, most))
            for index, room in enumerate(self._rooms(node, k)):
                if not room.per_decode:
                    return []
                if k == 1:
                    found.append([Choice(0, 0.0, 0.0, ())])
                held = room.token_layers / self.problem.num_layers / room.per_decode
                found[index].append(Choice(k, held, most, stretches))
        return found

    def _rooms(self, node: int, num_layers: int) -> list[Room]:
        machine = self.problem.cluster.nodes[node]
        profile = self._profiles[machine.machine_type]
        return self.costs.rooms(node_capacity(machine, profile, num_layers), num_layers)

    def rates(self, node: int) -> tuple[float, ...]:
        """Requests per second of a node with k layers, for k = 0 to its most.

        With partial inference: of layers in any of its layers, over k.
        """
        cap = self._caps[node]
        key = (self.problem.kind_of[node], cap)
        if key not in self._known:
            most = self.problem.max_layers(node)
            self._known[key] = (0.0, *(min(self._rate(node, k), cap) for k in range(1, most + 1)))
        return self._known[key]

    def _rate(self, node: int, num_layers: int) -> float:
        machine = self.problem.cluster.nodes[node]
        profile = self._profiles[machine.machine_type]
        capacity = node_capacity(machine, profile, num_layers)
        fewest = 1 if self.problem.partial_inference else num_layers
        rate = 1 / (num_layers * self.costs.layer_s(profile, capacity, fewest))
        for room in self._rooms(node, num_layers):
            rate = min(rate, self._kv_rate(room, num_layers))
        return rate

    def _kv_rate(self, room: Room, num_layers: int) -> float:
        mix = self.costs.mix
        held = (
            mix.decodes * room.per_decode * self._decode_round_s
            + mix.prompt_tokens * room.per_prompt_token * self._prompt_round_s
        )
        return room.token_layers / (num_layers * held) if held else inf

    def _least_rounds(self) -> tuple[float, float]:
        """The least time of a decode through all layers, and of a prompt token."""
        problem, costs = self.problem, self.costs
        decode_s = prompt_s = inf
        for profile, capacity in self._machines():
            decode_s = min(decode_s, costs.costs(profile, capacity).least_decode_s)
            prompt_s = min(prompt_s, costs.prompt_token_s(profile, capacity))
        prompt_s = problem.num_layers * prompt_s + self._ways.prompt_token_s
        if costs.scenario.scheduler.stream_chunks:
            prompt_s = 0.0
        return problem.num_layers * decode_s + self._way_s, prompt_s

    def _machines(self) -> list[tuple[MachineProfile, Capacity]]:
        found = []
        for node, machine in enumerate(self.problem.cluster):
            profile = self._profiles[machine.machine_type]
            for k in range(1, self.problem.max_layers(node) + 1):
                pair = (profile, node_capacity(machine, profile, k))
                if pair not in found:
                    found.append(pair)
        return found

    def _network_caps(self) -> list[float]:
        """Requests per second that each node's links and network interface carry."""
        problem, mix = self.problem, self.costs.mix
        links, last = problem.link_tokens_per_s, len(problem)
        from_coordinator = mix.prompt_tokens if self.costs.decodes_loop else mix.tokens
        found = []
        for node in range(last):
            into = max(
                _ratio(links[last, node], from_coordinator),
                _ratio(links[:last, node].sum(), mix.tokens),
            )
            out = max(
                _ratio(links[node, last], mix.decodes + 1),
                _ratio(links[node, :last].sum(), mix.tokens),
            )
            found.append(float(min(into, out)))
        return found


def _ratio(tokens_per_s: float, tokens: float) -> float:
    return tokens_per_s / tokens if tokens else (inf if tokens_per_s else 0.0)

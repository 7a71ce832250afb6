"""Simulated annealing over ordered lists of stages, for links that bind.

At a target of F tokens per second, a stage (a set of nodes) holds the most layers with which it
carries F. The annealing decides which nodes form a stage and in which order the stages stand, so
that the links from each stage to the next carry F too. The order determines the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
import numpy.typing as npt

from helixsim.planner.max_flow.stage_moves import random_move
from helixsim.planner.max_flow.stage_patterns import Chain, common_layers
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import NEGLIGIBLE
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget

Stages = tuple[tuple[int, ...], ...]
"""Numbers of the nodes of each stage, in ascending order."""


@dataclass(frozen=True, slots=True, eq=False)
class _Stage:
    """A set of n nodes, with the quantities that do not depend on the stages around it.

    Attributes
    ----------
    members
        Shape (n,): numbers of the nodes.
    num_layers
        The most layers with which the stage carries the target.
    carries
        Shape (n,): tokens per second that each node carries.
    rest
        Shape (2^n,): for every subset of the nodes, what the other nodes carry.
    reach
        Shape (2^n, nodes of the cluster + 1): what the links from each subset to each machine
        carry.
    entry_cost, exit_cost
        Share of the target that the links with the coordinator do not carry.
    after
        Nodes of a following stage -> share of the target that does not reach it.
    """

    members: npt.NDArray[np.intp]
    num_layers: int
    carries: npt.NDArray[np.float64]
    rest: npt.NDArray[np.float64]
    reach: npt.NDArray[np.float64]
    entry_cost: float
    exit_cost: float
    after: dict[tuple[int, ...], float]


class StageCosts:
    """Costs of lists of stages: what they lack to carry a target.

    Costs of stages and of pairs of stages are remembered.

    Parameters
    ----------
    problem
        Kinds and links of the nodes.
    target
        Flow to reach, in tokens per second.
    max_stages
        Most stages; each further one costs extra.
    budget
        Costs of what is lacking, and how many costs are remembered.
    """

    def __init__(
        self,
        problem: PlanningProblem,
        target: float,
        max_stages: int | None = None,
        budget: SearchBudget = DEFAULT_BUDGET,
    ) -> None:
        self.problem = problem
        self.target = target
        self.budget = budget
        self.max_stages = len(problem) if max_stages is None else max_stages
        self.nic = np.minimum(problem.inbound_tokens_per_s, problem.outbound_tokens_per_s)
        self._stages: dict[tuple[int, ...], _Stage] = {}
        self._num_remembered = 0

    def _stage(self, nodes: tuple[int, ...]) -> _Stage:
        found = self._stages.get(nodes)
        if found is None:
            found = self._stages[nodes] = self._make(nodes)
            self._num_remembered += 1
        return found

    def _make(self, nodes: tuple[int, ...]) -> _Stage:
        problem, coordinator = self.problem, len(self.problem)
        layers, _ = common_layers([problem.kind(node) for node in nodes], self.target)
        rates = np.array([problem.tokens_per_s(node, max(layers, 1)) for node in nodes])
        members = np.array(nodes)
        carries = np.minimum(rates, self.nic[members])
        subsets = _subsets(len(nodes))
        links = problem.link_tokens_per_s
        entry = np.minimum(links[coordinator, members], rates).sum()
        leave = np.minimum(links[members, coordinator], rates).sum()
        return _Stage(
            members=members,
            num_layers=layers,
            carries=carries,
            rest=(1 - subsets) @ carries,
            reach=subsets @ np.minimum(links[members], self.target),
            entry_cost=max(0.0, 1 - float(entry) / self.target),
            exit_cost=max(0.0, 1 - float(leave) / self.target),
            after={},
        )

    def _between(self, one: _Stage, other: _Stage) -> float:
        """Share of the target that the minimum cut between two stages does not carry."""
        arriving = np.minimum(one.reach[:, other.members], other.carries).sum(axis=1)
        cut = float((one.rest + arriving).min())
        return max(0.0, 1 - cut / self.target)

    def cost(self, stages: Sequence[tuple[int, ...]]) -> float:
        """0 for a list of stages that may carry the target; it rises with what is lacking."""
        budget = self.budget
        if self._num_remembered > budget.anneal_remembered:
            self._stages.clear()
            self._num_remembered = 0
        known = self._stages
        layers, total = 0, 0.0
        last: _Stage | None = None
        for nodes in stages:
            stage = known.get(nodes) or self._stage(nodes)
            layers += stage.num_layers
            if last is None:
                total += stage.entry_cost
            elif (lacking := last.after.get(nodes)) is not None:
                total += lacking
            else:
                lacking = last.after[nodes] = self._between(last, stage)
                self._num_remembered += 1
                total += lacking
            if not stage.num_layers:
                total += budget.anneal_empty_cost
            last = stage
        if last is not None:
            total += last.exit_cost
        total += budget.anneal_layer_cost * max(0, self.problem.num_layers - layers)
        return total + budget.anneal_stage_cost * max(0, len(stages) - self.max_stages)

    def ranges(self, stages: Sequence[tuple[int, ...]]) -> dict[int, tuple[int, int]]:
        """Layers of every node; surplus layers are taken from the slowest stages."""
        layers = [self._stage(nodes).num_layers for nodes in stages]
        rates = [self._rate(stage, k) for stage, k in zip(stages, layers, strict=True)]
        for _ in range(sum(layers) - self.problem.num_layers):
            slowest = min(range(len(stages)), key=rates.__getitem__)
            layers[slowest] -= 1
            rates[slowest] = self._rate(stages[slowest], layers[slowest])
        found: dict[int, tuple[int, int]] = {}
        start = 0
        for nodes, k in zip(stages, layers, strict=True):
            if k:
                found |= dict.fromkeys(nodes, (start, start + k))
            start += k
        return found

    def _rate(self, nodes: tuple[int, ...], num_layers: int) -> float:
        if not num_layers:
            return math.inf
        return sum(self.problem.tokens_per_s(node, num_layers) for node in nodes)


@cache
def _subsets(size: int) -> npt.NDArray[np.float64]:
    """Shape (2^size, size): every subset of `size` elements, as a row of 0 and 1."""
    numbers = np.arange(2**size)[:, np.newaxis]
    return (numbers >> np.arange(size) & 1).astype(np.float64)


def stages_of(problem: PlanningProblem, chain: Chain, rng: Random) -> Stages:
    """Assign random nodes of the right kinds to the patterns of a chain, in random order."""
    waiting: list[list[int]] = [[] for _ in problem.kinds]
    for node, kind in enumerate(problem.kind_of):
        waiting[kind].append(node)
    for nodes in waiting:
        rng.shuffle(nodes)
    patterns = list(chain.patterns)
    rng.shuffle(patterns)
    return tuple(
        tuple(sorted(waiting[kind].pop() for kind, n in enumerate(p.counts) for _ in range(n)))
        for p in patterns
    )


def anneal(
    costs: StageCosts,
    start: Stages,
    iterations: int,
    rng: Random,
    offer: Callable[[dict[int, tuple[int, int]]], float],
    stop: Callable[[], bool],
) -> tuple[Stages, bool]:
    """Search for stages that carry the target.

    Parameters
    ----------
    costs
        Cost of a list of stages.
    start
        Initial stages; nodes in none of them are idle.
    iterations
        Number of moves; the search ends early when the target is reached.
    rng
        Source of random numbers.
    offer
        Called with the ranges of a placement that may carry the target; returns its maximum flow
        in tokens per second.
    stop
        Called regularly; true ends the search.

    Returns
    -------
    tuple
        The best stages found, and whether they carry the target.
    """
    budget = costs.budget
    exact_costs = _ExactCosts(costs, offer)
    stages = list(start)
    busy = {node for nodes in start for node in nodes}
    idle = [node for node in range(len(costs.problem)) if node not in busy]
    cost = exact_costs.cost(stages)
    best, best_cost = start, cost
    cooling = (budget.anneal_cold / budget.anneal_hot) ** (1 / max(1, iterations))
    temperature = budget.anneal_hot
    for step in range(iterations):
        if exact_costs.reached is not None:
            return exact_costs.reached, True
        if step % budget.anneal_check_every == 0 and stop():
            break
        temperature *= cooling
        changed = random_move(stages, idle, costs.problem.kind_of, rng)
        if changed is None:
            continue
        new_cost = exact_costs.cost(changed[0])
        if new_cost > cost and rng.random() >= math.exp((cost - new_cost) / temperature):
            continue
        (stages, idle), cost = changed, new_cost
        if cost < best_cost:
            best, best_cost = tuple(stages), cost
    if best_cost < budget.anneal_layer_cost:  # no layer is missing
        offer(costs.ranges(best))
    return best, False


class _ExactCosts:
    """Adds the exact lack of flow to the cost of states that seem to carry the target.

    The links may carry the target from each stage to the next but not through all stages, if flow
    arrives at nodes whose outgoing links are too slow. Every state is evaluated once.
    """

    def __init__(
        self, costs: StageCosts, offer: Callable[[dict[int, tuple[int, int]]], float]
    ) -> None:
        self.costs = costs
        self.offer = offer
        self.reached: Stages | None = None
        self._lacking: dict[Stages, float] = {}

    def cost(self, stages: list[tuple[int, ...]]) -> float:
        cost = self.costs.cost(stages)
        if cost > self.costs.budget.anneal_close:
            return cost
        key = tuple(stages)
        if key not in self._lacking:
            share = self.offer(self.costs.ranges(stages)) / self.costs.target
            if share >= 1 - NEGLIGIBLE:
                self.reached = key
            self._lacking[key] = max(0.0, 1 - share)
        return cost + self._lacking[key]

"""Simulated annealing over an ordered list of stages, for links that bind.

At a target of F tokens per second, a stage (a set of nodes) holds as many layers as it can and
still carry F. What is left to decide is which nodes stand together and in which order, so that
the links from each stage to the next carry F as well. Layer positions follow from the order.
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

_HOT, _COLD = 0.06, 0.01
_LAYER_COST, _STAGE_COST, _EMPTY_COST = 0.25, 0.25, 0.3
_CLOSE = 0.02
"""States that cost no more are worth an exact maximum flow."""
_MAX_REMEMBERED = 300_000
_CHECK_STOP_EVERY = 64

Stages = tuple[tuple[int, ...], ...]
"""Numbers of nodes, stage by stage; those of a stage in ascending order."""


@dataclass(frozen=True, slots=True, eq=False)
class _Stage:
    """A set of nodes, with everything about it that does not depend on its neighbours.

    `rest[x]` is what the nodes outside of subset x carry, `reach[x]` what the links from subset
    x to every machine carry.
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
    """What lists of stages lack to carry a target; remembers stages and pairs of stages.

    Parameters
    ----------
    problem
        Kinds and links of the nodes.
    target
        Tokens per second.
    max_stages
        Most stages; more cost.
    """

    def __init__(
        self, problem: PlanningProblem, target: float, max_stages: int | None = None
    ) -> None:
        self.problem = problem
        self.target = target
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
        problem, home = self.problem, len(self.problem)
        layers, _ = common_layers([problem.kind(node) for node in nodes], self.target)
        rates = np.array([problem.tokens_per_s(node, max(layers, 1)) for node in nodes])
        members = np.array(nodes)
        carries = np.minimum(rates, self.nic[members])
        subsets = _subsets(len(nodes))
        links = problem.link_tokens_per_s
        entry = np.minimum(links[home, members], rates).sum()
        leave = np.minimum(links[members, home], rates).sum()
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
        """Share of the target that does not get from a stage to the next."""
        arriving = np.minimum(one.reach[:, other.members], other.carries).sum(axis=1)
        cut = float((one.rest + arriving).min())
        return max(0.0, 1 - cut / self.target)

    def cost(self, stages: Sequence[tuple[int, ...]]) -> float:
        """0 for a list of stages that may carry the target, more the more it lacks."""
        if self._num_remembered > _MAX_REMEMBERED:
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
                total += _EMPTY_COST
            last = stage
        if last is not None:
            total += last.exit_cost
        total += _LAYER_COST * max(0, self.problem.num_layers - layers)
        return total + _STAGE_COST * max(0, len(stages) - self.max_stages)

    def ranges(self, stages: Sequence[tuple[int, ...]]) -> dict[int, tuple[int, int]]:
        """Layers of every node; what is more than the LLM has comes off the slowest stages."""
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
    """All subsets of so many things, as rows of 0 and 1."""
    numbers = np.arange(2**size)[:, np.newaxis]
    return (numbers >> np.arange(size) & 1).astype(np.float64)


def stages_of(problem: PlanningProblem, chain: Chain, rng: Random) -> Stages:
    """Give the patterns of a chain nodes and an order at random."""
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
    """Look for stages that carry the target.

    Parameters
    ----------
    costs
        Says what is lacking.
    start
        Stages to begin with; nodes that are in none are idle.
    iterations
        Moves to try; it ends early once the target is reached.
    rng
        All randomness.
    offer
        Given a placement that may carry the target, says what it carries.
    stop
        Asked often.

    Returns
    -------
    tuple
        The best stages seen, and whether they carry the target.
    """
    judge = _Judge(costs, offer)
    stages = list(start)
    busy = {node for nodes in start for node in nodes}
    idle = [node for node in range(len(costs.problem)) if node not in busy]
    cost = judge.cost(stages)
    best, best_cost = start, cost
    cooling = (_COLD / _HOT) ** (1 / max(1, iterations))
    heat = _HOT
    for step in range(iterations):
        if judge.reached is not None:
            return judge.reached, True
        if step % _CHECK_STOP_EVERY == 0 and stop():
            break
        heat *= cooling
        changed = random_move(stages, idle, costs.problem.kind_of, rng)
        if changed is None:
            continue
        new_cost = judge.cost(changed[0])
        if new_cost > cost and rng.random() >= math.exp((cost - new_cost) / heat):
            continue
        (stages, idle), cost = changed, new_cost
        if cost < best_cost:
            best, best_cost = tuple(stages), cost
    if best_cost < _LAYER_COST:
        offer(costs.ranges(best))
    return best, False


class _Judge:
    """Asks for the true flow of states that seem to carry the target, once for each.

    Links may carry the target from each stage to the next and still not through all of them, if
    it arrives at nodes that it cannot leave. What is then lacking costs as well.
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
        if cost > _CLOSE:
            return cost
        key = tuple(stages)
        if key not in self._lacking:
            share = self.offer(self.costs.ranges(stages)) / self.costs.target
            if share >= 1 - NEGLIGIBLE:
                self.reached = key
            self._lacking[key] = max(0.0, 1 - share)
        return cost + self._lacking[key]

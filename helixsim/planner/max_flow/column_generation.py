"""Chains of series-parallel blocks, found by column generation, for links that never bind.

A block spans some layers and carries a target of F tokens per second from its first to its last
layer. It consists of nodes in parallel that each hold all of its layers, and optionally, parallel
to them, a chain of two smaller blocks. Patterns are the blocks without such a chain. The chain
lets a large machine with many layers stand parallel to two small machines with few layers each.

Column generation finds the useful blocks: a linear program sets prices on the nodes of each kind
such that no known block has more layers than it costs. Dynamic programming then finds the
cheapest block of every length under these prices, and the blocks that cost less than their number
of layers join the known ones. An integer program chooses among the known blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from helixsim.planner.max_flow.dinic import flow_value
from helixsim.planner.max_flow.stage_patterns import patterns_for
from helixsim.planner.problem import NodeKind, PlanningProblem, Ranges
from helixsim.planner.search import FlowSearch
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.solver import MAXIMIZE, MINIMIZE, add_silencer, new_model

_LEAST_PRICE = 1e-6
"""Least price of a node: with a price of zero, blocks would take more nodes than they need."""

Piece = tuple[int, int, int]
"""(kind, offset, length): a node's kind, its first layer within the block, its number of layers."""


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes that together carry the target through `num_layers` layers."""

    pieces: tuple[Piece, ...]
    num_layers: int

    def counts(self, num_kinds: int) -> tuple[int, ...]:
        """Number of nodes of each kind."""
        kinds = [kind for kind, _, _ in self.pieces]
        return tuple(kinds.count(kind) for kind in range(num_kinds))


def pattern_blocks(kinds: Sequence[NodeKind], target: float) -> list[Block]:
    """The blocks without a chain of smaller blocks: the patterns that carry the target."""
    return [
        Block(
            tuple((kind, 0, p.num_layers) for kind, n in enumerate(p.counts) for _ in range(n)),
            p.num_layers,
        )
        for p in patterns_for(kinds, target)
    ]


class BlockPricing:
    """Finds the cheapest block of every length under prices, by dynamic programming.

    Throughputs are rounded down to 1/`units` of the target, so that every block carries it.

    Parameters
    ----------
    kinds
        The kinds of nodes.
    target
        Tokens per second that a block carries.
    longest
        Most layers of a block.
    units
        Parts of the target.
    """

    def __init__(
        self,
        kinds: Sequence[NodeKind],
        target: float,
        longest: int,
        units: int = DEFAULT_BUDGET.block_units,
    ) -> None:
        self.units = units
        self.weights = [
            [min(units, int(rate / target * units)) for rate in kind.tokens_per_s] for kind in kinds
        ]
        self.longest = longest
        self._best: list[npt.NDArray[np.float64]] = []
        self._prices: list[float] = []

    def cheapest(self, prices: Sequence[float]) -> list[tuple[float, Block]]:
        """(cost, block) for every length of which a block exists.

        Parameters
        ----------
        prices
            Price of one node of each kind.
        """
        self._prices = list(prices)
        nothing = np.full(self.units + 1, inf)
        nothing[0] = 0.0
        self._best = [nothing]
        for length in range(1, self.longest + 1):
            self._best.append(self._fill(length))
        return [
            (
                float(self._best[length][self.units]),
                Block(tuple(self._trace(length, self.units)), length),
            )
            for length in range(1, self.longest + 1)
            if self._best[length][self.units] < inf
        ]

    def _fill(self, length: int) -> npt.NDArray[np.float64]:
        """Shape (units + 1,): least cost of a block of this length that carries w units."""
        best = self._best[0].copy()
        for first in range(1, length // 2 + 1):
            np.minimum(best, self._best[first] + self._best[length - first], out=best)
        for kind, weights in enumerate(self.weights):
            weight = weights[length] if length < len(weights) else 0
            copies = 1
            while weight:
                shift = min(copies * weight, self.units)
                cost = copies * self._prices[kind]
                more = best[: self.units + 1 - shift] + cost
                np.minimum(best[1:shift], cost, out=best[1:shift])
                np.minimum(best[shift:], more, out=best[shift:])
                if shift == self.units:
                    break
                copies *= 2
        return best

    def _trace(self, length: int, units: int, offset: int = 0) -> list[Piece]:
        """The pieces of the cheapest block of this length that carries `units`."""
        pieces: list[Piece] = []
        while units > 0:
            cost, kind = min(
                (
                    (self._prices[kind] + self._best[length][max(0, units - weights[length])], kind)
                    for kind, weights in enumerate(self.weights)
                    if length < len(weights) and weights[length]
                ),
                default=(inf, -1),
            )
            chain, first = min(
                (
                    (self._best[first][units] + self._best[length - first][units], first)
                    for first in range(1, length // 2 + 1)
                ),
                default=(inf, 0),
            )
            if chain < cost - 1e-12:
                pieces += self._trace(first, units, offset)
                pieces += self._trace(length - first, units, offset + first)
                break
            pieces.append((kind, offset, length))
            units -= self.weights[kind][length]
        return pieces


def generate_blocks(
    kinds: Sequence[NodeKind],
    target: float,
    num_layers: int,
    *,
    longest: int,
    solver: str = "CBC",
    budget: SearchBudget = DEFAULT_BUDGET,
    stop: Callable[[], bool] = lambda: False,
) -> list[Block] | None:
    """Generate blocks for a target.

    Parameters
    ----------
    kinds
        The kinds of nodes, with their counts.
    target
        Tokens per second that a block carries.
    num_layers
        Layers that all blocks together must have.
    longest
        Most layers of a block.
    stop
        Called in every round; true ends the generation.

    Returns
    -------
    list or None
        None if it is proved that no choice of blocks has `num_layers`.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    known = dict.fromkeys(pattern_blocks(kinds, target))
    pricing = BlockPricing(kinds, target, longest, budget.block_units)
    model = new_model(MINIMIZE, solver)
    price = [model.add_var(lb=0, obj=kind.count) for kind in kinds]
    add_silencer(model)

    def add(block: Block) -> None:
        known[block] = None
        counts = block.counts(len(kinds))
        model.add_constr(
            sum(n * p for n, p in zip(counts, price, strict=True) if n) >= block.num_layers
        )

    for block in list(known):
        add(block)
    prices = [max(k * rate for k, rate in enumerate(kind.tokens_per_s)) / target for kind in kinds]
    for _ in range(budget.block_rounds):
        if known:
            model.optimize()
            if stop() or not model.num_solutions:
                break
            prices = [max(_LEAST_PRICE, float(p.x)) for p in price]
        offers = pricing.cheapest(prices)
        value = sum(p * kind.count for p, kind in zip(prices, kinds, strict=True))
        shares = [cost / block.num_layers for cost, block in offers]
        if not shares or value / min(shares) < num_layers:
            return None
        new = [block for cost, block in offers if cost < block.num_layers * (1 - 1e-6)]
        if all(block in known for block in new):
            break
        for block in new:
            if block not in known:
                add(block)
    return list(known)


def choose_blocks(
    kinds: Sequence[NodeKind],
    blocks: Sequence[Block],
    *,
    solver: str = "CBC",
    seed: int = 0,
    max_blocks: int | None = None,
    max_seconds: float = inf,
    budget: SearchBudget = DEFAULT_BUDGET,
) -> list[Block]:
    """Choose the blocks with the most layers in total, each as often as it is used.

    Parameters
    ----------
    max_blocks
        Most blocks in total.
    max_seconds
        Time limit of the solver, which also stops after a number of branch-and-bound nodes.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    model = new_model(MAXIMIZE, solver, seed)
    used = [model.add_var(var_type="I", lb=0, obj=block.num_layers) for block in blocks]
    counts = [block.counts(len(kinds)) for block in blocks]
    for index, kind in enumerate(kinds):
        terms = [n[index] * x for n, x in zip(counts, used, strict=True) if n[index]]
        if terms:
            model += sum(terms[1:], start=terms[0]) <= kind.count
    if max_blocks is not None:
        model += sum(used[1:], start=1 * used[0]) <= max_blocks
    max_nodes = budget.block_solver_nodes
    model.optimize(max_nodes=max_nodes, max_seconds=max(0.1, min(max_seconds, 1e6)))
    if not model.num_solutions:
        return []
    return [b for b, x in zip(blocks, used, strict=True) for _ in range(round(float(x.x)))]


# -- chains of blocks ------------------------------------------------------------------------------


def combine_blocks(search: FlowSearch) -> None:
    """Search for chains of blocks with increasing flow, by bisection, and report them.

    Blocks put no limit on the length of routes, so this does not apply where stages are limited.
    """
    low, high = max(search.value, search.bound / 2), search.bound
    precision = 1 + search.budget.block_precision
    while high > low * precision and not search.out_of_time and not search.optimal:
        target = (low + high) / 2
        ranges = chain_of_blocks(search, target)
        if ranges is None:
            high = target
        else:
            value = flow_value(search.problem, ranges)
            search.offer(ranges, value)
            low = max(target, value)


def chain_of_blocks(search: FlowSearch, target: float) -> Ranges | None:
    """Build a chain of blocks that carries a target; None if none is found."""
    problem, layers = search.problem, search.problem.num_layers
    blocks = generate_blocks(
        problem.kinds,
        target,
        layers,
        longest=min(search.budget.longest_block, layers),
        solver=search.solver,
        budget=search.budget,
        stop=lambda: search.out_of_time,
    )
    if not blocks:
        return None
    chosen = choose_blocks(
        problem.kinds,
        blocks,
        solver=search.solver,
        seed=search.seed,
        max_seconds=search.left_s,
        budget=search.budget,
    )
    if sum(block.num_layers for block in chosen) < layers:
        return None
    return assign(problem, chosen)


def assign(problem: PlanningProblem, blocks: Sequence[Block], start: int = 0) -> Ranges:
    """Assign a node to every piece of every block; the first block starts at layer `start`.

    Layers beyond the last one of the LLM are cut off.
    """
    waiting: list[list[int]] = [[] for _ in problem.kinds]
    for node in reversed(range(len(problem))):
        waiting[problem.kind_of[node]].append(node)
    ranges: dict[int, tuple[int, int]] = {}
    for block in blocks:
        for kind, offset, length in block.pieces:
            first = start + offset
            if first < problem.num_layers:
                last = min(first + length, problem.num_layers)
                ranges[waiting[kind].pop()] = (first, last)
        start += block.num_layers
    return ranges

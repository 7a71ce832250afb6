"""Series-parallel blocks: what to build routes of where links do not bind.

A block spans some layers and carries a target of F tokens per second from its first to its
last. It is nodes side by side, each with all of its layers, beside one chain of two smaller
blocks, if any. Patterns are the blocks without chains; a chain inside lets a large machine with
many layers stand beside two small ones with few each.

Which blocks are worth it is found by column generation: prices on the nodes of each kind such
that no known block gives more layers than it costs, then the cheapest block of every length
under these prices, which becomes known where it costs less than its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from helixsim.planner.max_flow.stage_patterns import patterns_for
from helixsim.planner.problem import NodeKind
from helixsim.planner.solver import MAXIMIZE, MINIMIZE, add_silencer, new_model

_UNITS = 4000
"""Parts of the target that throughputs are rounded down to, so that blocks do carry it."""
_MAX_ROUNDS = 25
_MAX_NODES = 400
"""Of branch and bound; a count, so that results repeat."""
_LEAST_PRICE = 1e-6
"""Nothing is for free, or blocks would take more nodes than they need."""

Piece = tuple[int, int, int]
"""Kind of a node, the first layer that it holds in its block, and how many it holds."""


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes that carry the target together through `num_layers` layers."""

    pieces: tuple[Piece, ...]
    num_layers: int

    def counts(self, num_kinds: int) -> tuple[int, ...]:
        """How many nodes of each kind it takes."""
        kinds = [kind for kind, _, _ in self.pieces]
        return tuple(kinds.count(kind) for kind in range(num_kinds))


def pattern_blocks(kinds: Sequence[NodeKind], target: float) -> list[Block]:
    """The blocks without chains."""
    return [
        Block(
            tuple((kind, 0, p.num_layers) for kind, n in enumerate(p.counts) for _ in range(n)),
            p.num_layers,
        )
        for p in patterns_for(kinds, target)
    ]


class BlockPricing:
    """Finds the cheapest block of every length under prices, by dynamic programming."""

    def __init__(self, kinds: Sequence[NodeKind], target: float, longest: int) -> None:
        self.weights = [
            [min(_UNITS, int(rate / target * _UNITS)) for rate in kind.tokens_per_s]
            for kind in kinds
        ]
        self.longest = longest
        self._best: list[npt.NDArray[np.float64]] = []
        self._prices: list[float] = []

    def cheapest(self, prices: Sequence[float]) -> list[tuple[float, Block]]:
        """Cost and block for every length that there is a block of."""
        self._prices = list(prices)
        nothing = np.full(_UNITS + 1, inf)
        nothing[0] = 0.0
        self._best = [nothing]
        for length in range(1, self.longest + 1):
            self._best.append(self._fill(length))
        return [
            (float(self._best[length][_UNITS]), Block(tuple(self._trace(length)), length))
            for length in range(1, self.longest + 1)
            if self._best[length][_UNITS] < inf
        ]

    def _fill(self, length: int) -> npt.NDArray[np.float64]:
        """Least cost of a block of a length that carries w units, for every w."""
        best = self._best[0].copy()
        for first in range(1, length // 2 + 1):
            np.minimum(best, self._best[first] + self._best[length - first], out=best)
        for kind, weights in enumerate(self.weights):
            weight = weights[length] if length < len(weights) else 0
            copies = 1
            while weight:
                shift = min(copies * weight, _UNITS)
                cost = copies * self._prices[kind]
                more = best[: _UNITS + 1 - shift] + cost
                np.minimum(best[1:shift], cost, out=best[1:shift])
                np.minimum(best[shift:], more, out=best[shift:])
                if shift == _UNITS:
                    break
                copies *= 2
        return best

    def _trace(self, length: int, units: int = _UNITS, offset: int = 0) -> list[Piece]:
        """The nodes behind the least cost."""
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


def worthwhile_blocks(
    kinds: Sequence[NodeKind],
    target: float,
    num_layers: int,
    *,
    longest: int,
    solver: str = "CBC",
    stop: Callable[[], bool] = lambda: False,
) -> list[Block] | None:
    """Generate blocks for a target; None if they cannot make up `num_layers` at all.

    Parameters
    ----------
    num_layers
        Of all blocks together.
    longest
        Layers of a block, at most.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    known = dict.fromkeys(pattern_blocks(kinds, target))
    pricing = BlockPricing(kinds, target, longest)
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
    for _ in range(_MAX_ROUNDS):
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
) -> list[Block]:
    """Choose the blocks that make up the most layers, each as often as it is used.

    Parameters
    ----------
    max_blocks
        Most blocks.
    max_seconds
        For the solver, which also stops after a number of nodes.

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
    model.optimize(max_nodes=_MAX_NODES, max_seconds=max(0.1, min(max_seconds, 1e6)))
    if not model.num_solutions:
        return []
    return [b for b, x in zip(blocks, used, strict=True) for _ in range(round(float(x.x)))]

"""The linear program over covers, which :mod:`.upper_bound` bounds flows with.

A cover of a layer is a set of slots, each the share of a node that one of its k layers takes, that
together carry the target. The program finds prices of nodes under which each cover costs 1 or more;
a knapsack finds the cheapest cover under given prices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.solver import MINIMIZE, add_silencer, new_model

SAFETY = 1e-9
"""Relative error that sums of floating-point numbers are assumed to stay below."""


@dataclass(frozen=True, slots=True)
class NodeClass:
    """Nodes that are equal for the bound.

    Attributes
    ----------
    machine_type
        Name of their type.
    tokens_per_s
        Throughput with k layers, for k = 0 to the most, limited by their links.
    count
        How many there are.
    """

    machine_type: str
    tokens_per_s: tuple[float, ...]
    count: int

    def slots(self, target: float) -> list[tuple[float, int]]:
        """(throughput, layers) of every slot that is not dominated at a target."""
        found: list[tuple[float, int]] = []
        best = 0.0
        for k in range(len(self.tokens_per_s) - 1, 0, -1):
            rate = self.tokens_per_s[k]
            if rate > best:
                found.append((rate, k))
                best = rate
            if rate >= target:
                break
        return found


class CoverProgram:
    """The linear program over covers, for one cluster and any target.

    Parameters
    ----------
    classes
        Classes of nodes, see :func:`node_classes`.
    num_layers
        Layers of the LLM.
    max_stages, solver, budget
        As in :func:`upper_bound`.
    """

    def __init__(
        self,
        classes: Sequence[NodeClass],
        num_layers: int,
        max_stages: int | None,
        solver: str,
        budget: SearchBudget = DEFAULT_BUDGET,
    ) -> None:
        self.classes = classes
        self.num_layers = num_layers
        self.supply = [*(float(c.count) for c in classes), float(max_stages or 0)]
        self.is_capped = max_stages is not None
        self.solver = solver
        self.budget = budget
        self._mu: list[float] = []

    @property
    def stage_price(self) -> float:
        """Layers that one more stage would add under the last prices."""
        return self._mu[-1]

    def prices(self) -> dict[str, float]:
        """Machine type -> layers that one more node would add under the last prices."""
        found: dict[str, float] = {}
        for each, price in zip(self.classes, self._mu, strict=False):
            found[each.machine_type] = max(price, found.get(each.machine_type, 0.0))
        return found

    def is_possible(self, target: float, stop: Callable[[], bool] = lambda: False) -> bool:
        """Whether the bound allows a flow of `target` tokens per second.

        False proves that no placement reaches it.
        """
        knapsack = CoverKnapsack(self.classes, target, self.budget.bound_units)
        if not knapsack.can_cover:
            self._mu = [0.0] * len(self.supply)
            return False
        model = new_model(MINIMIZE, self.solver)
        mu = [model.add_var(lb=0, obj=supply) for supply in self.supply]
        add_silencer(model)
        if not self.is_capped:
            mu[-1].ub = 0
        # Start with the prices of the trivial bound, which are feasible.
        prices = [
            max(k * rate for k, rate in enumerate(c.tokens_per_s)) / target for c in self.classes
        ]
        prices.append(0.0)
        for _ in range(self.budget.bound_rounds):
            cost, use = knapsack.cheapest(prices)
            layers = sum(p * s for p, s in zip(prices, self.supply, strict=True))
            if cost > 0 and layers / cost < self.num_layers * (1 - SAFETY):
                self._mu = [price / cost for price in prices]
                return False
            if cost >= 1 - 1e-7 and layers <= float(model.objective_value or -1) * (1 + 1e-7):
                return True
            model += sum(u * v for u, v in zip(use, mu, strict=True) if u) >= 1
            model.optimize()
            if stop() or not model.num_solutions or model.objective_value >= self.num_layers:
                return True
            prices = [max(0.0, float(v.x)) for v in mu]
        return True


class CoverKnapsack:
    """Finds the cheapest cover under prices: an unbounded covering knapsack.

    Throughputs are rounded up to 1/`units` of the target. So a cover may carry slightly less than
    the target, and its cost is never above that of the cheapest exact cover.
    """

    def __init__(
        self,
        classes: Sequence[NodeClass],
        target: float,
        units: int = DEFAULT_BUDGET.bound_units,
    ) -> None:
        self.units = units
        slots = [
            (index, k, rate)
            for index, each in enumerate(classes)
            for rate, k in each.slots(target)
            if rate > 0
        ]
        self.num_classes = len(classes)
        self.can_cover = bool(slots)
        self.index = np.array([index for index, _, _ in slots], dtype=np.intp)
        self.share = np.array([1 / k for _, k, _ in slots])
        rates = np.array([min(rate, target) / target for _, _, rate in slots])
        # A slot just below the target must not count as a cover by itself.
        weights = [min(ceil(rate * units), units if rate >= 1 else units - 1) for rate in rates]
        self.weight = np.array(weights, dtype=np.intp)
        self.stages = rates * self.share

    def cheapest(self, prices: Sequence[float]) -> tuple[float, list[float]]:
        """The cheapest cover.

        Parameters
        ----------
        prices
            Price of one node of each class, and last of one stage.

        Returns
        -------
        tuple
            Its cost, and how much of each resource it takes, in the order of the prices.
        """
        units = self.units
        node_cost = np.array(prices)[self.index] * self.share
        full_cost = node_cost + prices[-1] * self.stages
        best = _cover_costs(self.weight, full_cost, units)
        # All slots carry their full throughput but one, which carries `part` units.
        cost, last, part = inf, 0, 0
        for slot, weight in enumerate(self.weight):
            parts = np.arange(1, weight + 1)
            costs = best[units - parts] + prices[-1] * (parts - 1) / units * self.share[slot]
            at = int(np.argmin(costs))
            if costs[at] + node_cost[slot] < cost:
                cost, last, part = float(costs[at] + node_cost[slot]), slot, at + 1
        use = np.zeros(self.num_classes + 1)
        use[self.index[last]] = self.share[last]
        use[-1] = (part - 1) / units * self.share[last]
        left = units - part
        while left > 0:
            slot = int(np.argmin(full_cost + best[np.maximum(left - self.weight, 0)]))
            use[self.index[slot]] += self.share[slot]
            use[-1] += self.stages[slot]
            left -= int(self.weight[slot])
        return cost, use.tolist()


def _cover_costs(
    weights: npt.NDArray[np.intp], costs: npt.NDArray[np.float64], units: int
) -> npt.NDArray[np.float64]:
    """Shape (units + 1,): least cost of covering at least w units, for every w.

    Every slot may be used any number of times. It is added once, then twice, then four times, as
    any number is a sum of powers of two.
    """
    best = np.full(units + 1, inf)
    best[0] = 0.0
    for weight, cost in zip(weights.tolist(), costs.tolist(), strict=True):
        copies = 1
        while True:
            shift = min(copies * weight, units)
            more = best[: units + 1 - shift] + copies * cost
            np.minimum(best[1:shift], copies * cost, out=best[1:shift])
            np.minimum(best[shift:], more, out=best[shift:])
            if shift == units:
                break
            copies *= 2
    return best

"""Upper bounds on the flow of any placement: what no planner can beat.

Fix a target of F tokens per second. Every token passes every layer once, in some node that
holds the layer, and a node carries no more than its throughput with the layers it holds,
wherever tokens enter them. So the throughputs of each layer's holders sum to F or more; that is
all the bound asks for, and it holds for every placement, with partial inference or without.

A node of kind t that holds k layers gives k slots, so a slot (t, k) costs 1/k of the node, and a
layer takes a *cover*: slots that carry F together. Prices mu on the nodes of each kind under
which every cover costs 1 or more prove that at most sum N_t mu_t layers can be covered
(duality). Prices come from a linear program over the covers found so far; the cheapest cover
under them from a knapsack. Divided by its cost, the prices are proof at once (Farley 1990).

A cap on the stages of a route is one more resource: tokens that pass a layer in a node with k
layers take at least 1/k of a stage there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from helixsim.planner.problem import PlanningProblem
from helixsim.planner.solver import MINIMIZE, add_silencer, new_model

_UNITS = 10_000
"""Parts of F that throughputs are rounded up to, which only weakens the bound."""
_PRECISION = 1e-4
"""Relative width at which the bisection over F ends."""
_HOPELESS = 1e-6
"""Share of the first bound below which no better one is looked for."""
_MAX_ROUNDS = 200
_MAX_CLASSES = 24
"""More classes of nodes than these are merged, as if all were the fastest of them."""
_SAFETY = 1e-9
"""Relative error that sums of floating-point numbers are trusted to stay below."""


@dataclass(frozen=True, slots=True)
class Bound:
    """An upper bound, and what holds the flow down to it.

    Attributes
    ----------
    tokens_per_s
        No placement has a greater maximum flow.
    limit
        ``machines``, ``links with the coordinator`` or ``network interface of the coordinator``.
    prices
        Machine type -> layers that one more such node would add at this flow. Types with a high
        price hold the flow down; empty where machines do not.
    stage_price
        Layers that one more stage would add, if stages are capped.
    """

    tokens_per_s: float
    limit: str
    prices: dict[str, float] = field(default_factory=dict)
    stage_price: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeClass:
    """Nodes that are alike for the bound: `count` nodes of a kind, slowed down by their links."""

    machine_type: str
    tokens_per_s: tuple[float, ...]
    count: int

    def slots(self, target: float) -> list[tuple[float, int]]:
        """Throughput and layers of every slot that is worth considering at a target."""
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


def node_classes(problem: PlanningProblem) -> list[NodeClass]:
    """Classes of nodes, each node slowed down to what its links and interfaces carry."""
    caps = node_caps(problem)
    counts: dict[tuple[int, float], int] = {}
    for node, kind in enumerate(problem.kind_of):
        cap = inf if caps[node] >= max(problem.kinds[kind].tokens_per_s) else float(caps[node])
        if cap > 0:
            counts[kind, cap] = counts.get((kind, cap), 0) + 1
    if len(counts) > _MAX_CLASSES:
        merged: dict[tuple[int, float], int] = {}
        for (kind, _), count in counts.items():
            cap = max(cap for other, cap in counts if other == kind)
            merged[kind, cap] = merged.get((kind, cap), 0) + count
        counts = merged
    return [
        NodeClass(
            problem.kinds[kind].machine_type,
            tuple(min(rate, cap) for rate in problem.kinds[kind].tokens_per_s),
            count,
        )
        for (kind, cap), count in counts.items()
    ]


def node_caps(problem: PlanningProblem) -> npt.NDArray[np.float64]:
    """Tokens per second that each node's links and network interface carry at most.

    An interface carries more where only token ids pass it: from the coordinator alone, or to it
    alone.
    """
    links, home = problem.link_tokens_per_s, len(problem)
    most = np.full(home, inf)
    for into, nic, token_nic in (
        (links, problem.inbound_tokens_per_s, problem.token_inbound_tokens_per_s),
        (links.T, problem.outbound_tokens_per_s, problem.token_outbound_tokens_per_s),
    ):
        alone = np.minimum(into[home, :home], token_nic[:home])
        most = np.minimum(most, np.maximum(alone, np.minimum(into[:, :home].sum(axis=0), nic)))
    return most


def coordinator_bound(problem: PlanningProblem) -> Bound:
    """What the coordinator's network interface and links carry at most."""
    home = len(problem)
    nic = min(problem.token_outbound_tokens_per_s[home], problem.token_inbound_tokens_per_s[home])
    rates = np.array([max(problem.kind(node).tokens_per_s) for node in range(home)])
    links = min(
        np.minimum(problem.link_tokens_per_s[home, :home], rates).sum(),
        np.minimum(problem.link_tokens_per_s[:home, home], rates).sum(),
    )
    if nic < links:
        return Bound(float(nic), "network interface of the coordinator")
    return Bound(float(links), "links with the coordinator")


def trivial_bound(problem: PlanningProblem) -> Bound:
    """All layers x tokens per second that the machines could do, over the layers there are."""
    classes = node_classes(problem)
    work = [max(k * rate for k, rate in enumerate(c.tokens_per_s)) for c in classes]
    flow = sum(c.count * each for c, each in zip(classes, work, strict=True)) / problem.num_layers
    prices = {c.machine_type: each / flow for c, each in zip(classes, work, strict=True) if flow}
    machines = Bound(flow * (1 + _SAFETY), "machines", prices)
    return min(machines, coordinator_bound(problem), key=lambda bound: bound.tokens_per_s)


def upper_bound(
    problem: PlanningProblem,
    *,
    max_stages: int | None = None,
    solver: str = "CBC",
    at_least: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
) -> Bound:
    """Bound the flow of every placement, the best of all bounds here.

    Valid for every placement of the problem, aligned or with partial inference, over whatever
    links; with `max_stages` for those whose routes have at most so many stages.

    Parameters
    ----------
    max_stages
        Most stages of a route.
    solver
        Of the linear programs, see :func:`~helixsim.planner.solver.new_model`.
    at_least
        A flow that is known to be possible, in tokens per second, to start from.
    stop
        Asked often; when it says so, what is proved by then is returned.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    best = trivial_bound(problem)
    cover_lp = CoverProgram(node_classes(problem), problem.num_layers, max_stages, solver)
    low = at_least
    least = best.tokens_per_s * _HOPELESS
    while max(low, least) < best.tokens_per_s * (1 - _PRECISION) and not stop():
        # Near the bound is where the answer mostly is, as long as little is known.
        target = (low + best.tokens_per_s) / 2 if low else best.tokens_per_s * 0.8
        if cover_lp.is_possible(target, stop):
            low = target
        elif not stop():
            best = Bound(target, "machines", cover_lp.prices(), cover_lp.stage_price)
    return best


class CoverProgram:
    """The linear program over covers, for one cluster and any target.

    Parameters
    ----------
    classes, num_layers, max_stages, solver
        As in :func:`upper_bound`.
    """

    def __init__(
        self, classes: Sequence[NodeClass], num_layers: int, max_stages: int | None, solver: str
    ) -> None:
        self.classes = classes
        self.num_layers = num_layers
        self.supply = [*(float(c.count) for c in classes), float(max_stages or 0)]
        self.is_capped = max_stages is not None
        self.solver = solver
        self._mu: list[float] = []

    @property
    def stage_price(self) -> float:
        """Layers that one more stage would add, under the last prices."""
        return self._mu[-1]

    def prices(self) -> dict[str, float]:
        """Layers that one more node would add, under the last prices; the greatest of a type."""
        found: dict[str, float] = {}
        for each, price in zip(self.classes, self._mu, strict=False):
            found[each.machine_type] = max(price, found.get(each.machine_type, 0.0))
        return found

    def is_possible(self, target: float, stop: Callable[[], bool] = lambda: False) -> bool:
        """Say whether the bound allows a flow; False is proof that none reaches it."""
        knapsack = CoverKnapsack(self.classes, target)
        if not knapsack.can_cover:
            self._mu = [0.0] * len(self.supply)
            return False
        model = new_model(MINIMIZE, self.solver)
        mu = [model.add_var(lb=0, obj=supply) for supply in self.supply]
        add_silencer(model)
        if not self.is_capped:
            mu[-1].ub = 0
        # The prices of the trivial bound are allowed, and a start.
        prices = [
            max(k * rate for k, rate in enumerate(c.tokens_per_s)) / target for c in self.classes
        ]
        prices.append(0.0)
        for _ in range(_MAX_ROUNDS):
            cost, use = knapsack.cheapest(prices)
            layers = sum(p * s for p, s in zip(prices, self.supply, strict=True))
            if cost > 0 and layers / cost < self.num_layers * (1 - _SAFETY):
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

    Throughputs are rounded up to units of the target, so covers found may fall short by a
    little, and their cost is never above that of the cheapest true cover.
    """

    def __init__(self, classes: Sequence[NodeClass], target: float) -> None:
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
        # A slot that falls short by however little takes another one to make a cover.
        weights = [min(ceil(rate * _UNITS), _UNITS if rate >= 1 else _UNITS - 1) for rate in rates]
        self.weight = np.array(weights, dtype=np.intp)
        self.stages = rates * self.share

    def cheapest(self, prices: Sequence[float]) -> tuple[float, list[float]]:
        """Cost of the cheapest cover, and how much of each resource it takes."""
        node_cost = np.array(prices)[self.index] * self.share
        full_cost = node_cost + prices[-1] * self.stages
        best = _cover_costs(self.weight, full_cost)
        # Every slot is used up but for one, which carries `part` units of what it could.
        cost, last, part = inf, 0, 0
        for slot, weight in enumerate(self.weight):
            parts = np.arange(1, weight + 1)
            costs = best[_UNITS - parts] + prices[-1] * (parts - 1) / _UNITS * self.share[slot]
            at = int(np.argmin(costs))
            if costs[at] + node_cost[slot] < cost:
                cost, last, part = float(costs[at] + node_cost[slot]), slot, at + 1
        use = np.zeros(self.num_classes + 1)
        use[self.index[last]] = self.share[last]
        use[-1] = (part - 1) / _UNITS * self.share[last]
        left = _UNITS - part
        while left > 0:
            slot = int(np.argmin(full_cost + best[np.maximum(left - self.weight, 0)]))
            use[self.index[slot]] += self.share[slot]
            use[-1] += self.stages[slot]
            left -= int(self.weight[slot])
        return cost, use.tolist()


def _cover_costs(
    weights: npt.NDArray[np.intp], costs: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Cost of covering at least w units, for every w, each slot as often as one likes.

    A slot once, then twice more, then four times more: any number is a sum of these.
    """
    best = np.full(_UNITS + 1, inf)
    best[0] = 0.0
    for weight, cost in zip(weights.tolist(), costs.tolist(), strict=True):
        copies = 1
        while True:
            shift = min(copies * weight, _UNITS)
            more = best[: _UNITS + 1 - shift] + copies * cost
            np.minimum(best[1:shift], copies * cost, out=best[1:shift])
            np.minimum(best[shift:], more, out=best[shift:])
            if shift == _UNITS:
                break
            copies *= 2
    return best

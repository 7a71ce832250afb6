"""The placement of greatest maximum flow that keeps to constraints, less the price of moves.

Without constraints, parts of the cluster are optimised as a whole (all nodes that are not left out,
or each region by itself). What these plans break is repaired: nodes get their fixed layers, nodes
with banned layers get none. From there, and from the placement in service, an annealing over the
ranges of single nodes goes on; the nodes with fixed layers stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, inf
from random import Random

from helixsim.errors import PlacementError
from helixsim.planner.constraints import FREE, LayerRange, move_cost, repaired
from helixsim.planner.max_flow.dinic import flow_value, longest_route
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import FlowSearch

_ROUNDS = 16
_STEPS = 3000
_CHECK_EVERY = 32
_HOT, _COLD = 0.15, 0.001
"""Temperatures at the start and the end, as shares of the flow."""


def optimise_constrained(search: FlowSearch, optimise: Callable[[FlowSearch], None]) -> None:
    """Search for the best placement that keeps to the problem's constraints.

    Parameters
    ----------
    search
        Options, and where to report.
    optimise
        The method that plans a part of the cluster without constraints.

    Raises
    ------
    PlacementError
        If no region can hold the LLM, but requests are to stay in one.
    """
    problem = search.problem
    constraints = problem.constraints
    starts: list[dict[int, LayerRange]] = []
    if constraints.start is not None:
        starts.append(dict(constraints.start))
    starts.append(_of_parts(search, optimise))
    for number, start in enumerate(starts):
        if search.out_of_time and search.ranges:
            return
        begin = repaired(problem, start)
        search.offer(begin)
        annealing = _Annealing(search, search.rng("constrained", number))
        for each in range(_ROUNDS):  # from the start and from the best found, in turn
            annealing.run(search.ranges if each % 2 and search.ranges else begin)


def _of_parts(search: FlowSearch, optimise: Callable[[FlowSearch], None]) -> dict[int, LayerRange]:
    """Plans of the parts of the cluster, together; and a bound, if there is only one part."""
    problem = search.problem
    groups = _groups(problem)
    together: dict[int, LayerRange] = {}
    bound = 0.0
    for number, group in enumerate(groups):
        part = replace(
            search,
            problem=replace(problem.restricted(group), constraints=FREE),
            time_limit_s=None
            if search.time_limit_s is None
            else search.elapsed_s() + search.left_s / (len(groups) - number + 1),
            on_change=lambda _: None,
            ranges={},
            value=0.0,
            cost=0.0,
            bound=inf,
            trace=[],
        )
        optimise(part)
        bound += part.bound
        together |= {group[node]: layers for node, layers in part.ranges.items()}
    search.prove(bound)  # no request passes from one part to another
    return together


def _groups(problem: PlanningProblem) -> list[list[int]]:
    usable = problem.usable_nodes()
    if not problem.constraints.same_region:
        return [usable]
    regions: dict[str, list[int]] = {}
    for node in usable:
        regions.setdefault(problem.cluster.nodes[node].region, []).append(node)
    rooms = {name: sum(map(problem.max_layers, group)) for name, group in regions.items()}
    able = [group for name, group in regions.items() if rooms[name] >= problem.num_layers]
    if not able:
        held = ", ".join(f"{name} {room}" for name, room in rooms.items())
        raise PlacementError(
            f"no region can hold the {problem.num_layers} layers of {problem.llm.name} by itself "
            f"({held}); leave out --same-region, or add machines"
        )
    return able


@dataclass
class _Annealing:
    """One annealing over the ranges of single nodes."""

    search: FlowSearch
    rng: Random

    def __post_init__(self) -> None:
        problem = self.search.problem
        fixed = problem.constraints.fixed
        self.problem = problem
        self.free = [node for node in problem.usable_nodes() if node not in fixed]

    def run(self, start: dict[int, LayerRange]) -> None:
        """Anneal, and report every better placement."""
        search, rng = self.search, self.rng
        current, score = start, self._score(start)
        if not self.free:
            return
        for step in range(_STEPS):
            if step % _CHECK_EVERY == 0 and search.out_of_time:
                return
            changed = self._neighbour(current)
            if changed is None:
                continue
            other = self._score(changed)
            scale = max(search.value, 1e-9) * _HOT * (_COLD / _HOT) ** (step / _STEPS)
            if other >= score or rng.random() < exp((other - score) / scale):
                current, score = changed, other

    def _score(self, ranges: dict[int, LayerRange]) -> float:
        """Its flow less its price; below any flow, the layers that are missing."""
        most = self.search.max_stages
        value = flow_value(self.problem, ranges)
        if value > 0 and (most is None or longest_route(self.problem, ranges) <= most):
            self.search.offer(ranges, value)
            return value - move_cost(self.problem, ranges)
        held = {layer for start, end in ranges.values() for layer in range(start, end)}
        missing = self.problem.num_layers - len(held)
        typical = max(max(kind.tokens_per_s) for kind in self.problem.kinds)
        return -typical * (1 + missing) / self.problem.num_layers

    def _neighbour(self, ranges: dict[int, LayerRange]) -> dict[int, LayerRange] | None:
        moves = (self._fill, self._shift, self._join, self._swap, self._refit, self._drop)
        changed = self.rng.choice(moves)(dict(ranges))
        if changed is None or changed == ranges:
            return None
        allows, most = self.problem.constraints.allows, self.problem.max_layers
        for node in {*changed, *ranges}:
            layers = changed.get(node)
            if layers == ranges.get(node):
                continue
            if not allows(node, layers):
                return None
            if layers is not None and not 0 < layers[1] - layers[0] <= most(node):
                return None
        return changed

    # -- moves: each changes the ranges and returns them, or returns None ------------------------

    def _fill(self, ranges: dict[int, LayerRange]) -> dict[int, LayerRange] | None:
        """Give a node layers at one end of a gap."""
        held = {layer for start, end in ranges.values() for layer in range(start, end)}
        gap = [layer for layer in range(self.problem.num_layers) if layer not in held]
        if not gap:
            return None
        first = self.rng.choice([layer for layer in gap if layer - 1 not in gap])
        end = first
        while end in gap:
            end += 1
        idle = [node for node in self.free if node not in ranges]
        node = self.rng.choice(idle or self.free)
        size = min(self.problem.max_layers(node), end - first)
        ranges[node] = (first, first + size) if self.rng.random() < 0.5 else (end - size, end)
        return ranges

    def _shift(self, ranges: dict[int, LayerRange]) -> dict[int, LayerRange] | None:
        """Move a boundary between stages by a layer or two."""
        cuts = sorted({end for _, end in ranges.values()} - {self.problem.num_layers})
        if not cuts:
            return None
        cut, by = self.rng.choice(cuts), self.rng.choice((-2, -1, 1, 2))
        for node, (start, end) in list(ranges.items()):
            if cut in (start, end):
                ranges[node] = (start + by * (start == cut), end + by * (end == cut))
        last = self.problem.num_layers
        is_inside = all(0 <= start < end <= last for start, end in ranges.values())
        return ranges if is_inside else None

    def _join(self, ranges: dict[int, LayerRange]) -> dict[int, LayerRange] | None:
        """Give a node the layers of another."""
        if ranges:
            ranges[self.rng.choice(self.free)] = self.rng.choice(list(ranges.values()))
        return ranges

    def _swap(self, ranges: dict[int, LayerRange]) -> dict[int, LayerRange] | None:
        """Exchange the layers of two nodes."""
        if len(self.free) < 2:
            return None
        one, other = self.rng.sample(self.free, 2)
        held = {node: ranges.pop(node) for node in (one, other) if node in ranges}
        for node, layers in held.items():
            ranges[other if node == one else one] = layers
        return ranges

    def _refit(self, ranges: dict[int, LayerRange]) -> dict[int, LayerRange] | None:
        """Let a node start where others end, and end where others start."""
        found = {cut for span in ranges.values() for cut in span}
        cuts = sorted(found | {0, self.problem.num_layers})
        if len(cuts) < 2:
            return None
        start = self.rng.choice(cuts[:-1])
        node = self.rng.choice(self.free)
        longest = start + self.problem.max_layers(node)
        ends: Sequence[int] = [cut for cut in cuts if start < cut <= longest]
        ranges[node] = (start, self.rng.choice(ends or [min(longest, cuts[-1])]))
        return ranges

    def _drop(self, ranges: dict[int, LayerRange]) -> dict[int, LayerRange] | None:
        """Let a node idle."""
        ranges.pop(self.rng.choice(self.free), None)
        return ranges

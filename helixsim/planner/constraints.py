"""What a plan must keep to besides the machines' sizes: fixed layers, bans, regions, moves.

:class:`Constraints` belongs to a planning problem. :func:`violations` says what a candidate breaks,
and :func:`move_cost` what it costs to get there from the placement in service; every search calls
the same two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from helixsim.errors import InputError
from helixsim.yaml_files import did_you_mean

if TYPE_CHECKING:
    from helixsim.planner.problem import PlanningProblem, Ranges

LayerRange = tuple[int, int]
"""Layers ``[start, end)``."""

_INCLUSIVE = re.compile(r"(\d+)(?:-(\d+))?")
_HALF_OPEN = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*\)")


@dataclass(frozen=True)
class Constraints:
    """What a plan must keep to. Nodes are given by number; the default allows everything.

    Attributes
    ----------
    fixed
        Node -> the layers that it holds, exactly these.
    banned
        Node -> ranges of layers; it holds none of these layers.
    left_out
        Nodes that hold no layers.
    same_region
        Whether a request stays in one region: links between nodes of different regions are not
        used, so each replica lies in one region.
    start
        The placement in service; None if there is none.
    move_price
        Price of one layer that a node must load anew, in the unit of the figure that is optimised:
        tokens per second for a rate.
    """

    fixed: Mapping[int, LayerRange] = field(default_factory=dict)
    banned: Mapping[int, tuple[LayerRange, ...]] = field(default_factory=dict)
    left_out: frozenset[int] = frozenset()
    same_region: bool = False
    start: Ranges | None = None
    move_price: float = 0.0

    @property
    def restrict(self) -> bool:
        """Whether they forbid any placement."""
        return bool(self.fixed or self.banned or self.left_out or self.same_region)

    @property
    def are_binding(self) -> bool:
        """Whether they change anything."""
        return self.restrict or bool(self.start is not None and self.move_price)

    def allows(self, node: int, layers: LayerRange | None) -> bool:
        """Whether a node may hold these layers; None for no layers."""
        if node in self.fixed:
            return layers == self.fixed[node]
        if layers is None:
            return True
        return node not in self.left_out and not any(
            layers[0] < end and start < layers[1] for start, end in self.banned.get(node, ())
        )

    def treat_alike(self, a: int, b: int) -> bool:
        """Whether two nodes may be exchanged in every placement, at the same price."""
        priced = self.start if self.move_price and self.start is not None else {}
        return (
            self.fixed.get(a) == self.fixed.get(b)
            and self.banned.get(a) == self.banned.get(b)
            and (a in self.left_out) == (b in self.left_out)
            and priced.get(a) == priced.get(b)
        )

    def restricted(self, nodes: Sequence[int]) -> Constraints:
        """The constraints on some of the nodes, renumbered in the given order."""
        number = {node: index for index, node in enumerate(nodes)}
        return replace(
            self,
            fixed={number[node]: span for node, span in self.fixed.items() if node in number},
            banned={number[node]: spans for node, spans in self.banned.items() if node in number},
            left_out=frozenset(number[node] for node in self.left_out if node in number),
            start=None
            if self.start is None
            else {number[node]: span for node, span in self.start.items() if node in number},
        )


FREE = Constraints()
"""No constraints."""


def violations(
    problem: PlanningProblem, ranges: Ranges, max_stages: int | None = None
) -> list[str]:
    """What a candidate breaks, as sentences; empty if it may be used.

    Parameters
    ----------
    ranges
        The candidate.
    max_stages
        The most stages of a route; None for any number.
    """
    from helixsim.planner.max_flow.dinic import longest_route

    constraints, names = problem.constraints, problem.names
    found = []
    for node in sorted({*ranges, *constraints.fixed}):
        layers = ranges.get(node)
        if not constraints.allows(node, layers):
            found.append(_broken(constraints, names[node], node, layers))
    if constraints.same_region and not _has_replica_in_a_region(problem, ranges):
        found.append("no region holds all layers by itself")
    if max_stages is not None and (stages := longest_route(problem, ranges)) > max_stages:
        found.append(f"a route has {stages} stages, more than {max_stages}")
    return found


def _broken(constraints: Constraints, name: str, node: int, layers: LayerRange | None) -> str:
    held = "no layers" if layers is None else f"[{layers[0]}, {layers[1]})"
    if node in constraints.fixed:
        start, end = constraints.fixed[node]
        return f"{name} holds {held}, but is to hold [{start}, {end})"
    if node in constraints.left_out:
        return f"{name} holds {held}, but is to be left out"
    banned = ", ".join(f"[{start}, {end})" for start, end in constraints.banned[node])
    return f"{name} holds {held}, but is to hold none of {banned}"


def _has_replica_in_a_region(problem: PlanningProblem, ranges: Ranges) -> bool:
    held: dict[str, set[int]] = {}
    nodes = problem.cluster.nodes
    for node, (start, end) in ranges.items():
        held.setdefault(nodes[node].region, set()).update(range(start, end))
    return any(len(layers) == problem.num_layers for layers in held.values())


def repaired(problem: PlanningProblem, ranges: Ranges) -> dict[int, LayerRange]:
    """A candidate without the nodes that hold what they must not, or too much; fixed ones added.

    It may have no route through all layers.
    """
    constraints = problem.constraints
    kept = {
        node: layers
        for node, layers in ranges.items()
        if constraints.allows(node, layers) and layers[1] - layers[0] <= problem.max_layers(node)
    }
    return kept | dict(constraints.fixed)


def layers_moved(start: Ranges, ranges: Ranges) -> int:
    """Layers that nodes must load to get from one placement to another, over all nodes."""
    moved = 0
    for node, (first, end) in ranges.items():
        had_first, had_end = start.get(node, (0, 0))
        kept = max(0, min(end, had_end) - max(first, had_first))
        moved += end - first - kept
    return moved


def move_cost(problem: PlanningProblem, ranges: Ranges) -> float:
    """What a candidate costs for the layers that it moves, in the unit of the optimised figure."""
    constraints = problem.constraints
    if constraints.start is None or not constraints.move_price:
        return 0.0
    return constraints.move_price * layers_moved(constraints.start, ranges)


# -- from texts ------------------------------------------------------------------------------


def parse_constraints(
    names: Sequence[str],
    num_layers: int,
    *,
    fix: Iterable[str] = (),
    ban: Iterable[str] = (),
    leave_out: Iterable[str] = (),
    same_region: bool = False,
    start: Mapping[str, LayerRange] | None = None,
    move_price: float = 0.0,
) -> Constraints:
    """Read constraints as the command line has them.

    Parameters
    ----------
    names
        The nodes of the cluster, in order.
    num_layers
        Layers of the LLM.
    fix, ban
        Texts such as ``node=0-19``, the layers 0 to 19, or ``node=[0,20)``, as plans are printed.
    leave_out
        Names of nodes.
    start
        Node -> layers of the placement in service.

    Raises
    ------
    InputError
        If a text cannot be read, names no node, or contradicts another.
    """
    numbers = {name: number for number, name in enumerate(names)}
    fixed: dict[int, LayerRange] = {}
    for text in fix:
        node, layers = _node_and_layers(text, "--fix", numbers, num_layers)
        if fixed.setdefault(node, layers) != layers:
            raise InputError(f"{names[node]} is fixed twice, to different layers", where="--fix")
    banned: dict[int, tuple[LayerRange, ...]] = {}
    for text in ban:
        node, layers = _node_and_layers(text, "--ban", numbers, num_layers)
        banned[node] = (*banned.get(node, ()), layers)
    left_out = frozenset(_number(name, "--leave-out", numbers) for name in leave_out)
    for node, layers in fixed.items():
        if node in left_out or not Constraints(banned=banned).allows(node, layers):
            raise InputError(
                f"{names[node]} is to hold [{layers[0]}, {layers[1]}) and must not; remove --fix, "
                "--ban or --leave-out",
                where="--fix",
            )
    if move_price < 0:
        raise InputError(f"must be 0 or more, not {move_price:g}", where="--move-price")
    if move_price and start is None:
        raise InputError("needs --start-from, the placement that is moved", where="--move-price")
    known = (
        None
        if start is None
        else {numbers[name]: layers for name, layers in start.items() if name in numbers}
    )
    return Constraints(fixed, banned, left_out, same_region, known, move_price)


def _node_and_layers(
    text: str, where: str, numbers: Mapping[str, int], num_layers: int
) -> tuple[int, LayerRange]:
    name, equals, span = text.rpartition("=")
    inclusive, half_open = _INCLUSIVE.fullmatch(span.strip()), _HALF_OPEN.fullmatch(span.strip())
    if not equals or not (inclusive or half_open):
        raise InputError(
            f"'{text}' cannot be read; write NODE=FIRST-LAST, such as a100-0=0-19 for the layers 0 "
            "to 19",
            where=where,
        )
    node = _number(name.strip(), where, numbers)
    if half_open:
        start, end = int(half_open[1]), int(half_open[2])
    else:
        assert inclusive is not None
        start, end = int(inclusive[1]), int(inclusive[2] or inclusive[1]) + 1
    if not start < end <= num_layers:
        raise InputError(
            f"'{text}' is no range of layers; the LLM has the layers 0 to {num_layers - 1}",
            where=where,
        )
    return node, (start, end)


def _number(name: str, where: str, numbers: Mapping[str, int]) -> int:
    if name not in numbers:
        raise InputError(
            f"the cluster has no node '{name}'; {did_you_mean(name, list(numbers))}", where=where
        )
    return numbers[name]

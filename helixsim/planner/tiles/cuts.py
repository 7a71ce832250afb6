"""How a large cluster is cut into tiles: groups of nodes that each hold the whole LLM.

Nodes with fast links between them are one *site*. A site that cannot hold the LLM is merged with
the one to which it has the fastest links. Each site is cut in several ways:

- *mixed*: each tile has about the same number of nodes of each kind;
- *like with like*: the nodes in the order of their speed, cut into equal parts;
- *by kind*: the nodes of each class by themselves, and all others, which are too few, together.

Tiles with as many nodes of each class of alike nodes are alike: a plan for one is a plan for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from helixsim.planner.problem import PlanningProblem
from helixsim.planner.simulated.alike import AlikeNodes

MIXED, LIKE, BY_KIND = "mixed", "like with like", "by kind"

TileKey = tuple[tuple[int, int], ...]
"""Number of a class of alike nodes, and how many of its nodes there are; for each class."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Nodes that are planned together.

    Attributes
    ----------
    nodes
        Their numbers, class by class, so that the n-th nodes of two alike tiles correspond.
    key
        Equal for alike tiles.
    """

    nodes: tuple[int, ...]
    key: TileKey


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to divide the nodes of a site.

    Attributes
    ----------
    how
        :data:`MIXED`, :data:`LIKE` or :data:`BY_KIND`.
    tiles
        The parts.
    """

    how: str
    tiles: tuple[Tile, ...]

    @property
    def examples(self) -> tuple[Tile, ...]:
        """The tiles from which the worth of the cut shows: of the same mix, one."""
        return self.tiles[:1] if self.how == MIXED else self.tiles


def sites(
    problem: PlanningProblem, alike: AlikeNodes, site_of: Sequence[int]
) -> list[tuple[int, ...]]:
    """The nodes of each site, merged such that each can hold the LLM if that is possible.

    Parameters
    ----------
    problem, alike
        The planning problem, and its classes of alike nodes.
    site_of
        For every class, the number of its site.

    Returns
    -------
    list
        Numbers of nodes, without nodes that are to hold nothing. Where requests are to stay in one
        region, each region is a site, and regions that cannot hold the LLM are left out.
    """
    by_site: dict[object, list[int]] = {}
    nodes = problem.cluster.nodes
    for node in problem.usable_nodes():
        site: object = site_of[alike.class_of[node]]
        if problem.constraints.same_region:
            site = nodes[node].region
        by_site.setdefault(site, []).append(node)
    found = list(by_site.values())
    if problem.constraints.same_region:
        return [tuple(site) for site in found if _holds(problem, site)]
    while len(found) > 1:
        smallest = min(found, key=lambda site: _room(problem, site))
        if _holds(problem, smallest):
            break
        others = [site for site in found if site is not smallest]
        nearest = max(others, key=lambda site: _bandwidth(problem, smallest, site))
        found = [site for site in others if site is not nearest] + [sorted(smallest + nearest)]
    return [tuple(site) for site in sorted(found)]


def cuts(
    problem: PlanningProblem,
    alike: AlikeNodes,
    site: Sequence[int],
    sizes: Sequence[int],
    least_share: float = 0.0,
) -> list[Cut]:
    """Different ways to cut a site; each tile can hold the LLM.

    Parameters
    ----------
    problem, alike
        The planning problem, and its classes of alike nodes.
    site
        Numbers of nodes.
    sizes
        Nodes of a tile that are aimed at; tiles are larger where so few cannot hold the LLM.
    least_share
        Least share of the speed of all nodes that a tile has, as far as the site has as much.
    """
    least = least_share * speed_of(problem, problem.usable_nodes())
    classes: dict[int, list[int]] = {}
    for node in site:
        classes.setdefault(alike.class_of[node], []).append(node)
    ordered = sorted(classes, key=lambda kind: (-_speed(problem, classes[kind][0]), kind))
    in_order = [node for kind in ordered for node in classes[kind]]
    ways: dict[str, Callable[[int], list[list[int]]]] = {
        MIXED: lambda count: _mixed(problem, [classes[kind] for kind in ordered], count),
        LIKE: lambda count: _in_order(in_order, count),
        BY_KIND: lambda count: _by_kind(
            problem, [classes[kind] for kind in ordered], len(site) / count
        ),
    }
    found: dict[tuple[TileKey, ...], Cut] = {}
    for size, (how, divided) in product(sizes, ways.items()):
        for count in range(max(1, round(len(site) / size)), 0, -1):
            parts = divided(count)
            is_fast = len(parts) == 1 or all(speed_of(problem, part) >= least for part in parts)
            if is_fast and all(_holds(problem, part) for part in parts):
                cut = Cut(how, tuple(_tile(alike, part) for part in parts))
                found.setdefault(tuple(sorted(tile.key for tile in cut.tiles)), cut)
                break
    return list(found.values())


def _mixed(
    problem: PlanningProblem, classes: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """Deal each class evenly; each node that is left over goes to the slowest tile."""
    parts: list[list[int]] = [[] for _ in range(count)]
    for members in classes:
        each = len(members) // count
        for number in range(count):
            parts[number] += members[number * each : (number + 1) * each]
    speeds = [0.0] * count
    for members in classes:
        left = members[len(members) // count * count :]
        speed = _speed(problem, members[0])
        slowest = sorted(range(count), key=lambda number: (speeds[number], number))
        for number, node in zip(slowest, left, strict=False):
            parts[number].append(node)
            speeds[number] += speed
    return parts


def _by_kind(
    problem: PlanningProblem, classes: Sequence[Sequence[int]], size: float
) -> list[list[int]]:
    """Parts of one class each, of about this size, and one of the classes that hold too little."""
    parts: list[list[int]] = []
    others: list[int] = []
    for members in classes:
        if not _holds(problem, members):
            others += members
            continue
        most = _room(problem, members) // problem.num_layers
        fitting = range(min(most, max(1, round(len(members) / size))), 0, -1)
        divided = (_in_order(members, count) for count in fitting)
        parts += next(each for each in divided if all(_holds(problem, part) for part in each))
    if others and not _holds(problem, others) and parts:
        others += parts.pop()
    return [*parts, others] if others else parts


def _in_order(nodes: Sequence[int], count: int) -> list[list[int]]:
    bounds = [round(len(nodes) * number / count) for number in range(count + 1)]
    return [list(nodes[bounds[n] : bounds[n + 1]]) for n in range(count)]


def _tile(alike: AlikeNodes, nodes: Sequence[int]) -> Tile:
    ordered = sorted(nodes, key=lambda node: (alike.class_of[node], node))
    kinds = [alike.class_of[node] for node in ordered]
    return Tile(tuple(ordered), tuple((kind, kinds.count(kind)) for kind in sorted(set(kinds))))


def _speed(problem: PlanningProblem, node: int) -> float:
    """Layers x tokens/s of a node, at the number of layers where this is greatest."""
    return max(count * rate for count, rate in enumerate(problem.kind(node).tokens_per_s))


def speed_of(problem: PlanningProblem, nodes: Sequence[int]) -> float:
    """Layers x tokens/s of some nodes, each at the number of layers where this is greatest."""
    return sum(_speed(problem, node) for node in nodes)


def _room(problem: PlanningProblem, nodes: Sequence[int]) -> int:
    return sum(problem.max_layers(node) for node in nodes)


def _holds(problem: PlanningProblem, nodes: Sequence[int]) -> bool:
    return _room(problem, nodes) >= problem.num_layers


def _bandwidth(problem: PlanningProblem, one: Sequence[int], other: Sequence[int]) -> float:
    """Mean tokens/s of the links between two sites, in the direction where it is less."""
    links = problem.link_tokens_per_s
    there, back = links[list(one)][:, list(other)], links[list(other)][:, list(one)]
    return float(min(there.mean(), back.mean()))

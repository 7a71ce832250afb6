"""Tiles put together to placements of the whole cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helixsim.placement.placement import Placement
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.simulated.candidates import TILES
from helixsim.planner.tiles.cuts import BY_KIND, LIKE, MIXED, Cut, TileKey
from helixsim.planner.tiles.parts import NO_PLAN, PartPlan

Labelled = tuple[str, Placement]
"""The label of a candidate, and its placement."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """One cut for each site.

    Attributes
    ----------
    label
        What it is called as a candidate.
    cuts
        The cuts.
    """

    label: str
    cuts: tuple[Cut, ...]


def merit(cut: Cut, plans: Mapping[TileKey, PartPlan], *, is_rate: bool) -> float:
    """How good a cut is: the sum of rates; the mean over nodes of other scores.

    A tile that was not planned counts as the mean of the others.
    """
    scores = [(plans[t.key].score, len(t.nodes)) for t in cut.tiles if t.key in plans]
    count = sum(count for _, count in scores)
    mean = sum(score if is_rate else score * count for score, count in scores) / count
    return mean * sum(len(tile.nodes) for tile in cut.tiles) if is_rate else mean


def ranked_cuts(
    of_site: Sequence[Cut], plans: Mapping[TileKey, PartPlan], is_rate: bool
) -> list[Cut]:
    """The cuts of a site in which a request can pass some tile, best first."""
    usable = [
        cut for cut in of_site if any(plans.get(tile.key, NO_PLAN).found for tile in cut.tiles)
    ]
    return sorted(usable, key=lambda cut: -merit(cut, plans, is_rate=is_rate))


def wholes(
    of_sites: Sequence[Sequence[Cut]], plans: Mapping[TileKey, PartPlan], is_rate: bool
) -> list[Assembly]:
    """Different ways to choose a cut for each site, the best by the scores of tiles first.

    Parameters
    ----------
    of_sites
        For each site, its cuts, best first; a site without any is left out.
    plans
        The plan of each tile.
    is_rate
        Whether scores of tiles add up.
    """
    usable = [each for each in of_sites if each]
    if not usable:
        return []
    ways = [tuple(each[min(place, len(each) - 1)] for each in usable) for place in range(2)]
    ways += [
        tuple(next((cut for cut in each if cut.how == how), each[0]) for each in usable)
        for how in (MIXED, LIKE, BY_KIND)
    ]
    distinct = list(dict.fromkeys(ways))
    found: list[Assembly] = []
    for way in distinct:
        label = _label([len(tile.nodes) for cut in way for tile in cut.tiles])
        same = sum(each.label.split(" (")[0] == label for each in found)
        found.append(Assembly(f"{label} ({same + 1})" if same else label, way))
    return found


def _label(sizes: Sequence[int]) -> str:
    fewest, most = min(sizes), max(sizes)
    return f"{TILES} {len(sizes)} x {fewest}" + (f"-{most}" if most > fewest else "")


def assembled(
    problem: PlanningProblem, whole: Assembly, plans: Mapping[TileKey, PartPlan]
) -> Placement:
    """The placement with the plans of all tiles and links within them alone.

    Nodes with fixed layers hold these even if no tile uses them.
    """
    ranges = dict(problem.constraints.fixed)
    links: list[tuple[str, str]] = []
    for cut in whole.cuts:
        for tile in cut.tiles:
            plan = plans[tile.key]
            if not plan.found:
                continue
            own = dict(plan.found[0])
            part = problem.restricted(tile.nodes)
            names = (*part.names, *part.cluster.front_end_names)
            links += [(names[a], names[b]) for a, b in part.front_end_pairs(own)]
            ranges |= {tile.nodes[node]: span for node, span in own.items()}
    names = problem.names
    layers = {names[node]: ranges[node] for node in sorted(ranges)}
    return Placement(layers, tuple(links))

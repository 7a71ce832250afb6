"""Placements of a large cluster, put together from tiles that are planned by themselves.

1. Each site is cut in several ways (:mod:`.cuts`); each tile is planned by estimates, alike ones
   once.
2. The tiles of the best cuts of each site are planned by a search with simulations of the tile
   alone, with its share of the load.
3. The best cuts of all sites make one placement, others make more; the whole is then simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, inf

from helixsim.planner.constraints import violations
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.simulated.allowed import allowed
from helixsim.planner.simulated.trial_pool import RangesItems, TrialPool
from helixsim.planner.tiles.assembly import Assembly, Labelled, assembled, ranked_cuts, wholes
from helixsim.planner.tiles.cuts import Cut, Tile, TileKey, cuts, sites
from helixsim.planner.tiles.parts import NO_PLAN, PartPlan, PartTask, plan_part


class TiledSearch:
    """Plans a large cluster tile by tile.

    Parameters
    ----------
    problem
        The planning problem of the whole cluster.
    pool
        Runs the searches of tiles.
    left_s
        Clock: seconds left, infinite without a limit.
    on_step
        Called with the current step.
    """

    def __init__(
        self,
        problem: PlanningProblem,
        pool: TrialPool,
        *,
        left_s: Callable[[], float],
        on_step: Callable[[str], None],
    ) -> None:
        self._problem = problem
        self._pool = pool
        self._left_s = left_s
        self._on_step = on_step
        self._budget = pool.setting.budget
        self._alike = pool.proposer.alike
        own = pool.setting.scenario.placement
        self._own = {} if own is None else problem.ranges(own)

    def run(self) -> list[Labelled]:
        """Placements of the whole, the most promising first; none if no cut holds the LLM."""
        problem, budget = self._problem, self._budget
        found = sites(problem, self._alike, self._pool.proposer.surrogate.site_of)
        of_site = [cuts(problem, self._alike, site, budget.tile_sizes) for site in found]
        estimates = self._planned(
            "estimates", [cut for each in of_site for cut in each], {}, budget.tile_estimate_share
        )
        is_rate = self._pool.setting.objective.is_rate
        best = [ranked_cuts(each, estimates, is_rate)[: budget.tile_cuts] for each in of_site]
        plans = self._planned(
            "searches", [cut for each in best for cut in each], estimates, budget.tile_search_share
        )
        plans = {key: plan if plan.found else estimates[key] for key, plan in plans.items()}
        whole = wholes([ranked_cuts(each, plans, is_rate) for each in best], plans, is_rate)
        return self._placements(whole, plans)

    def _planned(
        self,
        step: str,
        chosen: Sequence[Cut],
        known: Mapping[TileKey, PartPlan],
        time_share: float,
    ) -> dict[TileKey, PartPlan]:
        """The plan of each tile, alike ones once: by estimates, or from these by a search."""
        tiles: dict[TileKey, Tile] = {}
        for cut in chosen:
            for tile in cut.tiles:
                tiles.setdefault(tile.key, tile)
        self._on_step(f"{step} of {len(tiles)} tiles of {len(chosen)} cuts")
        most_s = None
        if self._left_s() < inf and tiles:
            waves = ceil(len(tiles) / self._pool.jobs)
            most_s = max(0.0, self._left_s()) * time_share / waves
        rounds = self._budget.tile_rounds if known else 0
        tasks = [
            PartTask(
                tile.nodes,
                len(tile.nodes) / len(self._problem),
                (*known.get(key, NO_PLAN).found, *self._own_start(tile)),
                rounds,
                most_s,
            )
            for key, tile in tiles.items()
        ]
        return dict(zip(tiles, self._pool.run(plan_part, tasks, NO_PLAN), strict=True))

    def _own_start(self, tile: Tile) -> tuple[RangesItems, ...]:
        """The scenario's own placement of the nodes of a tile, if requests can pass it."""
        own = {n: self._own[node] for n, node in enumerate(tile.nodes) if node in self._own}
        found = allowed(self._problem.restricted(tile.nodes), own) if own else {}
        return (tuple(sorted(found.items())),) if found else ()

    def _placements(
        self, whole: Sequence[Assembly], plans: Mapping[TileKey, PartPlan]
    ) -> list[Labelled]:
        """Placements with links within tiles alone; the best one also with all links that fit."""
        problem = self._problem
        found = [(each.label, assembled(problem, each, plans)) for each in whole]
        if whole:
            ranges = problem.ranges(found[0][1])
            if not violations(problem, ranges, self._pool.setting.max_stages):
                found.append((f"{whole[0].label}, joined", problem.placement(ranges)))
        return found

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
from helixsim.planner.simulated.tasks import RangesItems
from helixsim.planner.simulated.trial_pool import TrialPool
from helixsim.planner.tiles.assembly import Assembly, Labelled, assembled, ranked_cuts, wholes
from helixsim.planner.tiles.cuts import Cut, Tile, TileKey, cuts, sites, speed_of
from helixsim.planner.tiles.parts import NO_PLAN, PartPlan, PartTask, plan_part, transferred

JOINED = ", joined"
"""End of the label of a placement in which all links that fit are used, between tiles too."""


class TiledSearch:
    """Plans a large cluster tile by tile.

    Parameters
    ----------
    problem
        The planning problem of the whole cluster.
    pool
        Runs the searches of tiles.
    rounds
        Rounds of the effort that the user chose.
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
        rounds: int,
        left_s: Callable[[], float],
        on_step: Callable[[str], None],
    ) -> None:
        self._problem = problem
        self._pool = pool
        self._rounds = max(1, round(rounds * pool.setting.budget.tile_rounds))
        self._left_s = left_s
        self._on_step = on_step
        self._budget = pool.setting.budget
        self._alike = pool.proposer.alike
        self._speed = speed_of(problem, problem.usable_nodes())
        own = pool.setting.scenario.placement
        self._own = {} if own is None else problem.ranges(own)

    def run(self) -> list[Labelled]:
        """Placements of the whole, the most promising first; none if no cut holds the LLM."""
        problem, budget = self._problem, self._budget
        found = sites(problem, self._alike, self._pool.proposer.surrogate.site_of)
        least = 0.0
        if not self._pool.proposer.surrogate.uses_small_shares:
            least = budget.tile_share_room * self._pool.setting.scenario.scheduler.min_flow_share
        of_site = [cuts(problem, self._alike, site, budget.tile_sizes, least) for site in found]
        every = [cut for each in of_site for cut in each]
        examples = {tile.key: tile for cut in every for tile in cut.examples}
        self._on_step(f"estimates of {len(examples)} tiles of {len(every)} cuts")
        estimates = self._planned(examples, {}, 0, budget.tile_estimate_share)
        is_rate = self._pool.setting.objective.is_rate
        best = [ranked_cuts(each, estimates, is_rate)[: budget.tile_cuts] for each in of_site]
        chosen = [cut for each in best for cut in each]
        tiles = {tile.key: tile for cut in chosen for tile in cut.tiles}
        starts = {key: start for cut in chosen for key, start in self._starts(cut, estimates)}
        self._on_step(f"searches of {len(tiles)} tiles of {len(chosen)} cuts")
        plans = self._planned(tiles, starts, self._rounds, budget.tile_search_share)
        plans = {
            key: plan if plan.found else estimates.get(key, NO_PLAN) for key, plan in plans.items()
        }
        whole = wholes([ranked_cuts(each, plans, is_rate) for each in best], plans, is_rate)
        return self._placements(whole, plans)

    def _starts(
        self, cut: Cut, estimates: Mapping[TileKey, PartPlan]
    ) -> list[tuple[TileKey, tuple[RangesItems, ...]]]:
        """For each tile of a cut, its placements by estimate, or the placements of the example."""
        class_of = self._alike.class_of
        example = cut.examples[0]
        source = [class_of[node] for node in example.nodes]
        found = []
        for tile in cut.tiles:
            if tile.key in estimates:
                found.append((tile.key, estimates[tile.key].found))
                continue
            target = [class_of[node] for node in tile.nodes]
            given = estimates[example.key].found
            found.append((tile.key, tuple(transferred(each, source, target) for each in given)))
        return found

    def _planned(
        self,
        tiles: Mapping[TileKey, Tile],
        starts: Mapping[TileKey, tuple[RangesItems, ...]],
        rounds: int,
        time_share: float,
    ) -> dict[TileKey, PartPlan]:
        """The plan of each tile: by estimates, or by a search of this number of rounds."""
        most_s = None
        if self._left_s() < inf and tiles:
            waves = ceil(len(tiles) / self._pool.jobs)
            most_s = max(0.0, self._left_s()) * time_share / waves
        tasks = [
            PartTask(
                tile.nodes,
                speed_of(self._problem, tile.nodes) / self._speed,
                (*starts.get(key, ()), *self._own_start(tile)),
                rounds,
                most_s,
            )
            for key, tile in tiles.items()
        ]
        return dict(zip(tiles, self._pool.run(plan_part, tasks, NO_PLAN), strict=True))

    def _own_start(self, tile: Tile) -> tuple[RangesItems, ...]:
        """The scenario's own placement of the nodes of a tile."""
        own = tuple((n, self._own[node]) for n, node in enumerate(tile.nodes) if node in self._own)
        return (own,) if own else ()

    def _placements(
        self, whole: Sequence[Assembly], plans: Mapping[TileKey, PartPlan]
    ) -> list[Labelled]:
        """Placements with links within tiles alone; the best one also with all links that fit."""
        problem = self._problem
        found = [(each.label, assembled(problem, each, plans)) for each in whole]
        if whole:
            ranges = problem.ranges(found[0][1])
            if not violations(problem, ranges, self._pool.setting.max_stages):
                found.append((f"{whole[0].label}{JOINED}", problem.placement(ranges)))
        return found

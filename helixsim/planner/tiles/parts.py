"""One tile planned by itself, in a process of the search: by estimates, then by simulations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import monotonic

from helixsim.errors import HelixError
from helixsim.planner.heuristics.replicas import replica_ranges
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.simulated.allowed import allowed
from helixsim.planner.simulated.correction import Correction
from helixsim.planner.simulated.proposals import Proposal
from helixsim.planner.simulated.search import Effort, SimulatedSearch
from helixsim.planner.simulated.tasks import AnnealingTask, RangesItems, Setting
from helixsim.planner.simulated.trial_pool import TrialPool
from helixsim.scenario.resolved import Scenario
from helixsim.scenario.workload_values import Workload


@dataclass(frozen=True, slots=True)
class PartTask:
    """A tile to plan.

    Attributes
    ----------
    nodes
        The nodes of the tile.
    share
        Share of the cluster's load that it is to serve.
    starts
        Placements to begin with, nodes numbered within the tile.
    rounds
        Most rounds of a search by simulation; 0 for estimates alone.
    most_s
        Seconds after which it ends; None for no limit.
    """

    nodes: tuple[int, ...]
    share: float
    starts: tuple[RangesItems, ...]
    rounds: int
    most_s: float | None


@dataclass(frozen=True, slots=True)
class PartPlan:
    """The plan of a tile.

    Attributes
    ----------
    found
        Placements, nodes numbered within the tile; the best first.
    score
        The score of the best one: simulated, or as the surrogate estimates it.
    """

    found: tuple[RangesItems, ...]
    score: float


NO_PLAN = PartPlan((), 0.0)
"""No request can pass the tile, or there was no time."""


def part_scenario(scenario: Scenario, part: PlanningProblem, share: float) -> Scenario:
    """The scenario of some of the nodes, with their share of the load.

    A front end passes over nodes to which it would send too small a share of the requests of the
    whole cluster: of the part's own requests, that is a greater share.
    """
    scheduler = scenario.scheduler
    if scheduler.min_flow_share < share:
        scheduler = replace(scheduler, min_flow_share=scheduler.min_flow_share / share)
    front_ends = part.cluster.front_ends
    total = sum(front_end.share for front_end in front_ends)
    return replace(
        scenario,
        cluster=replace(
            part.cluster,
            front_ends=tuple(replace(each, share=each.share / total) for each in front_ends),
        ),
        placement=None,
        scheduler=scheduler,
        workload=shared_load(scenario.workload, share),
    )


def shared_load(workload: Workload, share: float) -> Workload:
    """A workload with a share of its requests; the lengths of requests stay as they are."""
    if workload.mode == "offline":
        return replace(workload, initial_requests=max(1, round(workload.initial_requests * share)))
    if workload.mean_tokens_per_s is not None:
        return replace(workload, mean_tokens_per_s=workload.mean_tokens_per_s * share)
    return replace(workload, rate_scale=workload.rate_scale * share)


def plan_part(
    setting: Setting, problem: PlanningProblem, on_look: Callable[[], None], task: PartTask
) -> PartPlan:
    """Plan a tile.

    Parameters
    ----------
    setting, problem
        Of the whole cluster.
    on_look
        Called now and then.
    task
        The tile.
    """
    if setting.deadline is not None and monotonic() >= setting.deadline:
        return NO_PLAN
    part = problem.restricted(task.nodes)
    own_end = inf if task.most_s is None else monotonic() + task.most_s
    deadline = min(own_end, inf if setting.deadline is None else setting.deadline)
    own = replace(
        setting,
        scenario=part_scenario(setting.scenario, part, task.share),
        deadline=None if deadline == inf else deadline,
        constraints=part.constraints,
    )
    try:
        pool = TrialPool(own, part, 1, on_look)
        starts = _starts(part, task.starts, setting.max_stages)
        if not task.rounds:
            return _estimated(pool, starts)
        return _searched(pool, part, task, starts, deadline)
    except HelixError:
        return NO_PLAN


def transferred(plan: RangesItems, source: Sequence[int], target: Sequence[int]) -> RangesItems:
    """A plan of one tile for another that differs by some nodes.

    Parameters
    ----------
    plan
        The plan, nodes numbered within the tile.
    source, target
        The class of each node of the two tiles, in order.

    Returns
    -------
    tuple
        Nodes of one class take over the layers of that class, one by one. Where there are more of
        them than before, the first layers are taken once more; some may hold nothing.
    """
    held: dict[int, list[tuple[int, int]]] = {}
    for node, span in sorted(plan):
        held.setdefault(source[node], []).append(span)
    found: list[tuple[int, tuple[int, int]]] = []
    taken: dict[int, int] = {}
    for node, kind in enumerate(target):
        if spans := held.get(kind):
            number = taken[kind] = taken.get(kind, -1) + 1
            found.append((node, spans[number % len(spans)]))
    return tuple(found)


def _starts(
    part: PlanningProblem, given: Sequence[RangesItems], max_stages: int | None
) -> list[RangesItems]:
    """The starts through which requests can pass, and the replicas of the tile."""
    every = (*given, _items(replica_ranges(part)))
    found = (allowed(part, dict(each), max_stages) for each in every)
    return [_items(each) for each in found if each]


def _items(ranges: Ranges) -> RangesItems:
    return tuple(sorted(ranges.items()))


def _estimated(pool: TrialPool, starts: Sequence[RangesItems]) -> PartPlan:
    """The best placements by estimate: annealings from templates, and the starts as they are."""
    setting = pool.setting
    budget = setting.budget
    left_s = None if setting.deadline is None else setting.deadline - monotonic()
    tasks = [
        AnnealingTask(
            starts[0] if starts else (),
            place,
            setting.objective,
            ("tile", place),
            budget.tile_steps,
            heat,
            Correction(),
            None if left_s is None else left_s / len(budget.tile_heats),
        )
        for place, heat in enumerate(budget.tile_heats)
    ]
    proposer = pool.proposer
    found = {each.ranges: each.score for one in pool.anneal(tasks) for each in one}
    proposer.use(setting.objective, Correction())
    for start in starts:
        found.setdefault(start, proposer.score(dict(start)))
    best = sorted((Proposal(*item) for item in found.items()), key=lambda each: -each.score)
    if not best or best[0].score <= 0:
        return NO_PLAN
    kept = best[: budget.tile_starts]
    return PartPlan(tuple(each.ranges for each in kept), kept[0].score)


def _searched(
    pool: TrialPool,
    part: PlanningProblem,
    task: PartTask,
    starts: Sequence[RangesItems],
    deadline: float,
) -> PartPlan:
    """The best placement by a search with simulations of the tile alone."""
    setting = pool.setting
    search = SimulatedSearch(
        setting.scenario,
        part,
        setting.objective,
        pool,
        effort=Effort(1, task.rounds, setting.budget.tile_annealings),
        budget=setting.budget,
        left_s=lambda: deadline - monotonic(),
    )
    search.run([(f"start {n}", part.placement(dict(start))) for n, start in enumerate(starts)])
    best = search.standings()[0]
    return PartPlan((_items(best.candidate.ranges),), best.score)

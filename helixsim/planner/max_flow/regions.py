"""Large clusters with slow links: per region, a separate chain or one segment of a common chain.

A region is a group of nodes whose links to each other never bind. Within a region, blocks combine
freely. The links between regions bind, so a common chain passes from one region to the next only
once, from and to as many nodes as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from helixsim.planner.max_flow.column_generation import (
    Block,
    assign,
    choose_blocks,
    generate_blocks,
)
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import FlowSearch
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget


def regions(problem: PlanningProblem) -> list[list[int]]:
    """Groups of nodes with links between all pairs, in both directions, that never bind.

    A link never binds if it carries the highest throughput of any node. Every node joins the
    first group to all of whose nodes it has such links.
    """
    most = max(max(kind.tokens_per_s) for kind in problem.kinds)
    links = problem.link_tokens_per_s
    fast = (links >= most) & (most <= links.T)
    groups: list[list[int]] = []
    for node in range(len(problem)):
        for group in groups:
            if fast[node, group].all():
                group.append(node)
                break
        else:
            groups.append([node])
    return groups


def self_sufficient_groups(
    problem: PlanningProblem, budget: SearchBudget = DEFAULT_BUDGET
) -> list[list[int]]:
    """Merge every region that cannot hold the LLM with the one that it has the fastest links to."""
    groups = regions(problem)
    links = problem.link_tokens_per_s

    def room(group: Sequence[int]) -> float:
        return sum(problem.max_layers(node) for node in group) / problem.num_layers

    def between(one: Sequence[int], other: Sequence[int]) -> float:
        there, back = links[np.ix_(one, other)], links[np.ix_(other, one)]
        return float(min(there.mean(), back.mean()))

    while len(groups) > 1:
        smallest = min(range(len(groups)), key=lambda at: room(groups[at]))
        group = groups[smallest]
        rest = [other for at, other in enumerate(groups) if at != smallest]
        small = [other for other in rest if len(other) + len(group) <= budget.region_group_nodes]
        if room(group) >= budget.region_ample or (room(group) >= 1 and not small):
            break
        partners = small or rest
        partner = max(range(len(partners)), key=lambda at: between(group, partners[at]))
        merged = sorted(group + partners[partner])
        groups = [other for other in rest if other is not partners[partner]] + [merged]
    return sorted(groups)


def separate_chains(search: FlowSearch, optimise: Callable[[FlowSearch], None]) -> None:
    """Optimise every self-sufficient group separately, and report all of them as one placement.

    Parameters
    ----------
    search
        Options, and where to report.
    optimise
        The method that plans one group.
    """
    problem = search.problem
    groups = self_sufficient_groups(problem, search.budget)
    if len(groups) < 2:
        return
    together: dict[int, tuple[int, int]] = {}
    for number, group in enumerate(groups):
        if search.out_of_time:
            return
        part = replace(
            search,
            problem=problem.restricted(group),
            time_limit_s=None
            if search.time_limit_s is None
            else search.elapsed_s() + search.left_s / (len(groups) - number + 1),
            on_change=lambda _: None,
            ranges={},
            value=0.0,
            bound=float("inf"),
            trace=[],
        )
        optimise(part)
        together |= {group[node]: layers for node, layers in part.ranges.items()}
        search.offer(together)


def one_chain(search: FlowSearch) -> None:
    """Search for a chain with one segment per region, by bisection over its flow.

    Segments are blocks, which put no limit on the length of routes, so this does not apply where
    stages are limited.
    """
    groups = sorted(regions(search.problem), key=lambda group: (-len(group), group))
    parts = [search.problem.restricted(group) for group in groups]
    low, high = search.bound * search.budget.region_floor, search.bound
    while high > low * (1 + search.budget.region_precision) and not search.out_of_time:
        target = (low + high) / 2
        segments = [_segment(search, part, target) for part in parts]
        if sum(b.num_layers for blocks in segments for b in blocks) < search.problem.num_layers:
            high = target
            continue
        ranges: dict[int, tuple[int, int]] = {}
        start = 0
        for group, part, blocks in zip(groups, parts, segments, strict=True):
            placed = assign(part, _wide_at_the_ends(blocks), start)
            ranges |= {group[node]: layers for node, layers in placed.items()}
            start += sum(block.num_layers for block in blocks)
        search.offer(ranges)
        low = target


def _segment(search: FlowSearch, part: PlanningProblem, target: float) -> list[Block]:
    """The blocks with the most layers through which a region carries a target."""
    longest = min(search.budget.region_longest_block, search.problem.num_layers)
    blocks = generate_blocks(
        part.kinds,
        target,
        1,
        longest=longest,
        solver=search.solver,
        budget=search.budget,
        stop=lambda: search.out_of_time,
    )
    if not blocks or search.out_of_time:
        return []
    return choose_blocks(
        part.kinds,
        blocks,
        solver=search.solver,
        seed=search.seed,
        max_seconds=search.left_s,
        budget=search.budget,
    )


def _wide_at_the_ends(blocks: Sequence[Block]) -> list[Block]:
    """Order blocks so that many nodes hold the first layer of the segment, and many its last."""
    left = sorted(blocks, key=lambda block: (len(block.pieces), block.pieces))
    if len(left) < 2:
        return left
    last = max(range(len(left)), key=lambda at: _num_exits(left[at]))
    end = left.pop(last)
    first = max(range(len(left)), key=lambda at: _num_entries(left[at]))
    begin = left.pop(first)
    return [begin, *left, end]


def _num_entries(block: Block) -> int:
    return sum(offset == 0 for _, offset, _ in block.pieces)


def _num_exits(block: Block) -> int:
    return sum(offset + length == block.num_layers for _, offset, length in block.pieces)

"""Large clusters with slow links: one segment of the chain, or a chain of its own, per region.

A region is a group of nodes joined by links that never bind. Within regions, blocks can be put
together freely; links bind only where a chain leaves one region for the next, and it does so
once per region, from and to as many nodes as can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from helixsim.planner.max_flow.block_chains import assign
from helixsim.planner.max_flow.column_generation import Block, choose_blocks, worthwhile_blocks
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import Search

_LONGEST_BLOCK = 24
_PRECISION = 2e-3
_MAX_GROUP = 50
"""Nodes of a group without fast links, at most: more take too long to anneal."""
_AMPLE = 2.5
"""A group that could hold the LLM so many times is large enough for itself."""


def regions(problem: PlanningProblem) -> list[list[int]]:
    """Groups of nodes that are joined by links as fast as any node computes, both ways.

    Every node goes to the first group that it has such links with all nodes of.
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


def self_sufficient_groups(problem: PlanningProblem) -> list[list[int]]:
    """Merge regions that cannot hold the LLM with those that they have the fastest links to."""
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
        small = [other for other in rest if len(other) + len(group) <= _MAX_GROUP]
        if room(group) >= _AMPLE or (room(group) >= 1 and not small):
            break
        partners = small or rest
        partner = max(range(len(partners)), key=lambda at: between(group, partners[at]))
        merged = sorted(group + partners[partner])
        groups = [other for other in rest if other is not partners[partner]] + [merged]
    return sorted(groups)


def separate_chains(search: Search, optimise: Callable[[Search], None]) -> None:
    """Optimise every self-sufficient group for itself; all groups together are one placement.

    Parameters
    ----------
    search
        Where to report to.
    optimise
        What to do for a group.
    """
    problem = search.problem
    groups = self_sufficient_groups(problem)
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


def one_chain(search: Search) -> None:
    """Look for a chain with one segment per region, by bisection over its flow.

    Segments are blocks, whose routes may have any length, so this is of no use where stages are
    capped.
    """
    groups = sorted(regions(search.problem), key=lambda group: (-len(group), group))
    parts = [search.problem.restricted(group) for group in groups]
    low, high = search.bound / 8, search.bound
    while high > low * (1 + _PRECISION) and not search.out_of_time:
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


def _segment(search: Search, part: PlanningProblem, target: float) -> list[Block]:
    """The most layers that a region can carry a target through."""
    longest = min(_LONGEST_BLOCK, search.problem.num_layers)
    blocks = worthwhile_blocks(
        part.kinds,
        target,
        1,
        longest=longest,
        solver=search.solver,
        stop=lambda: search.out_of_time,
    )
    if not blocks or search.out_of_time:
        return []
    return choose_blocks(
        part.kinds, blocks, solver=search.solver, seed=search.seed, max_seconds=search.left_s
    )


def _wide_at_the_ends(blocks: Sequence[Block]) -> list[Block]:
    """Order blocks so that many nodes stand at the first layer and at the last."""
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

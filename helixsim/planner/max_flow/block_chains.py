"""A chain of blocks: the optimiser for clusters whose links never bind."""

from __future__ import annotations

from collections.abc import Sequence

from helixsim.planner.max_flow.column_generation import Block, choose_blocks, worthwhile_blocks
from helixsim.planner.max_flow.dinic import flow_value
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.search import Search

_LONGEST_BLOCK = 36
_PRECISION = 2e-4
"""Relative width at which the bisection ends."""


def combine_blocks(search: Search) -> None:
    """Look for chains of blocks that carry more and more than what was found, by bisection.

    Chains of blocks may have routes of any length, so this is of no use where stages are capped.
    """
    low, high = max(search.value, search.bound / 2), search.bound
    while high > low * (1 + _PRECISION) and not search.out_of_time and not search.optimal:
        target = (low + high) / 2
        ranges = chain_of_blocks(search, target)
        if ranges is None:
            high = target
        else:
            value = flow_value(search.problem, ranges)
            search.offer(ranges, value)
            low = max(target, value)


def chain_of_blocks(search: Search, target: float) -> Ranges | None:
    """Build a chain that carries a target, or give None if it does not work out."""
    problem, layers = search.problem, search.problem.num_layers
    blocks = worthwhile_blocks(
        problem.kinds,
        target,
        layers,
        longest=min(_LONGEST_BLOCK, layers),
        solver=search.solver,
        stop=lambda: search.out_of_time,
    )
    if not blocks:
        return None
    chosen = choose_blocks(
        problem.kinds, blocks, solver=search.solver, seed=search.seed, max_seconds=search.left_s
    )
    if sum(block.num_layers for block in chosen) < layers:
        return None
    return assign(problem, chosen)


def assign(problem: PlanningProblem, blocks: Sequence[Block], start: int = 0) -> Ranges:
    """Give every piece of every block a node of its kind, from a layer on.

    What sticks out after the last layer is cut off.
    """
    waiting: list[list[int]] = [[] for _ in problem.kinds]
    for node in reversed(range(len(problem))):
        waiting[problem.kind_of[node]].append(node)
    ranges: dict[int, tuple[int, int]] = {}
    for block in blocks:
        for kind, offset, length in block.pieces:
            first = start + offset
            if first < problem.num_layers:
                last = min(first + length, problem.num_layers)
                ranges[waiting[kind].pop()] = (first, last)
        start += block.num_layers
    return ranges

"""Small random changes of an ordered list of stages, for annealing.

A state is a list of stages, each with the numbers of its nodes in ascending order, and the list
of idle nodes. A move returns a new state without changing the old one, or None where it does not
apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

MAX_STAGE_SIZE = 7
"""Most nodes of a stage: cuts are minimised over all subsets of its nodes."""

Nodes = tuple[int, ...]
State = tuple[list[Nodes], list[int]]


def random_move(
    stages: list[Nodes], idle: list[int], kind_of: Sequence[int], rng: Random
) -> State | None:
    """Try one random move; half of the moves keep the kinds of nodes in every stage."""
    # Several times as fast as rng.choices, which matters for a million moves.
    choice = int(rng.random() * 2 * len(_MOVES))
    if choice >= len(_MOVES):
        return _swap_alike(stages, idle, kind_of, rng)
    return _MOVES[choice](stages, idle, rng)


def _index(length: int, rng: Random) -> int:
    return int(rng.random() * length)


def _exchange(nodes: Nodes, old: int, new: int) -> Nodes:
    return tuple(sorted(new if node == old else node for node in nodes))


def _swap_alike(
    stages: list[Nodes], idle: list[int], kind_of: Sequence[int], rng: Random
) -> State | None:
    """Swap a node with one of its kind that is in another stage or idle."""
    a, b = _index(len(stages), rng), _index(len(stages) + bool(idle), rng)
    x = stages[a][_index(len(stages[a]), rng)]
    others = stages[b] if b < len(stages) else idle
    alike = [node for node in others if kind_of[node] == kind_of[x]]
    if a == b or not alike:
        return None
    y = alike[_index(len(alike), rng)]
    stages = stages.copy()
    stages[a] = _exchange(stages[a], x, y)
    if b < len(stages):
        stages[b] = _exchange(stages[b], y, x)
    else:
        idle = [x if node == y else node for node in idle]
    return stages, idle


def _swap(stages: list[Nodes], idle: list[int], rng: Random) -> State | None:
    """Swap two nodes of different stages."""
    a, b = _index(len(stages), rng), _index(len(stages), rng)
    if a == b:
        return None
    x, y = stages[a][_index(len(stages[a]), rng)], stages[b][_index(len(stages[b]), rng)]
    stages = stages.copy()
    stages[a], stages[b] = _exchange(stages[a], x, y), _exchange(stages[b], y, x)
    return stages, idle


def _swap_idle(stages: list[Nodes], idle: list[int], rng: Random) -> State | None:
    """Replace a node by an idle one."""
    if not idle:
        return None
    a, i = _index(len(stages), rng), _index(len(idle), rng)
    x = stages[a][_index(len(stages[a]), rng)]
    stages, idle = stages.copy(), idle.copy()
    stages[a], idle[i] = _exchange(stages[a], x, idle[i]), x
    return stages, idle


def _shift(stages: list[Nodes], idle: list[int], rng: Random) -> State | None:
    """Move a node to another stage."""
    a, b = _index(len(stages), rng), _index(len(stages), rng)
    if a == b or len(stages[b]) >= MAX_STAGE_SIZE:
        return None
    x = stages[a][_index(len(stages[a]), rng)]
    stages = stages.copy()
    stages[b] = tuple(sorted((*stages[b], x)))
    stages[a] = tuple(node for node in stages[a] if node != x)
    return [nodes for nodes in stages if nodes], idle


def _move_stage(stages: list[Nodes], idle: list[int], rng: Random) -> State | None:
    """Move a stage to another position."""
    if len(stages) < 3:
        return None
    stages = stages.copy()
    nodes = stages.pop(_index(len(stages), rng))
    stages.insert(_index(len(stages) + 1, rng), nodes)
    return stages, idle


def _reverse(stages: list[Nodes], idle: list[int], rng: Random) -> State | None:
    """Reverse the order of consecutive stages."""
    a, b = sorted((_index(len(stages) + 1, rng), _index(len(stages) + 1, rng)))
    if b - a < 2:
        return None
    return stages[:a] + stages[a:b][::-1] + stages[b:], idle


def _join(stages: list[Nodes], idle: list[int], rng: Random) -> State | None:
    """Merge a stage into another one."""
    a, b = _index(len(stages), rng), _index(len(stages), rng)
    if a == b or len(stages[a]) + len(stages[b]) > MAX_STAGE_SIZE:
        return None
    stages = stages.copy()
    stages[b] = tuple(sorted(stages[a] + stages[b]))
    del stages[a]
    return stages, idle


def _split(stages: list[Nodes], idle: list[int], rng: Random) -> State | None:
    """Split a stage in two, the second part at a random position."""
    a = _index(len(stages), rng)
    if len(stages[a]) < 2:
        return None
    first = [node for node in stages[a] if rng.random() < 0.5]
    second = tuple(node for node in stages[a] if node not in first)
    if not first or not second:
        return None
    stages = stages.copy()
    stages[a] = tuple(first)
    stages.insert(_index(len(stages) + 1, rng), second)
    return stages, idle


def _retire(stages: list[Nodes], idle: list[int], rng: Random) -> State | None:
    """Make a node idle."""
    a = _index(len(stages), rng)
    x = stages[a][_index(len(stages[a]), rng)]
    left = tuple(node for node in stages[a] if node != x)
    if not left and len(stages) == 1:
        return None
    return stages[:a] + ([left] if left else []) + stages[a + 1 :], [*idle, x]


def _recruit(stages: list[Nodes], idle: list[int], rng: Random) -> State | None:
    """Add an idle node to a stage, or as a stage of its own."""
    if not idle:
        return None
    idle = idle.copy()
    x = idle.pop(_index(len(idle), rng))
    stages = stages.copy()
    if rng.random() < 0.4:
        stages.insert(_index(len(stages) + 1, rng), (x,))
        return stages, idle
    a = _index(len(stages), rng)
    if len(stages[a]) >= MAX_STAGE_SIZE:
        return None
    stages[a] = tuple(sorted((*stages[a], x)))
    return stages, idle


_MOVES: list[Callable[[list[Nodes], list[int], Random], State | None]] = [
    *(_swap, _swap, _move_stage, _move_stage, _move_stage, _reverse, _reverse, _reverse),
    *(_shift, _swap_idle, _swap_idle, _join, _split, _retire, _recruit, _recruit),
]
"""Moves that change the kinds in a stage or the order; repeated ones are tried more often."""

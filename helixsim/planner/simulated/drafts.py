"""Drafts: placements as a person writes them, by groups of alike nodes, stages and layers.

A draft has one or several *pipelines* side by side, each of which holds the whole LLM in *blocks*,
one after another. A block has one or several groups of alike nodes that hold the same layers side
by side, and each group divides these among equal *stages*, with the nodes of a stage side by side
too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice, pairwise, permutations

WIDTH_STEPS = (8, 4, 2, 1)
"""Numbers of layers that move from one block to another: large steps first, as many layers often
have to move, and each on its own would be a loss."""
_ALL_ORDERS = 4
"""Blocks of a pipeline up to which all of their orders are tried; of more, exchanges of two."""
_MOST_CHANGES = 50_000
"""Changes of a draft that are looked at before the next gain: most changes of many blocks fit no
nodes, and double moves are millions. All of seven blocks are fewer."""


@dataclass(frozen=True, slots=True)
class StagedGroup:
    """Alike nodes, dealt to stages in turn.

    Attributes
    ----------
    nodes
        Numbers of the nodes.
    stages
        Number of stages.
    most
        Most layers of one node.
    """

    nodes: tuple[int, ...]
    stages: int
    most: int

    def ranges(self, start: int, width: int) -> dict[int, tuple[int, int]]:
        """Layers of each node where the group has `width` layers from `start`.

        Empty if a stage would have none, or more than a node can hold.
        """
        bounds = [start + round(width * n / self.stages) for n in range(self.stages + 1)]
        if not all(0 < end - begin <= self.most for begin, end in pairwise(bounds)):
            return {}
        return {
            node: (bounds[place % self.stages], bounds[place % self.stages + 1])
            for place, node in enumerate(self.nodes)
        }


@dataclass(frozen=True, slots=True)
class Block:
    """Groups that hold the same `width` layers side by side."""

    groups: tuple[StagedGroup, ...]
    width: int


Pipeline = tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """Pipelines side by side."""

    pipelines: tuple[Pipeline, ...]

    def ranges(self) -> dict[int, tuple[int, int]]:
        """The placement; empty if the layers do not fit the nodes."""
        found: dict[int, tuple[int, int]] = {}
        for pipeline in self.pipelines:
            start = 0
            for block in pipeline:
                for group in block.groups if block.width else ():
                    own = group.ranges(start, block.width)
                    if not own:
                        return {}
                    found |= own
                start += block.width
        return found

    def changes(self) -> Iterator[Draft]:
        """Drafts with one change: layers moved, blocks exchanged, other stages."""
        yield from self._changed(_moved)
        yield from self._changed(_rearranged)

    def double_moves(self) -> Iterator[Draft]:
        """Drafts with layers moved twice.

        Nodes often hold as much as they can, so that a single move loses whatever it gains.
        """
        for changed in self._changed(_moved):
            yield from changed._changed(_moved)

    def orders(self, most: int) -> Iterator[Draft]:
        """The draft, its reverse, and others with the blocks of one pipeline in another order.

        Their scores differ little, so that simulations have to choose.
        """
        yield self
        yield Draft(tuple(pipeline[::-1] for pipeline in self.pipelines))
        for place, pipeline in enumerate(self.pipelines):
            orders = _exchanged(pipeline)
            if len(pipeline) <= _ALL_ORDERS:
                orders = islice(permutations(pipeline), 1, None)
            for order in islice(orders, most):
                yield Draft((*self.pipelines[:place], order, *self.pipelines[place + 1 :]))

    def _changed(self, change: Callable[[Pipeline], Iterator[Pipeline]]) -> Iterator[Draft]:
        for place, pipeline in enumerate(self.pipelines):
            for changed in change(pipeline):
                yield Draft((*self.pipelines[:place], changed, *self.pipelines[place + 1 :]))


def _moved(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Layers moved from one block to another."""
    for step in WIDTH_STEPS:
        for a, b in permutations(range(len(pipeline)), 2):
            if pipeline[a].width >= step:
                changed = list(pipeline)
                changed[a] = replace(pipeline[a], width=pipeline[a].width - step)
                changed[b] = replace(pipeline[b], width=pipeline[b].width + step)
                yield tuple(changed)


def _exchanged(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Two blocks exchanged."""
    for a, b in combinations(range(len(pipeline)), 2):
        changed = list(pipeline)
        changed[a], changed[b] = pipeline[b], pipeline[a]
        yield tuple(changed)


def _rearranged(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Two blocks exchanged, or a group with another number of stages."""
    yield from _exchanged(pipeline)
    for place, block in enumerate(pipeline):
        for number, group in enumerate(block.groups):
            for stages in range(1, len(group.nodes) + 1):
                if stages != group.stages and len(group.nodes) % stages == 0:
                    groups = list(block.groups)
                    groups[number] = replace(group, stages=stages)
                    changed = list(pipeline)
                    changed[place] = replace(block, groups=tuple(groups))
                    yield tuple(changed)


def improved(
    draft: Draft,
    score: Callable[[dict[int, tuple[int, int]], float], float],
    most_scores: int,
    out_of_time: Callable[[], bool] = lambda: False,
) -> tuple[Draft, int]:
    """Change a draft for as long as single changes raise its score.

    Parameters
    ----------
    draft
        A draft whose layers fit.
    score
        Score of a placement, exact where it is above the second argument.
    most_scores
        Number of scores after which the climb ends.
    out_of_time
        True ends the climb.

    Returns
    -------
    tuple
        The best draft, and the number of scores computed.
    """

    def all_changes(of: Draft) -> Iterator[Draft]:
        return islice(chain(of.changes(), of.double_moves()), _MOST_CHANGES)

    best, count = score(draft.ranges(), 0.0), 0
    changes = all_changes(draft)
    while (changed := next(changes, None)) is not None:
        ranges = changed.ranges()
        if not ranges:
            continue
        if count >= most_scores or out_of_time():
            break
        count += 1
        found = score(ranges, best)
        if found > best:
            draft, best = changed, found
            changes = all_changes(draft)
    return draft, count

"""Placements by templates: what a person would try first, drawn at random.

A template deals the nodes to one or several *pipelines* side by side, each of which holds the whole
LLM. In a pipeline, groups of alike nodes come one after another, region by region, or two groups
hold the same layers side by side. A group is divided into stages, with the nodes of a stage side by
side too: four nodes are a chain of four, two by two, or four replicas. Layers are dealt in
proportion to what the nodes compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from helixsim.planner.problem import PlanningProblem
from helixsim.planner.simulated.alike import AlikeNodes
from helixsim.planner.simulated.allowed import allowed
from helixsim.planner.simulated.drafts import Block, Draft, Pipeline, StagedGroup, improved
from helixsim.planner.simulated.proposals import (
    Archive,
    Proposal,
    Proposer,
    Structure,
    structure,
)

_SEVERAL_PIPELINES = (1, 1, 1, 2, 2, 3)
"""Numbers of pipelines, each as often as it is drawn."""
_SIDE_BY_SIDE = 0.35
"""Probability that a group holds the same layers as the one before it."""
_MIXED_SITES = 0.15
"""Probability that the order of groups does not keep sites together."""
_OWN_ORDER = 0.3
"""Probability that a pipeline has another order of groups than the others."""
_LEFT_OUT = 0.1
"""Probability that a group is left out."""
_WHOLE_GROUPS = 0.6
"""Probability that a group goes to one pipeline, and is not dealt to all of them."""


class Templates:
    """Draws placements by templates.

    Parameters
    ----------
    problem, alike
        The planning problem, and its classes of alike nodes.
    site_of
        For every class, the number of its site.
    """

    def __init__(self, problem: PlanningProblem, alike: AlikeNodes, site_of: Sequence[int]) -> None:
        self._problem = problem
        self._alike = alike
        self._site_of = site_of
        constraints = problem.constraints
        usable = set(problem.usable_nodes()) - set(constraints.fixed)
        self._members = [[n for n in group if n in usable] for group in alike.members]
        # Layers x tokens/s of one node, at the number of layers where this is greatest.
        self._speed = [
            max(count * rate for count, rate in enumerate(kind.tokens_per_s))
            for kind in problem.kinds
        ]

    def draw(self, rng: Random) -> Draft:
        """A draft; its placement is empty if its layers do not fit the nodes.

        Nodes with fixed layers are left out, and so are nodes that are to hold none. Where requests
        stay in one region, each region has pipelines of its own, as far as they fit.
        """
        if not self._problem.constraints.same_region:
            return Draft(tuple(self._draw(self._order(rng), rng)))
        regions: dict[str, list[int]] = {}
        for number in self._order(rng):
            region = self._problem.cluster.nodes[self._alike.members[number][0]].region
            regions.setdefault(region, []).append(number)
        return Draft(tuple(each for own in regions.values() for each in self._draw(own, rng)))

    def _draw(self, classes: Sequence[int], rng: Random) -> list[Pipeline]:
        """Pipelines of some classes of nodes; none if one of them cannot hold all layers."""
        found: list[Pipeline] = []
        for groups in self._pipelines(classes, rng):
            if rng.random() < _OWN_ORDER:
                rng.shuffle(groups)
            pipeline = self._pipeline(groups, rng)
            if not pipeline:
                return []
            found.append(pipeline)
        return found

    def _pipelines(self, classes: Sequence[int], rng: Random) -> list[list[list[int]]]:
        """Groups of nodes for each pipeline."""
        count = rng.choice(_SEVERAL_PIPELINES)
        dealt: list[list[list[int]]] = [[] for _ in range(count)]
        for number in classes:
            members = self._members[number]
            if not members or rng.random() < _LEFT_OUT:
                continue
            if count == 1 or rng.random() < _WHOLE_GROUPS:
                dealt[rng.randrange(count)].append(members)
                continue
            for place in range(count):
                if part := members[place::count]:
                    dealt[place].append(part)
        return dealt

    def _order(self, rng: Random) -> list[int]:
        """Classes in a random order, mostly site by site."""
        classes = list(range(len(self._alike.members)))
        rng.shuffle(classes)
        if rng.random() < _MIXED_SITES:
            return classes
        sites = list(dict.fromkeys(self._site_of[number] for number in classes))
        return sorted(classes, key=lambda number: sites.index(self._site_of[number]))

    def _pipeline(self, groups: Sequence[list[int]], rng: Random) -> Pipeline:
        """Blocks of some groups; empty if they cannot hold all layers."""
        blocks: list[list[list[int]]] = []
        for group in groups:
            if blocks and rng.random() < _SIDE_BY_SIDE:
                blocks[-1].append(group)
            else:
                blocks.append([group])
        widths = self._widths(blocks, rng.random())
        if sum(widths) < self._problem.num_layers:
            return ()
        return tuple(
            Block(tuple(self._staged(group, width, rng) for group in block), width)
            for block, width in zip(blocks, widths, strict=True)
        )

    def _widths(self, blocks: Sequence[list[list[int]]], room_share: float) -> list[int]:
        """Layers of each block; their sum may fall short.

        They are in proportion to the speed of its nodes, to their room for layers, or to a mix of
        both. A block holds at most what each of its groups can hold as a chain.
        """
        problem = self._problem
        room = [min(len(g) * problem.max_layers(g[0]) for g in block) for block in blocks]
        speed = [sum(len(g) * self._speed[problem.kind_of[g[0]]] for g in b) for b in blocks]
        all_room, all_speed = sum(room) or 1, sum(speed) or 1.0
        part = [
            room_share * r / all_room + (1 - room_share) * s / all_speed
            for r, s in zip(room, speed, strict=True)
        ]
        widths = [0] * len(blocks)
        for _ in range(min(problem.num_layers, sum(room))):
            # The next layer goes where it costs least.
            open_blocks = [n for n in range(len(blocks)) if widths[n] < room[n]]
            place = min(open_blocks, key=lambda n: (widths[n] + 1) / part[n])
            widths[place] += 1
        return widths

    def _staged(self, group: Sequence[int], width: int, rng: Random) -> StagedGroup:
        """Divide a group into stages of equal numbers of nodes, if any such division fits."""
        most = self._problem.max_layers(group[0])
        fewest = max(1, -(-width // most))
        counts = [count for count in range(fewest, len(group) + 1) if count <= max(1, width)]
        even = [count for count in counts if len(group) % count == 0]
        return StagedGroup(tuple(group), rng.choice(even or counts or [len(group)]), most)


def best_templates(
    proposer: Proposer, rng: Random, out_of_time: Callable[[], bool] = lambda: False
) -> list[Proposal]:
    """The placements by templates with the best scores, one of each structure, best first.

    Parameters
    ----------
    proposer
        Scores them; its budget says how many are drawn and how many kept.
    rng
        Source of random numbers.
    out_of_time
        Called now and then; true ends the drawing and the climbs.
    """
    problem, budget = proposer.problem, proposer.budget
    templates = Templates(problem, proposer.alike, proposer.surrogate.site_of)
    most_stages = proposer.neighbours.max_stages

    def placement(draft: Draft) -> dict[int, tuple[int, int]]:
        return proposer.alike.canonical(allowed(problem, draft.ranges(), most_stages))

    def score(ranges: dict[int, tuple[int, int]], least: float) -> float:
        found = proposer.alike.canonical(allowed(problem, ranges, most_stages))
        return proposer.score(found, least) if found else 0.0

    drafts: dict[Structure, tuple[float, Draft]] = {}
    for number in range(min(budget.templates, budget.templates_work // len(problem))):
        if number % budget.proposal_check_every == 0 and out_of_time():
            break
        draft = templates.draw(rng)
        ranges = placement(draft)
        if not ranges:
            continue
        found, key = proposer.score(ranges), structure(ranges)
        if key not in drafts or found > drafts[key][0]:
            drafts[key] = (found, draft)
    archive = Archive(budget.templates_kept)
    left = budget.templates_scores // len(problem)
    for found, draft in sorted(drafts.values(), key=lambda each: -each[0])[
        : budget.templates_climbed
    ]:
        if out_of_time():
            archive.add(placement(draft), found)
            continue
        better, count = improved(draft, score, left, out_of_time)
        left -= count
        for place, other in enumerate(better.orders(budget.templates_orders)):
            if place and out_of_time():
                break
            if ranges := placement(other):
                archive.add(ranges, proposer.score(ranges, archive.least))
    return archive.proposals()

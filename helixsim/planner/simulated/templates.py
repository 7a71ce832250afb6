"""Placements by templates: what a person would try first, drawn at random.

A template deals the nodes to one or several *pipelines* side by side, each of which holds the whole
LLM. In a pipeline, groups of alike nodes come one after another, region by region, or two groups
hold the same layers side by side. A group is divided into stages, with the nodes of a stage side by
side too: four nodes are a chain of four, two by two, or four replicas. Layers are dealt in
proportion to what the nodes compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

from helixsim.planner.problem import PlanningProblem
from helixsim.planner.simulated.alike import AlikeNodes
from helixsim.planner.simulated.allowed import allowed
from helixsim.planner.simulated.proposals import Archive, Proposal, Proposer

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

Block = list[list[int]]
"""Groups of nodes that hold the same layers side by side."""


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

    def draw(self, rng: Random) -> dict[int, tuple[int, int]]:
        """A placement; empty if the one that was drawn does not fit the nodes.

        Nodes with fixed layers are left out, and so are nodes that are to hold none. Where requests
        stay in one region, each region has pipelines of its own, as far as they fit.
        """
        if not self._problem.constraints.same_region:
            return self._draw(self._order(rng), rng)
        regions: dict[str, list[int]] = {}
        for number in self._order(rng):
            region = self._problem.cluster.nodes[self._alike.members[number][0]].region
            regions.setdefault(region, []).append(number)
        return {n: span for own in regions.values() for n, span in self._draw(own, rng).items()}

    def _draw(self, classes: Sequence[int], rng: Random) -> dict[int, tuple[int, int]]:
        found: dict[int, tuple[int, int]] = {}
        for groups in self._pipelines(classes, rng):
            if rng.random() < _OWN_ORDER:
                rng.shuffle(groups)
            pipeline = self._pipeline(groups, rng)
            if not pipeline:
                return {}
            found |= pipeline
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

    def _pipeline(self, groups: Sequence[list[int]], rng: Random) -> dict[int, tuple[int, int]]:
        blocks: list[Block] = []
        for group in groups:
            if blocks and rng.random() < _SIDE_BY_SIDE:
                blocks[-1].append(group)
            else:
                blocks.append([group])
        widths = self._widths(blocks)
        if sum(widths) < self._problem.num_layers:
            return {}
        found: dict[int, tuple[int, int]] = {}
        start = 0
        for block, width in zip(blocks, widths, strict=True):
            for group in block:
                if width:
                    found |= self._staged(group, start, width, rng)
            start += width
        return found

    def _widths(self, blocks: Sequence[Block]) -> list[int]:
        """Layers of each block, in proportion to the speed of its nodes; their sum may fall short.

        A block holds at most what each of its groups can hold as a chain.
        """
        problem = self._problem
        room = [min(len(g) * problem.max_layers(g[0]) for g in block) for block in blocks]
        speed = [sum(len(g) * self._speed[problem.kind_of[g[0]]] for g in b) for b in blocks]
        widths = [0] * len(blocks)
        for _ in range(min(problem.num_layers, sum(room))):
            # The next layer goes where it costs least.
            open_blocks = [n for n in range(len(blocks)) if widths[n] < room[n]]
            place = min(open_blocks, key=lambda n: (widths[n] + 1) / speed[n])
            widths[place] += 1
        return widths

    def _staged(
        self, group: Sequence[int], start: int, width: int, rng: Random
    ) -> dict[int, tuple[int, int]]:
        """Divide a group into stages of about equal numbers of nodes and layers."""
        most = self._problem.max_layers(group[0])
        fewest = -(-width // most)
        counts = [count for count in range(fewest, len(group) + 1) if count <= width]
        even = [count for count in counts if len(group) % count == 0]
        stages = rng.choice(even or counts)
        bounds = [start + round(width * n / stages) for n in range(stages + 1)]
        if max(b - a for a, b in pairwise(bounds)) > most:
            stages = len(group)
            bounds = [start + round(width * n / stages) for n in range(stages + 1)]
        return {
            node: (bounds[place % stages], bounds[place % stages + 1])
            for place, node in enumerate(group)
            if bounds[place % stages] < bounds[place % stages + 1]
        }


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
        Called now and then; true ends the drawing.
    """
    problem, budget = proposer.problem, proposer.budget
    templates = Templates(problem, proposer.alike, proposer.surrogate.site_of)
    archive = Archive(budget.templates_kept)
    most = proposer.neighbours.max_stages
    for number in range(min(budget.templates, budget.templates_work // len(problem))):
        if number % budget.proposal_check_every == 0 and out_of_time():
            break
        drawn = proposer.alike.canonical(allowed(problem, templates.draw(rng), most))
        if drawn:
            archive.add(drawn, proposer.score(drawn, archive.least))
    return archive.proposals()

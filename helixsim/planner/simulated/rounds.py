"""The proposals of one round: which annealings run, and which of their results are simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp

from helixsim.planner.objective import Limit, Objective
from helixsim.planner.search import random_stream
from helixsim.planner.search_budget import SearchBudget
from helixsim.planner.simulated.alike import Key
from helixsim.planner.simulated.candidates import LATENCY, OWN, Candidate
from helixsim.planner.simulated.correction import Correction
from helixsim.planner.simulated.entries import Entries
from helixsim.planner.simulated.proposals import Proposal, Proposer, structure
from helixsim.planner.simulated.standings import Standing
from helixsim.planner.simulated.tasks import AnnealingTask, RangesItems


class Rounds:
    """Proposes candidates round by round.

    Parameters
    ----------
    objective
        The objective of the search.
    entries
        Takes candidates.
    proposer
        Scores neighbours.
    seed
        Seed of the search.
    budget
        How much to try.
    """

    def __init__(
        self,
        objective: Objective,
        entries: Entries,
        proposer: Proposer,
        seed: int,
        budget: SearchBudget,
    ) -> None:
        self.objective = objective
        self._entries = entries
        self._proposer = proposer
        self._seed = seed
        self._budget = budget

    def annealings(
        self,
        number: int,
        count: int,
        standings: Sequence[Standing],
        correction: Correction,
        most_s: float | None,
    ) -> list[AnnealingTask]:
        """Annealings from the best candidates and from templates, by turns.

        Parameters
        ----------
        number
            Number of the round, from 0.
        count
            Number of annealings.
        standings, correction
            What is known so far.
        most_s
            Seconds after which each one ends early; None for no limit.
        """
        budget = self._budget
        parents = self._within_room(standings)
        nodes = len(self._proposer.problem)
        steps = budget.proposal_work // nodes
        steps = min(
            budget.proposal_steps,
            nodes * budget.proposal_node_steps,
            max(budget.proposal_least_steps, steps),
        )
        scale = max(1.0, budget.proposal_heat_nodes / nodes)
        alike = self._proposer.alike
        known = frozenset(alike.key(each.ranges) for each in self._entries.pool if each.is_tried)
        tasks = []
        for place in range(count):
            start: RangesItems = ()
            # The first annealings start from templates as often as from the starts.
            template = None if parents and place % 2 == 0 else number * (count // 2) + place // 2
            if parents:
                parent = parents[place // 2 % min(len(parents), budget.proposal_parents)]
                start = tuple(sorted(parent.candidate.ranges.items()))
            objective = self.objective
            if place == count - 1 and count > 1:
                objective = self._tighter(number, parents)
            tasks.append(
                AnnealingTask(
                    start,
                    template,
                    objective,
                    ("anneal", number, place),
                    steps,
                    scale
                    * budget.proposal_heats[(place // 2 + number) % len(budget.proposal_heats)],
                    correction,
                    most_s,
                    # The best ones are known from the rounds before. Half of the annealings give
                    # the next ones of their structures, the others further structures.
                    budget.proposal_archive + number * budget.batch,
                    known if place // 2 % 2 else frozenset(),
                )
            )
        return tasks

    def _tighter(self, number: int, parents: Sequence[Standing]) -> Objective:
        """The objective with a tighter limit on the latency, for candidates along the front."""
        latency = parents[0].candidate.figures.get(LATENCY) if parents else None
        if latency is None:
            return self.objective
        shares = self._budget.proposal_tighter
        limit = Limit(LATENCY, True, latency * shares[number % len(shares)])
        return replace(self.objective, limits=(*self.objective.limits, limit))

    def diverse(
        self,
        proposed: Sequence[Sequence[Proposal]],
        number: int,
        standings: Sequence[Standing],
        correction: Correction,
    ) -> list[Candidate]:
        """New candidates of different structure, by their expected scores.

        The last annealing has an objective of its own, and gives one candidate.
        """
        *common, last = proposed
        ordered = sorted(
            (proposal for found in common for proposal in found), key=lambda each: -each.score
        )
        found: list[Candidate] = []
        structures: set[object] = set()
        for proposal in [*last[:1], *ordered]:
            if len(found) >= self._budget.batch:
                break
            ranges = dict(proposal.ranges)
            shape = structure(ranges)
            if shape in structures:
                continue
            added = self._entries.add(f"proposal {number + 1}.{len(found) + 1}", ranges)
            if added is not None and added not in found:
                structures.add(shape)
                found.append(added)
        wanted = self._budget.batch - len(found)
        if number:
            wanted = max(wanted, self._least_neighbours(correction))
        neighbours = self._neighbours(wanted, number, standings, correction)
        return found + [each for each in neighbours if each not in found]

    def _least_neighbours(self, correction: Correction) -> int:
        """The more the surrogate errs, the more neighbours of the best are simulated besides."""
        share = correction.error(self.objective.figure) / self._budget.neighbours_error
        return round(self._budget.batch * min(1.0, share))

    def _neighbours(
        self,
        count: int,
        number: int,
        standings: Sequence[Standing],
        correction: Correction,
    ) -> list[Candidate]:
        """New neighbours of the best candidate: where annealings find nothing new, errors decide.

        The surrogate's own optimum and the simulation's differ by small changes. The neighbours are
        drawn by what they might reach (Thompson sampling): where the surrogate is right, by its
        score; the more it errs, the more at random.
        """
        best = self._within_room(standings)
        proposer = self._proposer
        rng = random_stream(self._seed, "neighbours", number)
        proposer.use(self.objective, correction)
        found: list[Candidate] = []
        drawn: dict[Key, dict[int, tuple[int, int]]] = {}
        for _ in range(self._budget.neighbours if best and count > 0 else 0):
            changed = proposer.neighbours.draw(best[0].candidate.ranges, rng)
            drawn[proposer.alike.key(changed)] = proposer.alike.canonical(changed)
        error = correction.error(self.objective.figure)
        hopes = {
            key: proposer.score(ranges) * exp(error * rng.gauss(0.0, 1.0))
            for key, ranges in drawn.items()
        }
        for key in sorted(hopes, key=lambda key: -hopes[key]):
            ranges = drawn[key]
            if len(found) >= count:
                break
            added = self._entries.add(f"neighbour {number + 1}.{len(found) + 1}", ranges)
            if added is not None and added not in found:
                found.append(added)
        return found

    def promising_starts(
        self, proposed: Sequence[Candidate], standings: Sequence[Standing]
    ) -> list[Candidate]:
        """The scenario's own placement, and the starts whose estimates are near the best one."""
        own = [each for each in self._entries.pool if each.label == OWN and each not in proposed]
        best = max((standing.score for standing in standings), default=0.0)
        good = [
            standing.candidate
            for standing in standings
            if standing.score >= self._budget.start_promising * best
        ]
        others = [each for each in good if each not in own and each not in proposed]
        return [*own, *others[: self._budget.starts]]

    def _within_room(self, standings: Sequence[Standing]) -> list[Standing]:
        is_within_room = self._entries.is_within_room
        return [each for each in standings if is_within_room(each.candidate.ranges)]

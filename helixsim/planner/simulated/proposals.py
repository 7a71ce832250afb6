"""Proposals for simulation: annealing on the surrogate's score."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from math import log
from random import Random

from helixsim.control.control_plane import followed_flow
from helixsim.errors import HelixError
from helixsim.placement.placement import Placement
from helixsim.planner.constraints import move_cost
from helixsim.planner.objective import Objective
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.simulated.alike import AlikeNodes, Key
from helixsim.planner.simulated.correction import Correction
from helixsim.planner.simulated.estimates import NOTHING, Estimate, Loaded
from helixsim.planner.simulated.formulas import Formulas
from helixsim.planner.simulated.neighbourhood import Neighbours
from helixsim.planner.simulated.surrogate import Surrogate
from helixsim.scenario.resolved import Scenario


@dataclass(frozen=True, slots=True)
class Proposal:
    """A placement that the surrogate proposes.

    Attributes
    ----------
    ranges
        The placement, as items of ranges.
    score
        Its expected score.
    """

    ranges: tuple[tuple[int, tuple[int, int]], ...]
    score: float


class Proposer:
    """Scores and improves placements by the surrogate.

    Parameters
    ----------
    scenario, problem
        The scenario and its planning problem.
    objective
        The objective of the score.
    max_stages
        Most nodes of a route; None for any number.
    budget
        Temperatures, and what neighbours are drawn.
    """

    def __init__(
        self,
        scenario: Scenario,
        problem: PlanningProblem,
        objective: Objective,
        *,
        max_stages: int | None = None,
        budget: SearchBudget = DEFAULT_BUDGET,
    ) -> None:
        self.budget = budget
        self.scenario = scenario
        self.problem = problem
        self.surrogate = Surrogate(scenario, problem)
        self.formulas = Formulas.of_scenario(
            scenario, self.surrogate.prompt_tokens, self.surrogate.output_tokens
        )
        self.alike: AlikeNodes = self.surrogate.alike
        self.neighbours = Neighbours(problem, max_stages, budget)
        scheduler = scenario.scheduler
        self.spreads_evenly = (
            scheduler.policy not in ("maxflow", "adaptive") or scheduler.flow_split == "balanced"
        )
        self.use(objective, Correction())

    def use(self, objective: Objective, correction: Correction) -> None:
        """Score by an objective, and by figures that are corrected so."""
        self.objective = objective
        self.correction = correction
        self._known: dict[Key, tuple[float, bool]] = {}
        self._kept = 1.0

    # -- scores ------------------------------------------------------------------------------

    def estimate(self, placement: Placement) -> Estimate:
        """Estimate a placement with its own links, routed by the scenario's scheduler."""
        if self.spreads_evenly:
            return self.surrogate.of_ranges(self.problem.ranges(placement))
        topology = self.problem.topology(placement)
        flow = followed_flow(self.scenario, topology)
        return self.surrogate.of_flow(topology, flow, self.scenario.scheduler.min_flow_share)

    def expected(self, estimate: Estimate) -> dict[str, float]:
        """The expected figures of a simulation that the objective needs, corrected."""
        names = self.objective.figures
        return self.correction.figures(estimate, self.formulas, names)

    def score(self, ranges: Ranges, least: float = 0.0) -> float:
        """Score for the split that the scenario's scheduler follows.

        Parameters
        ----------
        ranges
            The placement, with all links that fit.
        least
            Scores below it need not be exact.

        Returns
        -------
        float
            The score, or a value up to `least` if it is not above that.
        """
        key = self.alike.key(ranges)
        known = self._known.get(key)
        if known is not None and (known[1] or known[0] <= least):
            return known[0]
        found, is_exact = self._score(ranges, least)
        if len(self._known) >= self.budget.proposal_remembered:
            self._known.clear()
        self._known[key] = (found, is_exact)
        return found

    def _score(self, ranges: Ranges, least: float) -> tuple[float, bool]:
        loaded = self.surrogate.loaded(ranges)
        if loaded is None:
            return 0.0, True
        price = move_cost(self.problem, ranges)
        if least > 0 and not self._may_exceed(loaded, least / self._kept + price):
            return least, False
        quick = self.objective.score(self.expected(self.surrogate.estimate(loaded)), price)
        if self.spreads_evenly:
            return quick, True
        if quick * self._kept <= least:
            return least, False
        try:
            estimate = self.estimate(self.problem.placement(ranges))
        except HelixError:
            estimate = NOTHING
        found = self.objective.score(self.expected(estimate), price)
        # An uneven split costs other placements about as much: the exact flow, which takes long,
        # is computed only for placements that could pass on this assumption.
        if found > least and quick > 0:
            self._kept = min(1.0, self.budget.proposal_lenience * found / quick)
        return found, True

    def _may_exceed(self, loaded: Loaded, least: float) -> bool:
        """Whether the throughput alone allows a figure above `least`: one test, no search."""
        figure = self.objective.figure
        needed = self.formulas.decode_tokens_per_s(
            figure, least / self.correction.ratio(figure, loaded.traits)
        )
        return needed is None or self.surrogate.reaches(loaded, needed)

    # -- search ------------------------------------------------------------------------------

    def anneal(
        self,
        start: Ranges,
        rng: Random,
        iterations: int,
        *,
        heat: float = 1.0,
        kept: int | None = None,
        known: Container[Key] = (),
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> list[Proposal]:
        """Improve a placement by simulated annealing.

        Parameters
        ----------
        start
            Initial placement.
        rng
            Source of random numbers.
        iterations
            Number of neighbours to try.
        heat
            Factor of the temperatures.
        kept
            Number of structures to return; None for as many as the budget says.
        known
            Keys of placements that are passed, but not returned.
        out_of_time
            Called now and then; true ends the annealing.

        Returns
        -------
        list
            The best placement of each structure that was passed, best first.
        """
        current, score = dict(start), self.score(start)
        archive = Archive(kept or self.budget.proposal_archive)
        if self.alike.key(current) not in known:
            archive.add(current, score)
        hot, cold = heat * self.budget.proposal_hot, heat * self.budget.proposal_cold
        check = self.budget.proposal_check_every
        for iteration in range(iterations):
            if iteration % check == 0 and out_of_time():
                break
            temperature = hot * (1 - iteration / iterations) ** 2 + cold
            changed = self.alike.canonical(self.neighbours.draw(current, rng))
            share = log(max(rng.random(), self.budget.proposal_least_share))
            least = score * (1 + temperature * share)
            found = self.score(changed, least)
            if found <= least:
                continue
            current, score = changed, found
            if self.alike.key(current) not in known:
                archive.add(current, score)
        return archive.proposals()


class Archive:
    """The best placement of each structure, of the best structures.

    Parameters
    ----------
    size
        Number of structures that are returned; three times as many are kept meanwhile.

    Attributes
    ----------
    least
        Scores up to this are not kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._best: dict[Structure, tuple[float, dict[int, tuple[int, int]]]] = {}
        self.least = 0.0

    def add(self, ranges: dict[int, tuple[int, int]], score: float) -> None:
        """Offer a placement."""
        if score <= self.least:
            return
        key = structure(ranges)
        known = self._best.get(key)
        if known is not None and known[0] >= score:
            return
        self._best[key] = (score, ranges)
        if len(self._best) > 3 * self._size:
            kept = self._sorted()[: self._size]
            self._best = dict(kept)
            self.least = kept[-1][1][0]

    def proposals(self) -> list[Proposal]:
        """The best ones, best first."""
        return [
            Proposal(tuple(sorted(ranges.items())), score)
            for _, (score, ranges) in self._sorted()[: self._size]
        ]

    def _sorted(self) -> list[tuple[Structure, tuple[float, dict[int, tuple[int, int]]]]]:
        return sorted(self._best.items(), key=lambda item: (-item[1][0], item[0]))


Structure = tuple[tuple[int, int, int], ...]
"""Rank of the first layer, rank of the end, and number, of every node in use, in order."""


def structure(ranges: Ranges) -> Structure:
    """What is left of a placement without the numbers of layers: which nodes follow which.

    Canonical placements of one structure differ only by where their nodes start and end.
    """
    points = sorted({point for span in ranges.values() for point in span})
    rank = {point: number for number, point in enumerate(points)}
    return tuple(sorted((rank[start], rank[end], node) for node, (start, end) in ranges.items()))

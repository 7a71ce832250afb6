"""Proposals for simulation: annealing on the surrogate's score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from random import Random

from helixsim.control.control_plane import followed_flow
from helixsim.errors import HelixError
from helixsim.placement.placement import Placement
from helixsim.planner.objective import OBJECTIVE_FIGURES, Figures, Objective, estimated_family
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.simulated.neighbourhood import Neighbours
from helixsim.planner.simulated.surrogate import Estimate, Surrogate
from helixsim.scenario.resolved import Scenario


@dataclass(frozen=True, slots=True)
class Correction:
    """Ratios of simulated to estimated figures.

    Attributes
    ----------
    ratios
        Figure -> ratio; a missing one counts as 1.
    """

    ratios: Mapping[str, float]

    def figures(self, estimate: Estimate, output_tokens: float) -> dict[str, float]:
        """The expected figures of a simulation, from an estimate."""
        base = {
            "decode_tokens_per_s": estimate.decode_tokens_per_s,
            "decode_latency_s.mean": estimate.decode_latency_s,
            "prompt_latency_s.mean": estimate.prompt_latency_s,
            "e2e_s.mean": estimate.prompt_latency_s + output_tokens * estimate.decode_latency_s,
        }
        return {
            name: base[estimated_family(name)] * self.ratios.get(name, 1.0)
            for name in OBJECTIVE_FIGURES
        }


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
    mean_prompt_tokens, mean_output_tokens
        As of :class:`.Surrogate`.
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
        mean_prompt_tokens: float | None = None,
        mean_output_tokens: float | None = None,
        budget: SearchBudget = DEFAULT_BUDGET,
    ) -> None:
        self.budget = budget
        self.scenario = scenario
        self.problem = problem
        self.objective = objective
        self.surrogate = Surrogate(
            scenario,
            problem,
            mean_prompt_tokens=mean_prompt_tokens,
            mean_output_tokens=mean_output_tokens,
        )
        self.neighbours = Neighbours(problem, max_stages, budget)
        scheduler = scenario.scheduler
        self._spreads_evenly = (
            scheduler.policy not in ("maxflow", "adaptive") or scheduler.flow_split == "balanced"
        )
        self.correction = Correction({})

    def estimate(self, ranges: Ranges) -> Estimate:
        """Estimate a placement with all links that fit, routed by the scenario's scheduler."""
        return self.estimate_placement(self.problem.placement(ranges))

    def estimate_placement(self, placement: Placement) -> Estimate:
        """Estimate a placement with its own links, routed by the scenario's scheduler."""
        topology = self.problem.topology(placement)
        flow = followed_flow(self.scenario, topology)
        return self.surrogate.of_flow(topology, flow, self.scenario.scheduler.min_flow_share)

    def expected(self, estimate: Estimate) -> dict[str, float]:
        """The expected figures of a simulation, corrected by earlier ones."""
        return self.correction.figures(estimate, self.surrogate.output_tokens)

    def quick_score(self, ranges: Ranges) -> float:
        """Score if requests spread by throughput: an optimistic estimate, quick to compute."""
        return self.objective.score(self.expected(self.surrogate.of_ranges(ranges)))

    def score(self, ranges: Ranges) -> float:
        """Score for the split that the scenario's scheduler follows."""
        if self._spreads_evenly:
            return self.quick_score(ranges)
        try:
            return self.objective.score(self.expected(self.estimate(ranges)))
        except HelixError:
            return 0.0

    def anneal(
        self,
        start: Ranges,
        rng: Random,
        iterations: int,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> tuple[dict[int, tuple[int, int]], float]:
        """Improve a placement by simulated annealing.

        Parameters
        ----------
        start
            Initial placement.
        rng
            Source of random numbers.
        iterations
            Number of neighbours to try.
        out_of_time
            Called in every iteration; true ends the annealing.

        Returns
        -------
        tuple
            The best placement found and its score.
        """
        current, score = dict(start), self.score(start)
        kept = self._kept_share(score, self.quick_score(start))
        best, best_score = current, score
        hot, cold = self.budget.proposal_hot, self.budget.proposal_cold
        for iteration in range(iterations):
            if out_of_time():
                break
            temperature = hot * (1 - iteration / iterations) ** 2 + cold
            changed = self.neighbours.draw(current, rng)
            least = score * (1 + temperature * self._log_share(rng))
            quick = found = self.quick_score(changed)
            if found * kept <= least:
                continue
            if not self._spreads_evenly:
                found = self.score(changed)
                if found <= least:
                    continue
            current, score = changed, found
            kept = self._kept_share(found, quick)
            if score > best_score:
                best, best_score = current, score
        return best, best_score

    def _kept_share(self, score: float, quick_score: float) -> float:
        """Highest share of the quick score that a neighbour is expected to keep in the exact score.

        An uneven split costs neighbours about as much as the current placement. The exact flow is
        computed only for neighbours that could be accepted on this assumption.
        """
        if self._spreads_evenly or quick_score <= 0:
            return 1.0
        return min(1.0, self.budget.proposal_lenience * score / quick_score)

    def _log_share(self, rng: Random) -> float:
        """Log of a random share; losses up to -temperature times it are accepted."""
        return log(max(rng.random(), self.budget.proposal_least_share))

    def choose_neighbour(
        self, ranges: Ranges, rng: Random, tries: int
    ) -> dict[int, tuple[int, int]]:
        """The neighbour with the best score out of `tries`."""
        drawn = [self.neighbours.draw(ranges, rng) for _ in range(tries)]
        quick = sorted(drawn, key=self.quick_score, reverse=True)
        return max(quick[: max(1, int(tries * self.budget.neighbours_scored))], key=self.score)


def corrected(pairs: Sequence[tuple[Figures, Figures]]) -> Correction:
    """The median ratios over pairs of (uncorrected estimated figures, simulated figures)."""
    ratios = {}
    for name in OBJECTIVE_FIGURES:
        found = sorted(
            actual[name] / expected[name]
            for expected, actual in pairs
            if name in actual and 0 < expected.get(name, 0.0) < 1e300
        )
        if found:
            ratios[name] = found[len(found) // 2]
    return Correction(ratios)

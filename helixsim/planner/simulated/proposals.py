"""Placements worth a simulation: annealing on the estimate of what is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from random import Random

from helixsim.control.control_plane import followed_flow
from helixsim.errors import HelixError
from helixsim.placement.placement import Placement
from helixsim.planner.objective import GOALS, Figures, Goal, estimated_family
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.simulated.neighbourhood import Neighbours
from helixsim.planner.simulated.surrogate import Estimate, Surrogate
from helixsim.scenario.resolved import Scenario

_HOT, _COLD = 0.008, 0.0005
"""Relative loss in score that is accepted now and then, at the start and at the end."""
_LENIENCE = 1.08
"""A neighbour may be split more evenly by so much."""
_LEAST_SHARE = 0.01
"""Losses beyond 4.6 times the heat are never accepted."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What simulations said over what the estimate had said, by figure; 1 where unknown."""

    ratios: Mapping[str, float]

    def figures(self, estimate: Estimate, output_tokens: float) -> dict[str, float]:
        """The figures to expect of a simulation."""
        base = {
            "decode_tokens_per_s": estimate.decode_tokens_per_s,
            "decode_latency_s.mean": estimate.decode_latency_s,
            "prompt_latency_s.mean": estimate.prompt_latency_s,
            "e2e_s.mean": estimate.prompt_latency_s + output_tokens * estimate.decode_latency_s,
        }
        return {name: base[estimated_family(name)] * self.ratios.get(name, 1.0) for name in GOALS}


class Proposer:
    """Judges and improves placements without simulating them.

    Parameters
    ----------
    scenario, problem
        What is planned.
    goal
        What to aim at.
    """

    def __init__(
        self,
        scenario: Scenario,
        problem: PlanningProblem,
        goal: Goal,
        *,
        max_stages: int | None = None,
        mean_prompt_tokens: float | None = None,
        mean_output_tokens: float | None = None,
    ) -> None:
        self.scenario = scenario
        self.problem = problem
        self.goal = goal
        self.estimator = Surrogate(
            scenario,
            problem,
            mean_prompt_tokens=mean_prompt_tokens,
            mean_output_tokens=mean_output_tokens,
        )
        self.neighbours = Neighbours(problem, max_stages)
        scheduler = scenario.scheduler
        self._spreads_evenly = scheduler.policy != "maxflow" or scheduler.flow_split == "balanced"
        self.correction = Correction({})

    def estimate(self, ranges: Ranges) -> Estimate:
        """What a placement would serve, routed as the scenario's scheduler does."""
        return self.estimate_placement(self.problem.placement(ranges))

    def estimate_placement(self, placement: Placement) -> Estimate:
        """The same of a placement with links of its own."""
        topology = self.problem.topology(placement)
        flow = followed_flow(self.scenario, topology)
        return self.estimator.of_flow(topology, flow, self.scenario.scheduler.min_flow_share)

    def expected(self, estimate: Estimate) -> dict[str, float]:
        """The figures to expect of a simulation."""
        return self.correction.figures(estimate, self.estimator.output_tokens)

    def quick_score(self, ranges: Ranges) -> float:
        """Score if requests spread evenly, which is more than they may reach."""
        return self.goal.score(self.expected(self.estimator.of_ranges(ranges)))

    def score(self, ranges: Ranges) -> float:
        """Score as requests will be routed: evenly, or as the published split has it."""
        if self._spreads_evenly:
            return self.quick_score(ranges)
        try:
            return self.goal.score(self.expected(self.estimate(ranges)))
        except HelixError:
            return 0.0

    def anneal(
        self,
        start: Ranges,
        rng: Random,
        iterations: int,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> tuple[dict[int, tuple[int, int]], float]:
        """Improve a placement by small changes.

        Parameters
        ----------
        start
            Where to begin.
        rng
            The randomness.
        iterations
            How many changes to try.
        out_of_time
            Asked now and then whether to stop.

        Returns
        -------
        tuple
            The best placement found and its score.
        """
        current, score = dict(start), self.score(start)
        kept = self._kept_share(score, self.quick_score(start))
        best, best_score = current, score
        for iteration in range(iterations):
            if out_of_time():
                break
            heat = _HOT * (1 - iteration / iterations) ** 2 + _COLD
            changed = self.neighbours.draw(current, rng)
            least = score * (1 + heat * _log(rng))
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
        """What of the quick score a neighbour may keep when requests are routed as they will be.

        Neighbours mostly lose as much by an uneven split as the placement itself; working out
        their exact flow is worth it only if that would do.
        """
        if self._spreads_evenly or quick_score <= 0:
            return 1.0
        return min(1.0, _LENIENCE * score / quick_score)

    def likely(self, ranges: Ranges, rng: Random, tries: int) -> dict[int, tuple[int, int]]:
        """The most promising of several neighbours."""
        drawn = [self.neighbours.draw(ranges, rng) for _ in range(tries)]
        quick = sorted(drawn, key=self.quick_score, reverse=True)
        return max(quick[: max(1, tries // 4)], key=self.score)


def corrected(pairs: Sequence[tuple[Figures, Figures]]) -> Correction:
    """Learn from pairs of what was expected, uncorrected, and what a simulation said."""
    ratios = {}
    for name in GOALS:
        found = sorted(
            actual[name] / expected[name]
            for expected, actual in pairs
            if name in actual and 0 < expected.get(name, 0.0) < 1e300
        )
        if found:
            ratios[name] = found[len(found) // 2]
    return Correction(ratios)


def _log(rng: Random) -> float:
    """Logarithm of a random share: a change is accepted if it loses no more than heat times it."""
    return log(max(rng.random(), _LEAST_SHARE))

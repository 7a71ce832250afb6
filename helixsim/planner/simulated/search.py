"""Search by simulation: the surrogate proposes placements, simulations choose among them.

1. The starts (the scenario's own placement, heuristics, the placements of greatest flow under
   several limits on the stages) are estimated, and the promising ones wait for a simulation.
2. Each round, the surrogate is annealed from the best candidates and from templates, at several
   temperatures. The best proposals of different structure are simulated, in a race with the best
   candidate so far. What was simulated corrects the surrogate.
3. At the end, the best candidate gets its further seeds, then others that could be better.

The best candidate is the one with the highest lower confidence bound (:mod:`.standings`), at every
moment. Budgets count annealing steps and simulations, so that a seed repeats its plan on any
machine, unless a time limit ends the search earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf

from helixsim.errors import NoRouteError
from helixsim.placement.placement import Placement
from helixsim.planner.objective import Figures, Objective
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.simulated.candidates import (
    LATENCY,
    OWN,
    Candidate,
    front,
    spread,
)
from helixsim.planner.simulated.correction import Correction, learned
from helixsim.planner.simulated.entries import Entries
from helixsim.planner.simulated.racing import cuts, look_times, projected
from helixsim.planner.simulated.rounds import Rounds
from helixsim.planner.simulated.standings import Standing, standings
from helixsim.planner.simulated.trial_pool import TrialPool
from helixsim.planner.simulated.trials import Trial, TrialRun
from helixsim.scenario.resolved import Scenario


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a simulated search tries, as a user chooses it.

    Attributes
    ----------
    num_seeds
        Runs of the plan with different seeds.
    rounds
        Most rounds of proposals.
    annealings
        Annealings of the surrogate per round.
    """

    num_seeds: int = 3
    rounds: int = 16
    annealings: int = 8


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(rounds=4, annealings=4),
    "normal": Effort(),
    "thorough": Effort(rounds=60, annealings=16),
}
"""Efforts by the names that ``helixsim plan --effort`` accepts."""


class SimulatedSearch:
    """One search for the placement with the best simulated objective.

    Parameters
    ----------
    scenario, problem, objective
        The scenario, its planning problem and the objective.
    trial_pool
        Runs simulations and annealings.
    effort
        How much to try, as the user chooses it.
    budget
        All other limits of the search.
    left_s
        Clock: seconds left, infinite without a limit.
    on_step
        Called with the current step and the best standing so far, if any.

    Attributes
    ----------
    pool
        All candidates.
    """

    def __init__(
        self,
        scenario: Scenario,
        problem: PlanningProblem,
        objective: Objective,
        trial_pool: TrialPool,
        *,
        effort: Effort | None = None,
        budget: SearchBudget = DEFAULT_BUDGET,
        left_s: Callable[[], float] = lambda: inf,
        on_step: Callable[[str, Standing | None], None] = lambda text, best: None,
    ) -> None:
        self.scenario = scenario
        self.problem = problem
        self.objective = objective
        self._trial_pool = trial_pool
        self._effort = effort or Effort()
        self._budget = budget
        self._left_s = left_s
        self._on_step = on_step
        self._entries = Entries(problem, trial_pool.proposer)
        self._rounds = Rounds(
            objective, self._entries, trial_pool.proposer, trial_pool.setting.seed, budget
        )
        self.pool = self._entries.pool
        self._correction = Correction()
        self._order: list[str] = []  # labels of the candidates that :meth:`compare` compares
        self._longest_s = 0.0  # of a complete run so far, in seconds of this machine

    # -- the search --------------------------------------------------------------------------

    def run(self, starts: Sequence[tuple[str, Placement]]) -> Candidate:
        """Search, starting from some placements; :meth:`chosen` has the best one at any time.

        Raises
        ------
        NoRouteError
            If no request can pass any of the starts.
        """
        for label, placement in starts:
            self.offer(label, placement)
        if self._effort.rounds:
            without_gain, best = 0, 0.0
            for number in range(self._effort.rounds):
                if self._must_finish() or without_gain >= self._patience():
                    break
                self._round(number)
                now = max(
                    (each.score(self.objective) for each in self.pool if each.runs), default=0
                )
                has_gained = now > best * (1 + self._budget.least_gain)
                without_gain = 0 if has_gained else without_gain + 1
                best = max(best, now)
        else:
            self._report("starts")
            self._race(list(self.pool))
        self._confirm()
        return self.chosen()

    def offer(self, label: str, placement: Placement) -> None:
        """Add a candidate, unless it is known or no request can pass it."""
        self._entries.add(label, placement)

    def compare(self, labels: Sequence[str]) -> Candidate:
        """Simulate the candidates with these labels, in this order, then the best with more seeds.

        As many run at a time as there are processes; losers against the best are stopped. Once one
        has run, the others are no plans before they have; before any has, the first one is the
        best. Estimates of different methods for a large cluster are too far off.

        Raises
        ------
        NoRouteError
            If there is no candidate.
        """
        waiting = sorted(
            (each for each in self.pool if each.label in labels),
            key=lambda each: labels.index(each.label),
        )
        count = len(waiting)
        self._order = list(labels)
        while waiting and not self._must_finish():
            self._report(f"simulations of the whole, {count - len(waiting)} of {count}")
            wave = self._affordable_runs(min(self._trial_pool.jobs, len(waiting)))
            self._race(waiting[:wave])
            waiting = waiting[wave:]
        self._confirm()
        return self.chosen()

    def _patience(self) -> float:
        """Rounds without gain before the search ends: more where the surrogate errs much."""
        error = self._correction.error(self.objective.figure)
        return self._budget.patience * max(1.0, error / self._budget.patience_error)

    def standings(self) -> list[Standing]:
        """All candidates of which something is known, best first."""
        if not self._order:
            return standings(self.pool, self.objective, self._expected)
        if any(each.is_tried for each in self.pool):
            return standings(self.pool, self.objective, lambda candidate: None)
        place = {label: number for number, label in enumerate(self._order)}
        return sorted(
            standings(self.pool, self.objective, self._expected),
            key=lambda each: place.get(each.candidate.label, len(place)),
        )

    def chosen(self) -> Candidate:
        """The best candidate so far.

        Raises
        ------
        NoRouteError
            If there is none.
        """
        found = self.standings()
        if not found:
            raise NoRouteError("no request can pass any of the placements that were tried")
        return found[0].candidate

    def _round(self, number: int) -> None:
        """Propose placements and simulate some of them."""
        self._report(f"proposals, round {number + 1} of at most {self._effort.rounds}")
        count, most_s = self._effort.annealings, None
        if (left_s := self._left_s()) < inf:
            spare_s = self._budget.proposal_share * max(0.0, left_s - self._reserve_s())
            most_s = spare_s / ceil(count / self._trial_pool.jobs)
        standings, correction = self.standings(), self._correction
        proposed = self._trial_pool.anneal(
            self._rounds.annealings(number, count, standings, correction, most_s)
        )
        chosen = self._rounds.diverse(proposed, number, standings, correction)
        if number == 0:
            chosen = self._rounds.promising_starts(chosen, self.standings()) + chosen
        self._report(f"simulations, round {number + 1} of at most {self._effort.rounds}")
        self._race(chosen[: self._affordable_runs(len(chosen))])

    def _learn(self) -> None:
        """Correct the surrogate by all that has been simulated."""
        tried = [each for each in self.pool if each.is_tried and each.estimate is not None]
        tried.sort(key=lambda each: -each.score(self.objective))
        self._correction = learned(
            [
                (each.estimate, each.figures if each.runs else each.projected)
                for each in tried
                if each.estimate is not None
            ],
            self._trial_pool.proposer.formulas,
            tuple(dict.fromkeys([*self.objective.figures, LATENCY])),
        )

    def _expected(self, candidate: Candidate) -> Figures | None:
        if candidate.estimate is None:
            return None
        formulas = self._trial_pool.proposer.formulas
        return self._correction.figures(candidate.estimate, formulas, self.objective.figures)

    # -- simulations -------------------------------------------------------------------------

    def _race(self, candidates: Sequence[Candidate]) -> None:
        """Run candidates with the scenario's seed; stop runs that lose to the best so far."""
        if not candidates or self._left_s() <= 0:
            return
        run = self.scenario.run
        leader = max(
            (each for each in self.pool if run.seed in each.runs and each.looks),
            key=lambda each: self.objective.rank(each.figures, each.move_cost),
            default=None,
        )
        output_tokens = self._trial_pool.proposer.surrogate.output_tokens
        stops = {}
        if self._effort.rounds:
            stops = cuts(leader, self.objective, output_tokens, run.warmup_s)
        looks = look_times(run.duration_s)
        trials = [
            Trial(each.placement, run.seed, looks, stops, each.move_cost) for each in candidates
        ]
        results = self._trial_pool.simulate(trials)
        for candidate, result in zip(candidates, results, strict=True):
            if result is not None:
                self._take(candidate, result, leader)
        self._learn()

    def _take(self, candidate: Candidate, result: TrialRun, leader: Candidate | None) -> None:
        if result.is_complete:
            candidate.runs[result.seed] = result.figures
            self._longest_s = max(self._longest_s, result.seconds)
            if result.looks and not candidate.looks:
                candidate.looks = result.looks
        elif not candidate.runs and result.simulated_s > self.scenario.run.warmup_s:
            candidate.stopped_s, candidate.stopped = result.simulated_s, result.figures
            if result.cut_s is not None and leader is not None:
                candidate.projected = projected(result, leader, result.seed)

    def _run_seeds(self, wanted: Sequence[tuple[Candidate, int]]) -> None:
        trials = [Trial(candidate.placement, seed) for candidate, seed in wanted]
        for (candidate, _), result in zip(wanted, self._trial_pool.simulate(trials), strict=True):
            if result is not None:
                self._take(candidate, result, None)
        self._learn()

    def _confirm(self) -> None:
        """Run the best candidate with all seeds, then others that could be better."""
        seeds = [self.scenario.run.seed + number for number in range(self._effort.num_seeds)]
        for _ in range(self._budget.finalists):
            found = [each for each in self.standings() if each.candidate.runs]
            if not found or self._left_s() <= 0:
                return
            leader = found[0]
            self._report(f"seeds, {len(leader.candidate.runs)} of {len(seeds)}")
            wanted = self._missing(leader.candidate, seeds)
            for each in found[1 : self._budget.finalists]:
                if each.is_kept == leader.is_kept and each.high > leader.low:
                    wanted += self._missing(each.candidate, seeds)[:1]
            if not wanted:
                break
            self._run_seeds(wanted)
        self._confirm_front(seeds)

    def _confirm_front(self, seeds: Sequence[int]) -> None:
        """Run candidates along the front with all seeds, so that they can be compared."""
        if not self._effort.rounds:
            others = list(self.pool)
        else:
            own = [each for each in self.pool if each.label == OWN]
            others = [
                *own,
                *spread(front(e for e in self.pool if e.runs), self._budget.final_front),
            ]
        wanted = [
            (each, seed)
            for each in dict.fromkeys(others)
            if each.runs
            for _, seed in self._missing(each, seeds)
        ]
        if wanted and self._left_s() > 0:
            self._report("seeds of other candidates on the front")
            self._run_seeds(wanted)

    def _missing(self, candidate: Candidate, seeds: Sequence[int]) -> list[tuple[Candidate, int]]:
        return [(candidate, seed) for seed in seeds if seed not in candidate.runs]

    def _reserve_s(self) -> float:
        """Seconds that the further seeds of the best candidates will take."""
        runs = (self._effort.num_seeds - 1) * self._budget.confirmed
        return ceil(runs / self._trial_pool.jobs) * self._longest_s

    def _affordable_runs(self, wanted: int) -> int:
        """How many of the wanted runs end before the time for further seeds begins."""
        if self._left_s() == inf or not self._longest_s:
            return wanted
        waves = int((self._left_s() - self._reserve_s()) / self._longest_s)
        return max(0, min(wanted, waves * self._trial_pool.jobs))

    def _must_finish(self) -> bool:
        """Whether the remaining time is needed for the further seeds of the best candidates."""
        return self._left_s() <= 0 or self._affordable_runs(1) < 1

    def _report(self, text: str) -> None:
        found = self.standings()
        self._on_step(text, found[0] if found else None)

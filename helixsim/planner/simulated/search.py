"""Search by simulation: the surrogate proposes placements, simulations choose among them.

1. Brief simulations of the starts (the scenario's own placement, heuristics, the placements of
   greatest flow under several limits on the stages) measure the surrogate's error.
2. The surrogate is annealed from the best starts, for the objective and for tighter latencies, so
   that the candidates cover the whole front. The results are simulated briefly. This is done
   twice.
3. The best candidates are improved by trial: the surrogate chooses among many neighbours, a brief
   simulation of the chosen one decides whether a full one follows.
4. The best candidates, and all candidates on the front, are simulated with all seeds. The best
   of these is the plan.

Brief runs are optimistic: until the first requests have ended, few prompts delay the decodes. They
are compared with brief runs only.

Budgets count annealing steps and simulations, so that a seed repeats its plan on any machine,
unless a time limit ends the search earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from helixsim.errors import HelixError, NoRouteError
from helixsim.placement.placement import Placement
from helixsim.planner.objective import Figures, Limit, Objective
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.simulated.candidates import (
    LATENCY,
    Candidate,
    CandidatePool,
    front,
    most_stages,
    spread,
)
from helixsim.planner.simulated.neighbourhood import on_a_route
from helixsim.planner.simulated.proposals import Correction, corrected
from helixsim.planner.simulated.trial_pool import AnnealingTask, NeighbourBatch, Trial, TrialPool
from helixsim.scenario.resolved import Scenario


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a simulated search tries, as a user chooses it.

    Attributes
    ----------
    num_seeds
        Full runs of each finalist.
    rounds
        Most rounds of the search by trial.
    annealings
        Annealings of the surrogate per generation.
    """

    num_seeds: int = 3
    rounds: int = 24
    annealings: int = 8


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(rounds=4, annealings=3),
    "normal": Effort(),
    "thorough": Effort(rounds=100, annealings=16),
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
    left_s, elapsed_s
        Clocks: seconds left (infinite without a limit) and seconds since the start.
    on_step
        Called with the current step and the best figures so far, if any.
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
        elapsed_s: Callable[[], float] = lambda: 0.0,
        on_step: Callable[[str, Figures | None], None] = lambda text, figures: None,
    ) -> None:
        self.scenario = scenario
        self.problem = problem
        self.objective = objective
        self.pool = CandidatePool()
        self._trial_pool = trial_pool
        self._effort = effort or Effort()
        self._budget = budget
        self._left_s = left_s
        self._elapsed_s = elapsed_s
        self._on_step = on_step
        run = scenario.run
        self._is_short = run.duration_s <= budget.brief_s * budget.shorten_above
        self.brief_s = run.duration_s if self._is_short else budget.brief_s
        self._brief_warmup_s = run.warmup_s if self._is_short else budget.brief_warmup_s
        self._trial_s = inf  # of a brief run; its minimum, as the first ones include start-up

    # -- the search --------------------------------------------------------------------------

    def run(self, starts: Sequence[tuple[str, Placement]]) -> Candidate:
        """Search, starting from some placements; :meth:`chosen` has the best one at any time.

        Raises
        ------
        NoRouteError
            If no request can pass any of the starts.
        """
        for label, placement in starts:
            self._add(label, placement)
        self._try_briefly(list(self.pool))
        if not any(each.brief for each in self.pool):
            raise NoRouteError("no request can pass any of the placements that were simulated")
        self._confirm([*list(self.pool)[:1], *self._most_promising(list(self.pool))])
        for generation in range(self._budget.proposal_generations):
            self._propose(generation)
        self._improve()
        self._finish()
        return self.chosen()

    def chosen(self) -> Candidate:
        """The best candidate, among the candidates with the most full runs if there are any.

        Raises
        ------
        NoRouteError
            If nothing has been simulated.
        """
        tried = [each for each in self.pool if each.full] or [
            each for each in self.pool if each.brief
        ]
        if not tried:
            raise NoRouteError("stopped before any placement was simulated")
        most = max(len(each.full or each.brief) for each in tried)
        compared = [each for each in tried if len(each.full or each.brief) == most]
        return max(compared, key=lambda each: self.objective.rank(each.figures))

    def _propose(self, generation: int) -> None:
        budget, count = self._budget, self._effort.annealings
        parents = self._parents(budget.proposal_parents)
        if not parents or self._must_finish():
            return
        correction = self._learn()
        steps = budget.proposal_work // len(self.problem)
        steps = min(budget.proposal_steps, max(budget.proposal_least_steps, steps))
        objectives = self._objectives(parents[0].figures)
        tasks = [
            AnnealingTask(
                tuple(sorted(parents[number % len(parents)].ranges.items())),
                objectives[number % len(objectives)],
                ("anneal", generation, number),
                steps,
                correction,
            )
            for number in range(count)
        ]
        self._report(f"proposals, generation {generation + 1} of {budget.proposal_generations}")
        found = self._trial_pool.anneal(tasks)
        fresh = []
        for number, items in enumerate(found):
            added = self._add(f"proposal {generation + 1}.{number + 1}", dict(items))
            if added is not None:
                fresh.append(added)
        self._try_briefly(fresh)
        self._confirm(self._most_promising(fresh))

    def _most_promising(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The best candidates by their brief runs, and some of the front of brief runs."""
        tried = [each for each in candidates if each.brief]
        tried.sort(key=lambda each: -each.brief_score(self.objective))
        elites = self._budget.elites
        chosen = [*tried[:elites], *spread(front(tried), elites // 2)]
        return list(dict.fromkeys(chosen))

    def _objectives(self, figures: Figures) -> list[Objective]:
        """The objective as given, and with each tighter limit on the latency, alternating."""
        latency = figures.get(LATENCY)
        if latency is None:
            return [self.objective]
        tighter = [
            replace(
                self.objective,
                limits=(*self.objective.limits, Limit(LATENCY, True, latency * share)),
            )
            for share in self._budget.proposal_tighter
        ]
        found = [self.objective]
        for each in tighter:
            found += [self.objective, each]
        return found

    def _parents(self, count: int) -> list[Candidate]:
        """The best candidates without overcommitted nodes, which the surrogate cannot estimate."""
        best = self.pool.best(self.objective, len(self.pool))
        return [each for each in best if self._is_within_room(each.ranges)][:count]

    def _is_within_room(self, ranges: Ranges) -> bool:
        problem = self.problem
        return all(end - start <= problem.max_layers(n) for n, (start, end) in ranges.items())

    def _learn(self) -> Correction:
        """Compare the surrogate's estimates of the best candidates with their full runs."""
        proposer = self._trial_pool.proposer
        plain = Correction({})
        pairs = []
        for candidate in self._parents(self._budget.corrected_by):
            if not candidate.full:
                continue
            estimate = proposer.estimate_placement(candidate.placement)
            expected = plain.figures(estimate, proposer.surrogate.output_tokens)
            pairs.append((expected, candidate.full[0]))
        return corrected(pairs)

    def _improve(self) -> None:
        rounds_without_gain = 0
        for number in range(self._effort.rounds):
            if self._must_finish() or rounds_without_gain >= self._budget.patience:
                return
            self._report(f"trials, round {number + 1} of at most {self._effort.rounds}")
            elites = self._parents(self._budget.elites)
            if not elites:
                return
            best = elites[0].score(self.objective)
            children = self._children(elites, number)
            self._try_briefly([child for _, child in children])
            self._confirm(
                [
                    child
                    for parent, child in children
                    if child.brief_score(self.objective)
                    >= self._budget.promising * parent.brief_score(self.objective)
                ]
            )
            now_best = self.pool.best(self.objective, 1)[0].score(self.objective)
            has_gained = now_best > best * (1 + self._budget.least_gain)
            rounds_without_gain = 0 if has_gained else rounds_without_gain + 1

    def _children(
        self, elites: Sequence[Candidate], number: int
    ) -> list[tuple[Candidate, Candidate]]:
        """(parent, child) of every new candidate."""
        correction = self._learn()
        parents = [parent for parent in elites for _ in range(self._budget.children)]
        batches = [
            NeighbourBatch(
                tuple(sorted(parent.ranges.items())),
                ("improve", number, place),
                self._budget.neighbours,
                self.objective,
                correction,
            )
            for place, parent in enumerate(parents)
        ]
        found = []
        for parent, items in zip(parents, self._trial_pool.choose(batches), strict=True):
            child = self._add(f"trial {number + 1}", dict(items))
            if child is not None:
                found.append((parent, child))
        return found

    def _finish(self) -> None:
        """Simulate the best candidates and the front with all seeds."""
        finalists = list(
            dict.fromkeys(
                [
                    *self.pool.best(self.objective, self._budget.finalists),
                    *[each for each in list(self.pool)[:1] if each.brief],
                    *spread(
                        front(each for each in self.pool if each.full), self._budget.final_front
                    ),
                ]
            )
        )
        for number in range(self._effort.num_seeds):
            self._report(f"all seeds, {number + 1} of {self._effort.num_seeds}")
            self._run_fully([each for each in finalists if len(each.full) == number], number)

    # -- simulations -------------------------------------------------------------------------

    def _add(self, label: str, source: Placement | Ranges) -> Candidate | None:
        """Add a placement to the pool; None if it is known or no request can pass it."""
        if isinstance(source, Placement):
            placement, ranges = source, self.problem.ranges(source)
        else:
            ranges = on_a_route(source, self.problem.num_layers)
            placement = self.problem.placement(ranges)
        try:
            value = self.problem.flow(placement).tokens_per_s
            stages = most_stages(self.problem.topology(placement))
        except HelixError:
            return None
        if value <= 0:
            return None
        candidate = Candidate(label, ranges, placement, value, stages)
        return candidate if self.pool.add(candidate) else None

    def _try_briefly(self, candidates: Sequence[Candidate]) -> None:
        """Simulate each candidate briefly."""
        if not candidates or self._left_s() <= 0:
            return
        began, seed = self._elapsed_s(), self.scenario.run.seed
        trials = [
            Trial(each.placement, seed, self.brief_s, self._brief_warmup_s) for each in candidates
        ]
        for candidate, figures in zip(candidates, self._trial_pool.simulate(trials), strict=True):
            if figures is not None:
                candidate.brief.append(figures)
                if self._is_short:
                    candidate.full.append(figures)
        self._trial_s = min(self._trial_s, (self._elapsed_s() - began) / len(candidates))

    def _confirm(self, candidates: Sequence[Candidate]) -> None:
        """Run the candidates fully that have had a brief run only."""
        self._run_fully([each for each in candidates if each.brief and not each.full], 0)

    def _run_fully(self, candidates: Sequence[Candidate], number: int) -> None:
        if not candidates or self._left_s() <= 0:
            return
        run = self.scenario.run
        trials = [
            Trial(each.placement, run.seed + number, run.duration_s, run.warmup_s)
            for each in candidates
        ]
        results = self._trial_pool.simulate(trials)
        for candidate, figures in zip(candidates, results, strict=True):
            if figures is not None:
                candidate.full.append(figures)

    def _must_finish(self) -> bool:
        """Whether the remaining time is needed for the full runs of the finalists."""
        left_s = self._left_s()
        if left_s == inf or len(self.pool) < self._budget.finalists:
            return left_s <= 0
        longer = self.scenario.run.duration_s / self.brief_s
        # Most finalists are on the front too, and have had their first full run.
        runs = self._budget.final_front * (self._effort.num_seeds - 1) + 1
        return left_s <= runs * longer * self._trial_s

    def _report(self, text: str) -> None:
        best = self.pool.best(self.objective, 1)
        self._on_step(text, best[0].figures if best else None)

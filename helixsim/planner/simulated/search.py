"""The placement that serves the most: proposals by the estimate, choice by simulation.

1. Starts (the scenario's own placement, heuristics, the best flows under several stage caps) are
   simulated briefly. They teach how far the estimate is off.
2. The estimate is annealed from the best of them, under the goal and under tighter latencies so
   that the whole front is seen, and the results are simulated briefly; then once more from these.
3. The best are improved by trial: of many neighbours the estimate picks the most promising, a
   brief simulation judges, and one of full length confirms.
4. The best few, and the front, are simulated with all seeds; the best of these is the plan.

Brief runs flatter: until the first requests have ended, few prompts hold up the decodes. They
are compared with brief runs only.

Budgets count annealing steps and simulations, so that a seed gives the same plan on any machine,
as long as no time limit cuts it short.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from helixsim.errors import HelixError, NoRouteError
from helixsim.placement.placement import Placement
from helixsim.planner.objective import Figures, Goal, Limit
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.simulated.candidates import (
    LATENCY,
    Candidate,
    Pool,
    front,
    most_stages,
    spread,
)
from helixsim.planner.simulated.neighbourhood import on_a_way
from helixsim.planner.simulated.proposals import Correction, corrected
from helixsim.planner.simulated.trial_pool import Annealing, NeighbourBatch, Trial, TrialPool
from helixsim.scenario.resolved import Scenario

_BRIEF_S, _BRIEF_WARMUP_S = 180.0, 60.0
_ANNEALINGS = 8
_ANNEALING_STEPS, _LEAST_STEPS = 1000, 60
_ANNEALING_WORK = 24_000
"""Steps of one annealing times nodes of the cluster, at most."""
_ELITES = 4
_CHILDREN = 2
_TRIES = 24
_ROUNDS = 24
_PATIENCE = 7
"""Rounds without gain before the search by trial ends."""
_PROMISING = 0.985
"""A child is confirmed if its first trial reaches this share of its parent's."""
_FINALISTS = 4
_FRONT = 6
_TIGHTER = (0.85, 0.7, 0.55)
"""Decode latencies that are asked of some proposals, over that of the best start."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to try.

    Attributes
    ----------
    num_seeds
        Runs of full length that each finalist gets.
    rounds
        Rounds of the search by trial.
    annealings
        Proposals asked of the estimate, twice.
    """

    num_seeds: int = 3
    rounds: int = _ROUNDS
    annealings: int = _ANNEALINGS


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(rounds=4, annealings=3),
    "normal": Effort(),
    "thorough": Effort(rounds=100, annealings=2 * _ANNEALINGS),
}
"""How much to try, by name."""


class SimulatedSearch:
    """One search for the placement that serves the most.

    Parameters
    ----------
    scenario, problem, goal
        What is asked.
    workshop
        Who simulates and anneals.
    effort
        How much to try.
    left_s, elapsed_s
        Clocks: time that is left (may be infinite) and that has passed.
    on_step
        Told what goes on: a text, and the best figures so far, if any.
    """

    def __init__(
        self,
        scenario: Scenario,
        problem: PlanningProblem,
        goal: Goal,
        workshop: TrialPool,
        *,
        effort: Effort | None = None,
        left_s: Callable[[], float] = lambda: inf,
        elapsed_s: Callable[[], float] = lambda: 0.0,
        on_step: Callable[[str, Figures | None], None] = lambda text, figures: None,
    ) -> None:
        self.scenario = scenario
        self.problem = problem
        self.goal = goal
        self.pool = Pool()
        self._workshop = workshop
        self._effort = effort or Effort()
        self._left_s = left_s
        self._elapsed_s = elapsed_s
        self._on_step = on_step
        run = scenario.run
        self._is_short = run.duration_s <= _BRIEF_S * 1.5  # then there is nothing to shorten
        self.brief_s = run.duration_s if self._is_short else _BRIEF_S
        self._brief_warmup_s = run.warmup_s if self._is_short else _BRIEF_WARMUP_S
        self._trial_s = inf  # what a brief trial costs; the first ones pay for start-up too

    # -- the search --------------------------------------------------------------------------

    def run(self, starts: Sequence[tuple[str, Placement]]) -> Candidate:
        """Search from some placements; whatever stops it, :meth:`chosen` knows the best so far.

        Raises
        ------
        NoRouteError
            If none of the starts lets any request through.
        """
        for label, placement in starts:
            self._add(label, placement)
        self._try_briefly(list(self.pool))
        if not any(each.brief for each in self.pool):
            raise NoRouteError("no request gets through any of the placements that were tried")
        self._confirm([*list(self.pool)[:1], *self._most_promising(list(self.pool))])
        for generation in range(2):
            self._propose(generation)
        self._improve()
        self._finish()
        return self.chosen()

    def chosen(self) -> Candidate:
        """The best: among those simulated at full length if there are any."""
        tried = [each for each in self.pool if each.full] or [
            each for each in self.pool if each.brief
        ]
        if not tried:
            raise NoRouteError("stopped before any placement was simulated")
        most = max(len(each.full or each.brief) for each in tried)
        compared = [each for each in tried if len(each.full or each.brief) == most]
        return max(compared, key=lambda each: self.goal.rank(each.figures))

    def _propose(self, generation: int) -> None:
        parents = self._parents(3)
        count = self._effort.annealings
        if not parents or self._must_finish():
            return
        correction = self._learn()
        steps = min(_ANNEALING_STEPS, max(_LEAST_STEPS, _ANNEALING_WORK // len(self.problem)))
        goals = self._goals(parents[0].figures)
        tasks = [
            Annealing(
                tuple(sorted(parents[number % len(parents)].ranges.items())),
                goals[number % len(goals)],
                ("anneal", generation, number),
                steps,
                correction,
            )
            for number in range(count)
        ]
        self._say(f"proposals {generation + 1} of 2")
        found = self._workshop.anneal(tasks)
        fresh = []
        for number, items in enumerate(found):
            added = self._add(f"proposal {generation + 1}.{number + 1}", dict(items))
            if added is not None:
                fresh.append(added)
        self._try_briefly(fresh)
        self._confirm(self._most_promising(fresh))

    def _most_promising(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The best by brief runs, and their front."""
        tried = [each for each in candidates if each.brief]
        tried.sort(key=lambda each: -each.brief_score(self.goal))
        chosen = [*tried[:_ELITES], *spread(front(tried), _ELITES // 2)]
        return list(dict.fromkeys(chosen))

    def _goals(self, figures: Figures) -> list[Goal]:
        """The goal itself, twice as often as with each tighter latency."""
        latency = figures.get(LATENCY)
        if latency is None:
            return [self.goal]
        tighter = [
            replace(self.goal, limits=(*self.goal.limits, Limit(LATENCY, True, latency * share)))
            for share in _TIGHTER
        ]
        return [self.goal, self.goal, tighter[0], self.goal, tighter[1], self.goal, tighter[2]]

    def _parents(self, count: int) -> list[Candidate]:
        """The best that can be judged and changed: not those with overcommitted nodes."""
        best = self.pool.best(self.goal, len(self.pool))
        return [each for each in best if self._is_within_room(each.ranges)][:count]

    def _is_within_room(self, ranges: Ranges) -> bool:
        problem = self.problem
        return all(end - start <= problem.max_layers(n) for n, (start, end) in ranges.items())

    def _learn(self) -> Correction:
        """Compare what the estimate expected with what the best trials said."""
        proposer = self._workshop.proposer
        plain = Correction({})
        pairs = []
        for candidate in self._parents(12):
            if not candidate.full:
                continue
            estimate = proposer.estimate_placement(candidate.placement)
            expected = plain.figures(estimate, proposer.estimator.output_tokens)
            pairs.append((expected, candidate.full[0]))
        return corrected(pairs)

    def _improve(self) -> None:
        idle = 0
        for number in range(self._effort.rounds):
            if self._must_finish() or idle >= _PATIENCE:
                return
            self._say(f"trials, round {number + 1} of at most {self._effort.rounds}")
            elites = self._parents(_ELITES)
            if not elites:
                return
            best = elites[0].score(self.goal)
            children = self._children(elites, number)
            self._try_briefly([child for _, child in children])
            self._confirm(
                [
                    child
                    for parent, child in children
                    if child.brief_score(self.goal) >= _PROMISING * parent.brief_score(self.goal)
                ]
            )
            gained = self.pool.best(self.goal, 1)[0].score(self.goal) > best * 1.001
            idle = 0 if gained else idle + 1

    def _children(
        self, elites: Sequence[Candidate], number: int
    ) -> list[tuple[Candidate, Candidate]]:
        """New candidates, with the parents that they come from."""
        correction = self._learn()
        parents = [parent for parent in elites for _ in range(_CHILDREN)]
        litters = [
            NeighbourBatch(
                tuple(sorted(parent.ranges.items())),
                ("improve", number, place),
                _TRIES,
                self.goal,
                correction,
            )
            for place, parent in enumerate(parents)
        ]
        found = []
        for parent, items in zip(parents, self._workshop.choose(litters), strict=True):
            child = self._add(f"trial {number + 1}", dict(items))
            if child is not None:
                found.append((parent, child))
        return found

    def _finish(self) -> None:
        """Simulate the best, and the front, with all seeds."""
        finalists = list(
            dict.fromkeys(
                [
                    *self.pool.best(self.goal, _FINALISTS),
                    *[each for each in list(self.pool)[:1] if each.brief],
                    *spread(front(each for each in self.pool if each.full), _FRONT),
                ]
            )
        )
        for number in range(self._effort.num_seeds):
            self._say(f"all seeds, {number + 1} of {self._effort.num_seeds}")
            self._run_fully([each for each in finalists if len(each.full) == number], number)

    # -- trials ------------------------------------------------------------------------------

    def _add(self, label: str, source: Placement | Ranges) -> Candidate | None:
        """A new candidate, unless it is known or lets nothing through."""
        if isinstance(source, Placement):
            placement, ranges = source, self.problem.ranges(source)
        else:
            ranges = on_a_way(source, self.problem.num_layers)
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
        """Give each candidate a brief run."""
        if not candidates or self._left_s() <= 0:
            return
        began, seed = self._elapsed_s(), self.scenario.run.seed
        trials = [
            Trial(each.placement, seed, self.brief_s, self._brief_warmup_s) for each in candidates
        ]
        for candidate, figures in zip(candidates, self._workshop.simulate(trials), strict=True):
            if figures is not None:
                candidate.brief.append(figures)
                if self._is_short:
                    candidate.full.append(figures)
        self._trial_s = min(self._trial_s, (self._elapsed_s() - began) / len(candidates))

    def _confirm(self, candidates: Sequence[Candidate]) -> None:
        """Give candidates that were tried briefly a run of full length."""
        self._run_fully([each for each in candidates if each.brief and not each.full], 0)

    def _run_fully(self, candidates: Sequence[Candidate], number: int) -> None:
        if not candidates or self._left_s() <= 0:
            return
        run = self.scenario.run
        trials = [
            Trial(each.placement, run.seed + number, run.duration_s, run.warmup_s)
            for each in candidates
        ]
        results = self._workshop.simulate(trials)
        for candidate, figures in zip(candidates, results, strict=True):
            if figures is not None:
                candidate.full.append(figures)

    def _must_finish(self) -> bool:
        """Whether what is left is needed for the last runs of full length."""
        left_s = self._left_s()
        if left_s == inf or len(self.pool) < _FINALISTS:
            return left_s <= 0
        longer = self.scenario.run.duration_s / self.brief_s
        # Finalists are mostly on the front too, and have had their first run.
        runs = _FRONT * (self._effort.num_seeds - 1) + 1
        return left_s <= runs * longer * self._trial_s

    def _say(self, text: str) -> None:
        best = self.pool.best(self.goal, 1)
        self._on_step(text, best[0].figures if best else None)

"""One planning: what it holds, from the first flow to the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf, isfinite
from time import monotonic

from helixsim.errors import HelixError, InputError, NoRouteError, PlacementError
from helixsim.placement.placement import Placement
from helixsim.planner.heuristics import petals, separate_mixed, swarm
from helixsim.planner.max_flow.optimise import close_gap, optimise
from helixsim.planner.max_flow.upper_bound import upper_bound
from helixsim.planner.objective import Figures, Goal
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.result import (
    CandidateResult,
    PlanResult,
    candidate_results,
    unused_nodes,
)
from helixsim.planner.search import NEGLIGIBLE, Search
from helixsim.planner.simulated.candidates import Candidate, most_stages
from helixsim.planner.simulated.search import Effort, SimulatedSearch
from helixsim.planner.simulated.trial_pool import Setting, TrialPool
from helixsim.scenario.resolved import Scenario

_SHARE_FOR_STARTS = 0.15
"""Of the time limit: for the best flows that a simulated search starts from."""
_CAPS = (1.2, 1.45, 1.75)
"""Caps on stages that those are also asked for, over the least there can be."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known while planning goes on.

    Attributes
    ----------
    seconds
        Since the start.
    step
        What is being done.
    value, bound
        The best flow so far, and the proved upper bound; infinite before there is one.
    figures
        Of the best candidate that was simulated, if any.
    """

    seconds: float
    step: str
    value: float
    bound: float
    figures: Figures | None = None


class PlanRun:
    """One planning: the search by flow, and the one by simulation."""

    def __init__(
        self,
        scenario: Scenario,
        problem: PlanningProblem,
        goal: Goal,
        *,
        seed: int,
        solver: str,
        max_stages: int | None,
        time_limit_s: float | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        began = monotonic()
        self.scenario = scenario
        self.problem = problem
        self.goal = goal
        self._began = began
        self.deadline = None if time_limit_s is None else began + time_limit_s
        self.time_limit_s = time_limit_s
        self.on_progress = on_progress
        self.search = self.new_search(seed, solver, max_stages, time_limit_s)
        self.served: SimulatedSearch | None = None
        self.num_seeds = 1

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return monotonic() - self._began

    def new_search(
        self, seed: int, solver: str, max_stages: int | None, time_limit_s: float | None
    ) -> Search:
        """A search by flow."""
        return Search(
            self.problem,
            seed=seed,
            elapsed_s=self.elapsed_s,
            time_limit_s=time_limit_s,
            max_stages=max_stages,
            solver=solver,
            on_change=lambda search: self.tell("searching the greatest flow"),
        )

    def tell(self, step: str, figures: Figures | None = None) -> None:
        """Report progress."""
        self.on_progress(
            Progress(self.elapsed_s(), step, self.search.value, self.search.bound, figures)
        )

    def prove(self) -> None:
        """Have an upper bound, if the method has proved none."""
        search = self.search
        if search.bound < inf:
            return
        bound = upper_bound(
            self.problem,
            max_stages=search.max_stages,
            solver=search.solver,
            at_least=search.value,
            stop=lambda: search.out_of_time,
        )
        search.prove(bound.tokens_per_s)
        close_gap(search)

    # -- simulating --------------------------------------------------------------------------

    def simulate(self, jobs: int, effort: Effort, *, searching: bool) -> None:
        """Choose by simulation."""
        search, scenario = self.search, self.scenario
        self.num_seeds = effort.num_seeds
        setting = Setting(
            scenario,
            self.goal,
            search.seed,
            self.problem.partial_inference,
            self.problem.keep_links,
            search.max_stages,
            self.deadline,
        )
        starts = self._starts() if searching else [("method", self._placement())]
        workshop = TrialPool(setting, self.problem, jobs)
        self.served = SimulatedSearch(
            scenario,
            self.problem,
            self.goal,
            workshop,
            effort=effort if searching else Effort(effort.num_seeds, rounds=0, annealings=0),
            left_s=lambda: search.left_s,
            elapsed_s=self.elapsed_s,
            on_step=self.tell,
        )
        try:
            self.served.run(starts)
        except NoRouteError:
            if not (search.out_of_time and search.ranges):
                raise
            # Time was up before any simulation: the best by flow is told, with a note.
        finally:
            workshop.close()

    def _starts(self) -> list[tuple[str, Placement]]:
        """Placements to begin with: the scenario's own, heuristics, the best flows by stages."""
        search, problem = self.search, self.problem
        starts: list[tuple[str, Placement]] = []
        own = self.scenario.placement
        if own is not None and self._within_cap(own):
            starts.append(("own", own))
        methods = self._flow_methods()
        for number, (label, method, cap) in enumerate(methods):
            limit_s = None
            if self.time_limit_s is not None:
                # An even share of what is left for this, of the time since the start.
                gone_s = self.elapsed_s()
                left_s = self.time_limit_s * _SHARE_FOR_STARTS - gone_s
                limit_s = gone_s + left_s / (len(methods) - number)
            attempt = self.new_search(search.seed, search.solver, cap, limit_s)
            try:
                method(attempt)
            except (PlacementError, NoRouteError, InputError):
                continue  # this one has no answer; others may
            if attempt.ranges:
                starts.append((label, problem.placement(attempt.ranges)))
            if cap == search.max_stages:
                search.offer(attempt.ranges, attempt.value)
                search.prove(attempt.bound)
        return starts

    def _flow_methods(self) -> list[tuple[str, Callable[[Search], None], int | None]]:
        cap = self.search.max_stages
        found: list[tuple[str, Callable[[Search], None], int | None]] = [
            ("swarm", swarm, cap),
            ("petals", petals, cap),
            ("separate-mixed", separate_mixed, cap),
            ("flow", optimise, cap),
        ]
        least = self._least_stages()
        for factor in _CAPS:
            tighter = max(least + 1, round(factor * least))
            if cap is None or tighter < cap:
                found.append((f"flow, {tighter} stages", optimise, tighter))
        return found

    def _least_stages(self) -> int:
        """No route has fewer nodes: those with the most room hold the LLM."""
        room = sorted(map(self.problem.max_layers, range(len(self.problem))), reverse=True)
        held, count = 0, 0
        while held < self.problem.num_layers:
            held += room[count]
            count += 1
        return count

    def _within_cap(self, placement: Placement) -> bool:
        cap = self.search.max_stages
        return cap is None or most_stages(self.problem.topology(placement)) <= cap

    # -- the result --------------------------------------------------------------------------

    def take(self, ranges: Mapping[int, tuple[int, int]]) -> None:
        """Take a placement that is known."""
        if not self.search.offer(ranges):
            raise PlacementError("this solution lets no request through all layers")

    def _placement(self) -> Placement:
        if not self.search.ranges:
            raise NoRouteError(
                "no placement was found in the time there was; give it more with --time-limit"
            )
        return self.problem.placement(self.search.ranges)

    def fall_back(self) -> None:
        """Have a placement after Ctrl-C, if none was known then: one that takes no time."""
        if self.search.ranges:
            return
        search = self.search
        search.on_change = lambda search: None  # whoever watches has said enough
        with suppress(PlacementError, NoRouteError):
            swarm(search)

    def result(self, method: str, objective: str, *, interrupted: bool) -> PlanResult:
        """Tell what was found."""
        search, problem = self.search, self.problem
        chosen = self._chosen()
        if chosen is None:
            placement, value = self._placement(), search.value
            stages = most_stages(problem.topology(placement))
        else:
            placement, value = chosen.placement, chosen.max_flow_tokens_per_s
            stages = chosen.stages
        candidates: tuple[CandidateResult, ...] = ()
        if self.served is not None and chosen is not None:
            candidates = candidate_results(
                list(self.served.pool), chosen, self.scenario.run.duration_s, self.served.brief_s
            )
        return PlanResult(
            method=method,
            objective=objective,
            goal=self.goal.figure,
            placement=placement,
            max_flow_tokens_per_s=value,
            upper_bound_tokens_per_s=search.bound,
            stages=stages,
            seconds=self.elapsed_s(),
            unused=unused_nodes(problem, placement),
            optimal=isfinite(search.bound)
            and value >= search.bound * (1 - NEGLIGIBLE)
            and not self._is_overcommitted(placement),
            trace=tuple(search.trace),
            simulated=None if chosen is None else chosen.figures,
            candidates=candidates,
            interrupted=interrupted,
            notes=self._notes(chosen, objective),
        )

    def _is_overcommitted(self, placement: Placement) -> bool:
        """Whether some node holds more than it should; bounds are of placements without such."""
        problem = self.problem
        ranges = problem.ranges(placement).items()
        return any(end - start > problem.max_layers(node) for node, (start, end) in ranges)

    def _chosen(self) -> Candidate | None:
        if self.served is None:
            return None
        try:
            return self.served.chosen()
        except HelixError:
            return None

    def _notes(self, chosen: Candidate | None, objective: str) -> tuple[str, ...]:
        if objective != "simulated":
            return ()
        if chosen is None:
            return ("stopped before any placement was simulated; this is the best by flow",)
        missed = [
            f"{limit} (it is {chosen.figures.get(limit.figure, inf):.4g})"
            for limit in self.goal.limits
            if limit.kept_share(chosen.figures) < 1
        ]
        notes = [f"no placement was found that keeps {' and '.join(missed)}"] if missed else []
        if self._is_overcommitted(chosen.placement):
            notes.append(
                "the plan is the scenario's own placement, in which nodes hold more layers than "
                "they should; the bound is of placements without such nodes"
            )
        if not chosen.full:
            notes.append("time was up before runs of full length; the figures are of a brief one")
        elif len(chosen.full) < self.num_seeds:
            notes.append(
                f"time was up after {len(chosen.full)} of {self.num_seeds} seeds; means over so "
                "few are uncertain"
            )
        return tuple(notes)

"""One run of the planner: searches by flow and by simulation, and the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf, isfinite
from time import monotonic

from helixsim.backends import Backend
from helixsim.errors import InputError, NoRouteError, PlacementError
from helixsim.placement.placement import Placement
from helixsim.planner.feasibility import fewest_stages
from helixsim.planner.heuristics import petals, replicas, separate_mixed, swarm
from helixsim.planner.max_flow.optimise import close_gap, optimise
from helixsim.planner.max_flow.upper_bound import upper_bound
from helixsim.planner.notes import notes_on, small_shares, unserved_load
from helixsim.planner.objective import Figures, Objective
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.result import (
    CandidateResult,
    PlanResult,
    candidate_results,
    counted_figures,
    shown_figures,
    unused_nodes,
)
from helixsim.planner.search import NEGLIGIBLE, FlowSearch
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.simulated.candidates import OWN, Candidate, most_stages
from helixsim.planner.simulated.search import Effort, SimulatedSearch
from helixsim.planner.simulated.standings import Standing
from helixsim.planner.simulated.tasks import Setting
from helixsim.planner.simulated.trial_pool import TrialPool
from helixsim.planner.tiles.tiled_search import JOINED, TiledSearch
from helixsim.scenario.resolved import Scenario


@dataclass(frozen=True, slots=True)
class PlanProgress:
    """The state of a run of the planner, for progress displays.

    Attributes
    ----------
    seconds
        Time since the start.
    step
        The current step, as text.
    value, bound
        The best flow so far and the proved upper bound, in tokens per second; the bound is
        infinite before there is one.
    figures
        Figures of the best simulated candidate, if any.
    error
        Standard deviation of the score of that candidate, relative to it.
    """

    seconds: float
    step: str
    value: float
    bound: float
    figures: Figures | None = None
    error: float = 0.0


class PlanRun:
    """One run of the planner: a search by flow, and optionally a search by simulation.

    Parameters
    ----------
    scenario, problem, objective
        The scenario, its planning problem, and the objective of a simulated search.
    seed, solver, max_stages, time_limit_s
        As of :func:`~helixsim.planner.plan.plan`.
    budget
        How much the searches try.
    on_progress
        Called with the progress whenever it changes.
    """

    def __init__(
        self,
        scenario: Scenario,
        problem: PlanningProblem,
        objective: Objective,
        *,
        seed: int,
        solver: str,
        max_stages: int | None,
        time_limit_s: float | None,
        on_progress: Callable[[PlanProgress], None],
        budget: SearchBudget = DEFAULT_BUDGET,
    ) -> None:
        began = monotonic()
        self.scenario = scenario
        self.problem = problem
        self.objective = objective
        self.budget = budget
        self._began = began
        self.deadline = None if time_limit_s is None else began + time_limit_s
        self.time_limit_s = time_limit_s
        self.on_progress = on_progress
        self.search = self.new_search(seed, solver, max_stages, time_limit_s, budget)
        self.simulated_search: SimulatedSearch | None = None
        self.num_seeds = 1
        self._small_shares: dict[str, str] = {}  # label of a candidate -> what to say of it
        self._reported = PlanProgress(0.0, "", 0.0, inf)

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return monotonic() - self._began

    def new_search(
        self,
        seed: int,
        solver: str,
        max_stages: int | None,
        time_limit_s: float | None,
        budget: SearchBudget,
    ) -> FlowSearch:
        """A new search by flow."""
        return FlowSearch(
            self.problem,
            seed=seed,
            elapsed_s=self.elapsed_s,
            time_limit_s=time_limit_s,
            max_stages=max_stages,
            solver=solver,
            budget=budget,
            on_change=lambda search: self.report("searching for the greatest flow"),
        )

    def report(self, step: str, best: Standing | None = None) -> None:
        """Report the current step and the best candidate to the progress display."""
        figures = dict(best.candidate.figures) if best else {}
        self._reported = PlanProgress(
            self.elapsed_s(),
            step,
            self.search.value,
            self.search.bound,
            figures or None,
            best.error / best.score if best and figures and best.score > 0 else 0.0,
        )
        self.on_progress(self._reported)

    def report_again(self) -> None:
        """Report that the current step goes on."""
        self.on_progress(replace(self._reported, seconds=self.elapsed_s()))

    def prove(self) -> None:
        """Prove an upper bound if the method has proved none."""
        search = self.search
        if search.bound < inf:
            return
        bound = upper_bound(
            self.problem,
            max_stages=search.max_stages,
            solver=search.solver,
            at_least=search.value,
            budget=self.budget,
            stop=lambda: search.out_of_time,
        )
        search.prove(bound.tokens_per_s)
        close_gap(search)

    # -- simulation --------------------------------------------------------------------------

    def simulate(
        self, jobs: int | None, effort: Effort, *, searching: bool, backend: Backend = "local"
    ) -> None:
        """Choose a placement by simulation.

        Parameters
        ----------
        jobs, backend
            How many simulations run at a time, and where; see :class:`.TrialPool`.
        effort
            How much to try.
        searching
            Whether to search; otherwise only the placement of the method is simulated.
        """
        search, scenario = self.search, self.scenario
        self.num_seeds = effort.num_seeds
        setting = Setting(
            scenario,
            self.objective,
            search.seed,
            self.problem.partial_inference,
            self.problem.keep_links,
            search.max_stages,
            self.deadline,
            self.budget,
            self.problem.constraints,
        )
        # Processes take a while to start; a search of a few seconds does without.
        if search.left_s < self.budget.start_up_s:
            jobs, backend = 1, "local"
        trial_pool = TrialPool(setting, self.problem, jobs, self.report_again, backend)
        try:
            is_large = len(self.problem) >= self.budget.tiles_from_nodes
            is_large = is_large and searching and effort.rounds > 0
            starts = self._starts() if searching else [("method", self._placement())]
            self.simulated_search = SimulatedSearch(
                scenario,
                self.problem,
                self.objective,
                trial_pool,
                effort=effort if searching else Effort(effort.num_seeds, rounds=0, annealings=0),
                budget=self.budget,
                left_s=lambda: search.left_s,
                on_step=self.report,
            )
            if is_large:
                self._compare_tiles(starts, trial_pool, effort)
            else:
                self.simulated_search.run(starts)
        except NoRouteError:
            if not (search.out_of_time and search.ranges):
                raise
            # Time was up before any simulation: the result is the best by flow, with a note.
        finally:
            trial_pool.close()

    def _compare_tiles(
        self, starts: Sequence[tuple[str, Placement]], trial_pool: TrialPool, effort: Effort
    ) -> None:
        """Plan a large cluster tile by tile, and compare what that gives with the starts."""
        simulated = self.simulated_search
        assert simulated is not None
        for label, placement in starts:
            simulated.offer(label, placement)
            if self.search.out_of_time:
                return
        tiled = TiledSearch(
            self.problem,
            trial_pool,
            rounds=effort.rounds,
            left_s=lambda: self.search.left_s,
            on_step=lambda step: self.report(step, self._best()),
        )
        found = tiled.run()
        for label, placement in found:
            simulated.offer(label, placement)
            # The flow between tiles takes long to balance; the shares of first nodes are alike.
            if not label.endswith(JOINED) and (said := small_shares(self.scenario, placement)):
                self._small_shares[label] = said
        # One of each kind first: where time is short, the plan is no worse than simple replicas.
        labels = [label for label, _ in (*found, *starts)]
        first = [*labels[:1], *(label for label in (OWN, "replicas") if label in labels)]
        simulated.compare(list(dict.fromkeys([*first, *labels])))

    def _starts(self) -> list[tuple[str, Placement]]:
        """The initial placements: the scenario's own, of heuristics, and of greatest flow."""
        search, problem = self.search, self.problem
        starts: list[tuple[str, Placement]] = []
        own = self.scenario.placement
        if own is not None and self._within_cap(own):
            starts.append((OWN, own))
        methods = self._flow_methods()
        rounds = min(self.budget.anneal_rounds, self.budget.start_anneal_rounds)
        budget = replace(self.budget, anneal_rounds=rounds)
        for number, (label, method, cap) in enumerate(methods):
            if search.out_of_time and starts:
                break
            limit_s = None
            if self.time_limit_s is not None:
                # Each method gets an equal share of the remaining time for starts.
                passed_s = self.elapsed_s()
                left_s = self.time_limit_s * self.budget.start_share - passed_s
                limit_s = passed_s + left_s / (len(methods) - number)
            attempt = self.new_search(search.seed, search.solver, cap, limit_s, budget)
            try:
                method(attempt)
            except (PlacementError, NoRouteError, InputError):
                continue  # this method finds no placement; others may
            if attempt.ranges:
                starts.append((label, problem.placement(attempt.ranges)))
            if cap == search.max_stages:
                search.offer(attempt.ranges, attempt.value)
                search.prove(attempt.bound)
        return starts

    def _flow_methods(self) -> list[tuple[str, Callable[[FlowSearch], None], int | None]]:
        cap = self.search.max_stages
        found: list[tuple[str, Callable[[FlowSearch], None], int | None]] = [
            ("swarm", swarm, cap),
            ("petals", petals, cap),
            ("separate-mixed", separate_mixed, cap),
            ("replicas", replicas, cap),
            ("flow", optimise, cap),
        ]
        least = fewest_stages(self.problem)
        for factor in self.budget.start_stage_factors:
            tighter = max(least + 1, round(factor * least))
            if cap is None or tighter < cap:
                found.append((f"flow, {tighter} stages", optimise, tighter))
        return found

    def _within_cap(self, placement: Placement) -> bool:
        cap = self.search.max_stages
        return cap is None or most_stages(self.problem.topology(placement)) <= cap

    # -- the result --------------------------------------------------------------------------

    def take(self, ranges: Mapping[int, tuple[int, int]]) -> None:
        """Use a given placement instead of a search.

        Raises
        ------
        PlacementError
            If no request can pass it, or a route has too many stages.
        """
        if not self.search.offer(ranges):
            raise PlacementError("no request can pass through all layers of this solution")

    def _placement(self) -> Placement:
        if not self.search.ranges:
            raise NoRouteError(
                "no placement was found within the time limit; raise it with --time-limit"
            )
        return self.problem.placement(self.search.ranges)

    def fall_back(self) -> None:
        """After Ctrl-C without any placement, use that of a heuristic, which takes no time."""
        if self.search.ranges:
            return
        search = self.search
        search.on_change = lambda search: None  # the progress display has ended
        with suppress(PlacementError, NoRouteError):
            swarm(search)

    def result(self, method: str, searched_by: str, *, interrupted: bool) -> PlanResult:
        """The result of the run.

        Parameters
        ----------
        method
            Name of the method.
        searched_by
            ``simulated`` or ``flow``.
        interrupted
            Whether Ctrl-C ended the search.

        Raises
        ------
        NoRouteError
            If no placement was found.
        """
        search, problem = self.search, self.problem
        best = self._best()
        chosen = None if best is None else best.candidate
        if chosen is None:
            placement, value = self._placement(), search.value
            stages = most_stages(problem.topology(placement))
        else:
            placement, value = chosen.placement, chosen.max_flow_tokens_per_s
            stages = chosen.stages
        measured = chosen if chosen is not None and chosen.figures else None
        candidates: tuple[CandidateResult, ...] = ()
        if self.simulated_search is not None and chosen is not None:
            pool, full_s = list(self.simulated_search.pool), self.scenario.run.duration_s
            candidates = candidate_results(pool, chosen, full_s, self.objective)
        return PlanResult(
            method=method,
            objective=searched_by,
            goal=self.objective.figure,
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
            simulated=None if measured is None else shown_figures(measured, self.objective),
            candidates=candidates,
            interrupted=interrupted,
            notes=self._notes(chosen) if searched_by == "simulated" else (),
            limits=self.objective.limits,
            counted={} if measured is None else counted_figures(measured, self.objective),
            error=best.error / best.score if best and best.candidate.runs and best.score else None,
        )

    def _is_overcommitted(self, placement: Placement) -> bool:
        """Whether a node holds more layers than its type should; bounds exclude such placements."""
        problem = self.problem
        ranges = problem.ranges(placement).items()
        return any(end - start > problem.max_layers(node) for node, (start, end) in ranges)

    def _best(self) -> Standing | None:
        found = self.simulated_search.standings() if self.simulated_search is not None else []
        return found[0] if found else None

    def _notes(self, chosen: Candidate | None) -> tuple[str, ...]:
        overcommitted = chosen is not None and self._is_overcommitted(chosen.placement)
        found = notes_on(chosen, self.objective, self.num_seeds, is_overcommitted=overcommitted)
        if said := unserved_load(chosen, self.objective, self.scenario):
            found += (said,)
        if chosen is not None and chosen.label in self._small_shares:
            found += (self._small_shares[chosen.label],)
        return found

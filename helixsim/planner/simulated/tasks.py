"""The tasks of a search by simulation: simulations and annealings of candidate placements.

The result of a task depends on its inputs only, so it is the same wherever the task runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import TypeVar

from helixsim.planner.constraints import FREE, Constraints
from helixsim.planner.objective import Objective
from helixsim.planner.problem import PlanningProblem, planning_problem
from helixsim.planner.search import random_stream
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.simulated.alike import Key
from helixsim.planner.simulated.correction import Correction
from helixsim.planner.simulated.proposals import Proposal, Proposer
from helixsim.planner.simulated.templates import best_templates
from helixsim.planner.simulated.trials import Trial, TrialRun, run_trial
from helixsim.scenario.resolved import Scenario

Result = TypeVar("Result")
RangesItems = tuple[tuple[int, tuple[int, int]], ...]


@dataclass(frozen=True, slots=True)
class AnnealingTask:
    """One annealing of the surrogate.

    Attributes
    ----------
    start
        Initial placement, as items of ranges; may be empty where there is a template.
    template
        Place of a template among the best, from 0, that it starts from if there are any; None for
        the initial placement.
    objective
        Objective of the score.
    stream
        Name of its stream of random numbers.
    iterations
        Number of neighbours to try.
    heat
        Factor of the temperatures.
    correction
        Correction of the surrogate by the simulations so far.
    most_s
        Seconds after which it ends early; None for no limit.
    kept
        Number of structures to return; None for as many as the budget says.
    known
        Keys of placements that are not returned.
    """

    start: RangesItems
    template: int | None
    objective: Objective
    stream: tuple[object, ...]
    iterations: int
    heat: float
    correction: Correction
    most_s: float | None
    kept: int | None = None
    known: frozenset[Key] = frozenset()


@dataclass(frozen=True, slots=True)
class Setting:
    """What all tasks of a search have in common; sent to every process once.

    Attributes
    ----------
    deadline
        Time of :func:`time.monotonic` at which simulations are stopped and annealings end;
        None for no limit.
    budget
        How much an annealing tries.
    constraints
        What placements must keep to.
    """

    scenario: Scenario
    objective: Objective
    seed: int
    partial_inference: bool
    keep_links: int | None
    max_stages: int | None
    deadline: float | None
    budget: SearchBudget = DEFAULT_BUDGET
    constraints: Constraints = FREE


class TaskRunner:
    """Runs tasks, and keeps what a process needs between them.

    Parameters
    ----------
    setting
        What all tasks have in common.
    problem
        The planning problem of the setting's scenario, if it is known.
    on_look
        Called now and then while tasks run.

    Attributes
    ----------
    deadline
        As of the setting, by the clock of this machine.
    proposer
        Scores and improves placements.
    """

    def __init__(
        self,
        setting: Setting,
        problem: PlanningProblem | None = None,
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self.setting = setting
        self.deadline = setting.deadline
        self._on_look = on_look
        self.problem = problem or planning_problem(
            setting.scenario,
            partial_inference=setting.partial_inference,
            keep_links=setting.keep_links,
            constraints=setting.constraints,
        )
        self.proposer = Proposer(
            setting.scenario,
            self.problem,
            setting.objective,
            max_stages=setting.max_stages,
            budget=setting.budget,
        )
        self._templates: list[Proposal] | None = None

    def simulate(self, trial: Trial) -> TrialRun | None:
        """Run a simulation; None if it fails or would start after the deadline."""
        setting = self.setting
        return run_trial(setting.scenario, setting.objective, trial, self.deadline, self._on_look)

    def anneal(self, task: AnnealingTask) -> list[Proposal]:
        """Run an annealing; its best placements."""
        own_end = None if task.most_s is None else monotonic() + task.most_s
        deadlines = [end for end in (self.deadline, own_end) if end is not None]

        def is_over() -> bool:
            self._on_look()
            return bool(deadlines) and monotonic() >= min(deadlines)

        start = () if task.template is None else self._template(task.template, is_over)
        start = start or task.start
        if not start:
            return []
        self.proposer.use(task.objective, task.correction)
        rng = random_stream(self.setting.seed, *task.stream)
        return self.proposer.anneal(
            dict(start),
            rng,
            task.iterations,
            heat=task.heat,
            kept=task.kept,
            known=task.known,
            out_of_time=is_over,
        )

    def call(self, call: tuple[Callable[..., Result], object]) -> Result:
        """Call a function with the setting, its problem, the look, and its own task."""
        function, task = call
        setting = replace(self.setting, deadline=self.deadline)
        return function(setting, self.problem, self._on_look, task)

    def _template(self, place: int, is_over: Callable[[], bool]) -> RangesItems:
        if self._templates is None:
            self.proposer.use(self.setting.objective, Correction())
            self._templates = best_templates(
                self.proposer, random_stream(self.setting.seed, "templates"), is_over
            )
        found = self._templates
        return found[place % len(found)].ranges if found else ()

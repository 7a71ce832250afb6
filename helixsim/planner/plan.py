"""Plan a scenario: from what is asked to a :class:`~helixsim.planner.result.PlanResult`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path

from helixsim.errors import InputError
from helixsim.planner.heuristics import petals, separate, separate_mixed, swarm
from helixsim.planner.max_flow.optimise import optimise
from helixsim.planner.milp import milp, recover
from helixsim.planner.objective import DEFAULT_GOAL, parse_goal
from helixsim.planner.plan_run import PlanRun, Progress
from helixsim.planner.problem import check_stages, planning_problem
from helixsim.planner.result import PlanResult
from helixsim.planner.search import Search
from helixsim.planner.simulated.search import Effort
from helixsim.planner.solver import check_solver
from helixsim.scenario.resolved import Scenario

METHODS: Mapping[str, Callable[[Search], None]] = {
    "optimise": optimise,
    "milp": milp,
    "petals": petals,
    "swarm": swarm,
    "separate": separate,
    "separate-mixed": separate_mixed,
}
OBJECTIVES = ("simulated", "flow")


def plan(
    scenario: Scenario,
    *,
    method: str = "optimise",
    objective: str = "simulated",
    goal: str = DEFAULT_GOAL,
    subject_to: Sequence[str] = (),
    max_stages: int | None = None,
    partial_inference: bool = False,
    keep_links: int | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    solver: str = "CBC",
    jobs: int = 1,
    effort: Effort | None = None,
    model_file: Path | None = None,
    solution_file: Path | None = None,
    from_solution: Path | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> PlanResult:
    """Choose which node holds which layers.

    Parameters
    ----------
    scenario
        Machines, network, LLM, workload. A placement that it has is a candidate when
        simulating, and not looked at otherwise.
    method
        ``optimise``, ``milp``, ``petals``, ``swarm``, ``separate`` or ``separate-mixed``.
    objective
        ``flow``: the greatest maximum flow. ``simulated``: the best `goal` in simulations of
        the scenario; only ``optimise`` searches for it, other methods are simulated as they are.
    goal, subject_to
        Of objective ``simulated``: a figure of a run's summary, and limits such as
        ``decode_latency_s.mean<=1.5``.
    max_stages
        The most nodes that a request may pass.
    partial_inference
        Whether requests may enter a node's layers in their midst.
    keep_links
        Keep only so many links from each node to others, the fastest.
    time_limit_s
        When to stop; None for when the method has done its work.
    seed
        Of all randomness of the search. Runs are seeded as the scenario says.
    solver
        Back end of python-mip: ``CBC``, ``HIGHS`` or ``GUROBI``.
    jobs
        Processes that simulate; more than 1 needs ``if __name__ == "__main__":`` in a script.
    effort
        How much a simulated search tries.
    model_file, solution_file
        Where method ``milp`` writes its model (.lp) and its raw solution (.sol).
    from_solution
        A raw solution to take the placement from, instead of searching.
    overwrite
        Whether these two may replace files.
    on_progress
        Told what goes on.

    Returns
    -------
    PlanResult
        Placement, value, bound, gap, trace of incumbents. After Ctrl-C, the best until then.

    Raises
    ------
    InputError
        If something that was asked makes no sense (ScenarioError: if the cluster cannot hold
        the LLM, falls apart, or the solver is not installed).
    PlacementError, NoRouteError
        If the method finds no placement.
    """
    _check(method, objective, max_stages, keep_links, time_limit_s, jobs)
    if (method != "milp" or from_solution is not None) and (model_file or solution_file):
        raise InputError("only a search with method milp has a model and a raw solution to write")
    check_solver(solver)
    planner = PlanRun(
        scenario,
        planning_problem(scenario, partial_inference=partial_inference, keep_links=keep_links),
        parse_goal(goal, subject_to),
        seed=seed,
        solver=solver,
        max_stages=max_stages,
        time_limit_s=time_limit_s,
        on_progress=on_progress,
    )
    check_stages(planner.problem, max_stages)
    interrupted = False
    try:
        if from_solution is not None:
            planner.take(recover(planner.problem, from_solution))
        elif objective == "flow" or method != "optimise":
            if method == "milp":
                milp(
                    planner.search,
                    model_file=model_file,
                    solution_file=solution_file,
                    overwrite=overwrite,
                )
            else:
                METHODS[method](planner.search)
        planner.prove()
        if objective == "simulated":
            planner.simulate(
                jobs, effort or Effort(), searching=method == "optimise" and from_solution is None
            )
    except KeyboardInterrupt:
        interrupted = True
        planner.fall_back()
    if from_solution is not None:
        method = "from-solution"
    return planner.result(method, objective, interrupted=interrupted)


def _check(
    method: str,
    objective: str,
    max_stages: int | None,
    keep_links: int | None,
    time_limit_s: float | None,
    jobs: int,
) -> None:
    if method not in METHODS:
        raise InputError(f"'{method}' is none of {', '.join(METHODS)}", where="--method")
    if objective not in OBJECTIVES:
        raise InputError(f"'{objective}' is none of {', '.join(OBJECTIVES)}", where="--objective")
    for option, number in (
        ("--max-stages", max_stages),
        ("--keep-links", keep_links),
        ("--jobs", jobs),
    ):
        if number is not None and number < 1:
            raise InputError(f"{number} is too few; at least 1", where=option)
    if time_limit_s is not None and not (isfinite(time_limit_s) and time_limit_s > 0):
        raise InputError(f"{time_limit_s:g} s is no time; above 0", where="--time-limit")

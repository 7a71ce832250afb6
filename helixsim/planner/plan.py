"""Plan a scenario: :func:`plan` returns a :class:`~helixsim.planner.result.PlanResult`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

from helixsim.backends import Backend, check_backend
from helixsim.errors import InputError
from helixsim.placement.placement import Placement
from helixsim.planner.constraints import parse_constraints, violations
from helixsim.planner.feasibility import check_stages
from helixsim.planner.figures import DEFAULT_FIGURE, names_of
from helixsim.planner.heuristics import petals, replicas, separate, separate_mixed, swarm
from helixsim.planner.max_flow.optimise import optimise
from helixsim.planner.milp import milp, recover
from helixsim.planner.objective import parse_objective
from helixsim.planner.plan_run import PlanProgress, PlanRun
from helixsim.planner.problem import PlanningProblem, planning_problem
from helixsim.planner.result import PlanResult
from helixsim.planner.search import FlowSearch
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.simulated.search import Effort
from helixsim.planner.solver import check_solver
from helixsim.scenario.resolved import Scenario

METHODS: Mapping[str, Callable[[FlowSearch], None]] = {
    "optimise": optimise,
    "milp": milp,
    "petals": petals,
    "swarm": swarm,
    "replicas": replicas,
    "separate": separate,
    "separate-mixed": separate_mixed,
}
SEARCHES = ("simulated", "flow")
"""What a plan may be optimised for: figures of simulations, or the maximum flow."""


def plan(
    scenario: Scenario,
    *,
    method: str = "optimise",
    objective: str = "simulated",
    goal: str = DEFAULT_FIGURE,
    subject_to: Sequence[str] = (),
    max_stages: int | None = None,
    partial_inference: bool = False,
    keep_links: int | None = None,
    fix: Sequence[str] = (),
    ban: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    same_region: bool = False,
    start_from: Placement | None = None,
    move_price: float = 0.0,
    time_limit_s: float | None = None,
    seed: int = 0,
    solver: str = "CBC",
    jobs: int | None = 1,
    backend: Backend = "local",
    effort: Effort | None = None,
    budget: SearchBudget = DEFAULT_BUDGET,
    model_file: Path | None = None,
    solution_file: Path | None = None,
    from_solution: Path | None = None,
    overwrite: bool = False,
    on_progress: Callable[[PlanProgress], None] = lambda progress: None,
) -> PlanResult:
    """Choose which node holds which layers.

    Parameters
    ----------
    scenario
        Machines, network, LLM and workload. Its placement, if any, is a candidate of a
        simulated search, and is ignored otherwise.
    method
        ``optimise``, ``milp``, ``petals``, ``swarm``, ``replicas``, ``separate`` or
        ``separate-mixed``.
    objective
        ``flow``: the greatest maximum flow. ``simulated``: the best `goal` in simulations of
        the scenario. Only ``optimise`` searches for it; the placements of other methods are
        simulated without a search.
    goal, subject_to
        With objective ``simulated``: ``cost``, ``goodput``, or the figure of a run's summary to
        optimise, and limits such as ``decode_latency_s.mean<=1.5`` or
        ``slo.chat.attainment>=0.95``. :func:`.names_of` has the figures of a scenario.
    max_stages
        Most nodes of a route.
    partial_inference
        Whether requests may enter a node at any of its layers.
    keep_links
        Number of links from each node to other nodes that are kept, the fastest ones.
    fix, ban
        Layers that a node holds, exactly these, and layers that it must not hold: texts such as
        ``a100-0=0-19`` for the layers 0 to 19, or ``a100-0=[0, 20)``. `ban` may name a node often.
    leave_out
        Names of nodes that hold no layers.
    same_region
        Whether each request stays in one region.
    start_from
        The placement in service: the search begins there too.
    move_price
        What each layer costs that a node must load anew, in the unit of what is optimised: tokens
        per second for a rate, seconds for a latency.
    time_limit_s
        Seconds after which to stop; None to stop when the budget is used up.
    seed
        Seed of the search. Simulations use the scenario's seed.
    solver
        Back end of python-mip: ``CBC``, ``HIGHS`` or ``GUROBI``.
    jobs
        Number of simulations at a time, each in a process; more than 1 local job needs
        ``if __name__ == "__main__":`` in a script. None for all cores.
    backend
        Where simulations run: ``local`` on this machine, ``ray`` on a Ray cluster, as of
        :func:`helixsim.backends.connected_ray`. The plan is the same.
    effort
        How much a simulated search tries.
    budget
        All other limits of the searches, see :class:`.SearchBudget`.
    model_file, solution_file
        Where method ``milp`` writes its model (.lp) and its raw solution (.sol).
    from_solution
        A raw solution to read the placement from, instead of a search.
    overwrite
        Whether these two may replace existing files.
    on_progress
        Called with the progress whenever it changes.

    Returns
    -------
    PlanResult
        The placement, its maximum flow, the upper bound, and simulated candidates if any. After
        Ctrl-C, the best placement found by then.

    Raises
    ------
    InputError
        If an argument is invalid (ScenarioError: if the cluster cannot hold the LLM, is not
        connected, or the solver is not installed).
    PlacementError, NoRouteError
        If the method finds no placement.
    """
    _check(method, objective, max_stages, keep_links, time_limit_s, jobs)
    if (method != "milp" or from_solution is not None) and (model_file or solution_file):
        raise InputError("only method milp writes a model and a raw solution")
    check_backend(backend)
    check_solver(solver)
    parsed = parse_objective(goal, subject_to, names_of(scenario))
    constraints = parse_constraints(
        [node.name for node in scenario.cluster],
        scenario.llm.num_layers,
        fix=fix,
        ban=ban,
        leave_out=leave_out,
        same_region=same_region,
        start=None if start_from is None else start_from.layers,
        move_price=move_price,
    )
    problem = planning_problem(
        scenario,
        partial_inference=partial_inference,
        keep_links=keep_links,
        constraints=constraints,
    )
    plan_run = PlanRun(
        _with_start(scenario, problem, start_from),
        problem,
        parsed,
        seed=seed,
        solver=solver,
        max_stages=max_stages,
        time_limit_s=time_limit_s,
        on_progress=on_progress,
        budget=budget,
    )
    check_stages(plan_run.problem, max_stages)
    interrupted = False
    try:
        if from_solution is not None:
            plan_run.take(recover(plan_run.problem, from_solution))
        elif objective == "flow" or method != "optimise":
            if method == "milp":
                milp(
                    plan_run.search,
                    model_file=model_file,
                    solution_file=solution_file,
                    overwrite=overwrite,
                )
            else:
                METHODS[method](plan_run.search)
        plan_run.prove()
        if objective == "simulated":
            plan_run.simulate(
                jobs or (os.cpu_count() if backend == "local" else None),
                effort or Effort(),
                backend=backend,
                searching=method == "optimise" and from_solution is None,
            )
    except KeyboardInterrupt:
        interrupted = True
        plan_run.fall_back()
    if from_solution is not None:
        method = "from-solution"
    return plan_run.result(method, objective, interrupted=interrupted)


def _with_start(
    scenario: Scenario, problem: PlanningProblem, start_from: Placement | None
) -> Scenario:
    """The scenario with the placement in service, unless that breaks a constraint."""
    placement = start_from if start_from is not None else scenario.placement
    if placement is not None:
        ranges = problem.ranges(placement)
        if violations(problem, ranges):
            placement = None
        elif problem.constraints.same_region:
            placement = problem.placement(ranges)  # without links between regions
    return replace(scenario, placement=placement)


def _check(
    method: str,
    objective: str,
    max_stages: int | None,
    keep_links: int | None,
    time_limit_s: float | None,
    jobs: int | None,
) -> None:
    if method not in METHODS:
        raise InputError(
            f"unknown method '{method}'; choose one of {', '.join(METHODS)}", where="--method"
        )
    if objective not in SEARCHES:
        raise InputError(
            f"unknown objective '{objective}'; choose one of {', '.join(SEARCHES)}",
            where="--objective",
        )
    for option, number in (
        ("--max-stages", max_stages),
        ("--keep-links", keep_links),
        ("--jobs", jobs),
    ):
        if number is not None and number < 1:
            raise InputError(f"must be at least 1, not {number}", where=option)
    if time_limit_s is not None and not (isfinite(time_limit_s) and time_limit_s > 0):
        raise InputError(f"must be above 0 s, not {time_limit_s:g} s", where="--time-limit")

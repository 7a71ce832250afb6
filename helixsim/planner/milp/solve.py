"""Solve the program in time slices of growing length and keep the best placement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from random import Random
from typing import Any

from helixsim.errors import PlacementError
from helixsim.output_files import check_output, write_whole
from helixsim.planner.feasibility import check_stages
from helixsim.planner.heuristics import petals_ranges, separate_ranges, swarm_ranges
from helixsim.planner.max_flow.cover_program import CoverProgram
from helixsim.planner.max_flow.upper_bound import node_classes, upper_bound
from helixsim.planner.milp.formulation import build
from helixsim.planner.milp.inputs import MilpInputs, milp_inputs
from helixsim.planner.milp.model_file import check_suffix, model_text
from helixsim.planner.milp.solutions import (
    ranges_of,
    route_depths,
    solution_text,
    start_values,
    used_nodes,
)
from helixsim.planner.milp.solver_process import SolverProcess
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.search import NEGLIGIBLE, FlowSearch
from helixsim.planner.solver import MAXIMIZE, new_model

FIRST_SLICE_S = 10.0
"""Seconds of the first attempt. Each further attempt starts from the best placement so far and
takes twice as long: a solver reports no incumbent while it runs, so after an interruption at most
about half of the time is lost."""
SHORTEST_SLICE_S = 0.5
"""Least time left, in seconds, for a further attempt: building the model takes about as long."""
SHARE_OF_REST = 0.9
"""Share of the remaining time that a solver is given, because it checks its clock only at times."""
OVERTIME_S = 2.0
"""Seconds beyond the time limit that the solver may take to stop before its process is killed."""
SOLVER_TOLERANCE = 1e-6
"""Relative distance of a solver's bound to a placement's exact flow that counts as none.

Solvers take a switch of 1e-6 for off but still allow flow over it."""


def milp(
    search: FlowSearch,
    *,
    model_file: Path | None = None,
    solution_file: Path | None = None,
    start: Ranges | None = None,
    strengthen: bool = True,
    overwrite: bool = False,
) -> None:
    """Search with the published mixed-integer program.

    It starts from the best of `start`, the search's incumbent and the heuristics. It ends when
    the solver's placement is proved optimal or the time is up. Ctrl-C ends it at once: the search
    keeps its incumbent, and the solution file is written.

    With `search.max_stages`, no route that the layers allow passes more nodes.

    Parameters
    ----------
    model_file
        Where to write the program, as .lp or .mps.
    solution_file
        Where to write the best solution, one name and value per line; :func:`.recover` reads it.
        It has no values of flows if no attempt improved on the start.
    start
        A placement to start from.
    strengthen
        Whether to add constraints that the published program does not have but that keep its
        optimum, and the bound of :mod:`~helixsim.planner.max_flow.upper_bound`. If false, the
        program is the published one.
    overwrite
        Whether to replace existing files.

    Raises
    ------
    InputError, OutputError
        If a file cannot be written; checked before the search begins.
    PlacementError
        If no placement lets a request pass within the limit on stages.
    ScenarioError
        If the solver is not installed.
    SimulationError
        If the solver's process ends unexpectedly, for example because memory ran out.
    """
    _check_files(model_file, solution_file, overwrite)
    check_stages(search.problem, search.max_stages)
    new_model(MAXIMIZE, search.solver)  # fail at once if it is not installed
    problem = search.problem
    plain = milp_inputs(problem, max_stages=search.max_stages, strengthen=strengthen)
    best = _Best(search, plain)
    best.offer(start or {})
    best.offer_heuristics()
    if strengthen:
        _prove_by_covers(search)
    # Slightly above the proved bound, so that rounding cuts off no placement.
    bound = search.bound * (1 + SOLVER_TOLERANCE) if strengthen else inf
    inputs = replace(plain, bound=bound)
    if model_file is not None:
        text = model_text(build(inputs, search.solver, search.seed).model, model_file)
        write_whole(model_file, text, overwrite=overwrite)
    try:
        _solve_in_slices(search, inputs, best)
    finally:
        if solution_file is not None and best.values:
            text = solution_text(best.values, search.value)
            write_whole(solution_file, text, overwrite=overwrite)


def _check_files(model_file: Path | None, solution_file: Path | None, overwrite: bool) -> None:
    for file in (model_file, solution_file):
        if file is not None:
            check_output(file, overwrite=overwrite)
    if model_file is not None:
        check_suffix(model_file)


def _prove_by_covers(search: FlowSearch) -> None:
    """Prove a bound without the program, and try to prove that the incumbent is optimal."""
    problem = search.problem

    def stop() -> bool:
        return search.out_of_time

    bound = upper_bound(
        problem,
        max_stages=search.max_stages,
        solver=search.solver,
        at_least=search.value,
        budget=search.budget,
        stop=stop,
    )
    search.prove(max(bound.tokens_per_s, search.value))
    if search.value and not search.optimal and not stop():
        covers = CoverProgram(
            node_classes(problem, search.budget),
            problem.num_layers,
            search.max_stages,
            search.solver,
            search.budget,
        )
        least = search.value * (1 + NEGLIGIBLE / 2)
        if not covers.is_possible(least, stop) and not stop():
            search.prove(least)


def _solve_in_slices(search: FlowSearch, inputs: MilpInputs, best: _Best) -> None:
    slice_s = FIRST_SLICE_S
    if search.optimal:
        return
    with SolverProcess(inputs, search.solver, search.seed) as solver:
        while not search.optimal and search.left_s > SHORTEST_SLICE_S:
            seconds = min(slice_s, SHARE_OF_REST * search.left_s)
            answer = solver.solve(seconds, best.values, search.left_s + OVERTIME_S)
            if answer is None:
                return
            if best.take(answer):
                return
            slice_s *= 2


class _Best:
    """The best solution so far, as a placement of the search and as values of variables."""

    def __init__(self, search: FlowSearch, inputs: MilpInputs) -> None:
        self.search = search
        self.inputs = inputs
        self.values: dict[str, float] | None = None
        if search.ranges:
            self.values = start_values(inputs, search.ranges)

    def offer(self, ranges: Ranges) -> bool:
        """Report a placement whose routes are within the limit on stages.

        Returns
        -------
        bool
            Whether it is the new incumbent.
        """
        most, search = self.search.max_stages, self.search
        if not ranges or (
            most is not None and max(route_depths(self.inputs, ranges).values()) > most
        ):
            return False
        if not search.offer(ranges):
            return False
        self.values = start_values(self.inputs, ranges)
        return True

    def offer_heuristics(self) -> None:
        """Report the placements of the heuristics."""
        problem, seed = self.search.problem, self.search.seed
        rules: tuple[Callable[[PlanningProblem], Ranges], ...] = (
            lambda problem: separate_ranges(problem, mixed=True),
            swarm_ranges,
            lambda problem: petals_ranges(problem, Random(seed)),
        )
        for rule in rules:
            try:
                self.offer(rule(problem))
            except PlacementError:
                continue  # this rule finds no placement here

    def take(self, answer: Mapping[str, Any]) -> bool:
        """Report the placement and the bound of an answer.

        Returns
        -------
        bool
            Whether the solver has finished.

        Raises
        ------
        PlacementError
            If the program is infeasible or its optimum has no flow.
        """
        search, values = self.search, answer["values"]
        if values:
            self._take_values(values)
        is_done = answer["status"] in ("OPTIMAL", "INFEASIBLE")
        if is_done and not search.value:
            limit = search.max_stages
            within = "" if limit is None else f" on a route of {limit} stages or less"
            raise PlacementError(f"no placement lets a request pass{within}")
        self._prove(answer["bound"])
        return is_done

    def _prove(self, bound: float | None) -> None:
        """Report the solver's bound, unless the incumbent contradicts it."""
        search = self.search
        if bound is None or bound < search.value * (1 - SOLVER_TOLERANCE):
            return
        is_near = search.value > 0 and bound <= search.value * (1 + SOLVER_TOLERANCE)
        search.prove(search.value if is_near else bound)

    def _take_values(self, values: dict[str, float]) -> None:
        """Report the nodes that carry flow, and then all nodes, which may carry more."""
        ranges = ranges_of(self.inputs, values)
        used = used_nodes(self.inputs, values)
        for nodes in (used, set(ranges)):
            if self.offer({node: ranges[node] for node in sorted(nodes)}):
                self.values = values

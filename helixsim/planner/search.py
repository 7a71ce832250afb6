"""The state of a search by flow: its options, its incumbent, and the bounds proved so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from random import Random

from helixsim.errors import PlacementError
from helixsim.planner.constraints import move_cost, violations
from helixsim.planner.max_flow.dinic import flow_value, longest_route
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget

NEGLIGIBLE = 1e-9
"""Relative difference between flows that counts as none."""


def random_stream(seed: int, *purpose: object) -> Random:
    """A separate stream of random numbers for each seed and purpose.

    It is seeded with text, which does not depend on PYTHONHASHSEED.
    """
    return Random("/".join(map(str, (seed, *purpose))))


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A placement that was the best so far when it was found.

    Attributes
    ----------
    seconds
        Time since the search began.
    value
        Its maximum flow, in tokens per second.
    bound
        The lowest upper bound proved by then, in tokens per second; infinite before there is one.
    """

    seconds: float
    value: float
    bound: float


@dataclass
class FlowSearch:
    """A search by flow, shared by its method, its caller and a progress display.

    Methods report every placement and every bound that they find. When the time limit or Ctrl-C
    stops a method, the search holds the best placement.

    Attributes
    ----------
    problem
        The planning problem.
    seed
        Seed of all random numbers.
    elapsed_s
        Clock: seconds since the search began.
    time_limit_s
        Seconds after which to stop; None to stop when the method's budget is used up.
    max_stages
        Most stages of a route; None for any number.
    solver
        Solver of linear programs, see :func:`~helixsim.planner.solver.new_model`.
    budget
        How much the method tries.
    on_change
        Called with the search when the incumbent or the bound improves.
    ranges, value, cost
        The best placement so far, its exact maximum flow in tokens per second, and what moving to
        it costs, in the same unit; empty and 0 at first.
    bound
        The lowest proved upper bound on the flow of all allowed placements.
    trace
        All incumbents, in order.
    """

    problem: PlanningProblem
    seed: int = 0
    elapsed_s: Callable[[], float] = lambda: 0.0
    time_limit_s: float | None = None
    max_stages: int | None = None
    solver: str = "CBC"
    budget: SearchBudget = DEFAULT_BUDGET
    on_change: Callable[[FlowSearch], None] = lambda search: None
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)
    value: float = 0.0
    cost: float = 0.0
    bound: float = inf
    trace: list[Incumbent] = field(default_factory=list)

    def rng(self, *purpose: object) -> Random:
        """A separate stream of random numbers for each purpose."""
        return random_stream(self.seed, *purpose)

    @property
    def left_s(self) -> float:
        """Seconds until the time limit; infinite without one."""
        return inf if self.time_limit_s is None else self.time_limit_s - self.elapsed_s()

    @property
    def out_of_time(self) -> bool:
        """Whether the time limit is reached."""
        return self.left_s <= 0

    @property
    def gap(self) -> float:
        """Relative distance of the incumbent to the bound, 0 to 1."""
        return 1.0 if self.bound == inf else max(0.0, 1 - self.value / self.bound)

    @property
    def optimal(self) -> bool:
        """Whether the incumbent is proved to be optimal."""
        return self.value > 0 and self.value - self.cost >= self.bound * (1 - NEGLIGIBLE)

    def offer(self, ranges: Ranges, value: float | None = None) -> bool:
        """Report a placement.

        A placement with routes of more than `max_stages` stages is ignored, and one that breaks
        the problem's constraints. The flow counts less the price of the layers that are moved.

        Parameters
        ----------
        ranges
            The placement.
        value
            Its exact maximum flow in tokens per second, if it is known.

        Returns
        -------
        bool
            Whether it is the new incumbent.
        """
        value = flow_value(self.problem, ranges) if value is None else value
        cost = move_cost(self.problem, ranges)
        if value <= 0 or (
            self.ranges and value - cost <= self.value * (1 + NEGLIGIBLE) - self.cost
        ):
            return False
        if violations(self.problem, ranges, self.max_stages):
            return False
        self.ranges, self.value, self.cost = dict(ranges), value, cost
        self.trace.append(Incumbent(self.elapsed_s(), value, self.bound))
        self.on_change(self)
        return True

    def require(self, ranges: Ranges, method: str) -> None:
        """Report the one placement of a heuristic, which must be usable.

        Raises
        ------
        PlacementError
            If no request can pass (ranges that cover all layers may still not connect, or the
            links between them may be missing), or a route has more stages than the search allows,
            which heuristics do not know of.
        """
        most = self.max_stages
        if most is not None and (stages := longest_route(self.problem, ranges)) > most:
            raise PlacementError(
                f"{method} makes routes of {stages} stages, but --max-stages is {most}; "
                "use another method"
            )
        value = flow_value(self.problem, ranges)
        if value <= 0:
            alternative = "" if self.problem.partial_inference else "--partial-inference or "
            raise PlacementError(
                f"{method} gives every layer a node, but no request can pass through all layers: "
                "there is no chain of linked nodes in which each one starts where the one before "
                f"ends; use {alternative}another method"
            )
        if broken := violations(self.problem, ranges):
            raise PlacementError(
                f"{method} does not know constraints: {broken[0]}; use --method optimise"
            )
        self.offer(ranges, value)

    def prove(self, bound: float) -> None:
        """Report an upper bound, in tokens per second."""
        if bound < self.bound:
            self.bound = bound
            self.on_change(self)

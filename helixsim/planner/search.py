"""What every planning method is handed: randomness, an end, and somewhere to report to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from random import Random

from helixsim.planner.max_flow.dinic import flow_value, longest_route
from helixsim.planner.problem import PlanningProblem, Ranges

NEGLIGIBLE = 1e-9
"""Relative difference of flows that counts as none."""


def random_stream(seed: int, *purpose: object) -> Random:
    """A stream of random numbers of its own for each seed and purpose.

    Seeded with text, which does not depend on PYTHONHASHSEED.
    """
    return Random("/".join(map(str, (seed, *purpose))))


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A placement that was the best so far.

    Attributes
    ----------
    seconds
        Since the search began.
    value
        Its maximum flow, in tokens per second.
    bound
        The least upper bound that was proved by then; infinite before there is one.
    """

    seconds: float
    value: float
    bound: float


@dataclass
class Search:
    """The state of a search that its method, its caller and a watching person share.

    Methods report every placement they find and every bound they prove; whoever stops them (the
    time limit, Ctrl-C) finds the best one here.

    Attributes
    ----------
    problem
        What is planned.
    seed
        Of all randomness.
    elapsed_s
        A clock: seconds since the search began.
    time_limit_s
        When to stop; None for when the method's budget is used up.
    max_stages
        Most stages of a route; None for any number.
    solver
        What linear programs are solved with, see :func:`~helixsim.planner.solver.new_model`.
    on_change
        Called with the search when the incumbent or the bound improves.
    ranges, value
        The best placement so far, and its exact maximum flow; empty and 0 at first.
    bound
        The least proved upper bound on the flow of any placement that is allowed.
    trace
        Every incumbent.
    """

    problem: PlanningProblem
    seed: int = 0
    elapsed_s: Callable[[], float] = lambda: 0.0
    time_limit_s: float | None = None
    max_stages: int | None = None
    solver: str = "CBC"
    on_change: Callable[[Search], None] = lambda search: None
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)
    value: float = 0.0
    bound: float = inf
    trace: list[Incumbent] = field(default_factory=list)

    def rng(self, *purpose: object) -> Random:
        """A stream of random numbers of its own for each purpose."""
        return random_stream(self.seed, *purpose)

    @property
    def left_s(self) -> float:
        """Time that is left; infinite without a limit."""
        return inf if self.time_limit_s is None else self.time_limit_s - self.elapsed_s()

    @property
    def out_of_time(self) -> bool:
        """Whether to stop."""
        return self.left_s <= 0

    @property
    def gap(self) -> float:
        """How far the incumbent may be below the optimum, relative to the bound."""
        return 1.0 if self.bound == inf else max(0.0, 1 - self.value / self.bound)

    @property
    def optimal(self) -> bool:
        """Whether no placement that is allowed can be better."""
        return self.value > 0 and self.value >= self.bound * (1 - NEGLIGIBLE)

    def offer(self, ranges: Ranges, value: float | None = None) -> bool:
        """Report a placement; say whether it is the best so far.

        One with routes of more than `max_stages` stages counts for nothing.

        Parameters
        ----------
        ranges
            The placement.
        value
            Its exact maximum flow, if it is known already.
        """
        value = flow_value(self.problem, ranges) if value is None else value
        if value <= self.value * (1 + NEGLIGIBLE):
            return False
        if self.max_stages is not None and longest_route(self.problem, ranges) > self.max_stages:
            return False
        self.ranges, self.value = dict(ranges), value
        self.trace.append(Incumbent(self.elapsed_s(), value, self.bound))
        self.on_change(self)
        return True

    def prove(self, bound: float) -> None:
        """Report an upper bound."""
        if bound < self.bound:
            self.bound = bound
            self.on_change(self)

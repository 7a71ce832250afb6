"""Candidates enter the comparison: each placement once, with its flow and its estimate."""

from __future__ import annotations

from helixsim.errors import HelixError
from helixsim.placement.placement import Placement
from helixsim.planner.constraints import move_cost
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.simulated.alike import alike_nodes
from helixsim.planner.simulated.allowed import allowed
from helixsim.planner.simulated.candidates import Candidate, CandidatePool, most_stages
from helixsim.planner.simulated.proposals import Proposer


class Entries:
    """Adds placements to a pool of candidates.

    Parameters
    ----------
    problem
        The planning problem.
    proposer
        Estimates placements.

    Attributes
    ----------
    pool
        All candidates.
    """

    def __init__(self, problem: PlanningProblem, proposer: Proposer) -> None:
        self.pool = CandidatePool()
        self._problem = problem
        self._proposer = proposer
        self._alike = alike_nodes(problem)

    def add(self, label: str, source: Placement | Ranges) -> Candidate | None:
        """Add a placement to the pool; None if it is known or no request can pass it."""
        if isinstance(source, Placement):
            placement, ranges = source, self._problem.ranges(source)
        else:
            ranges = allowed(self._problem, source)
            placement = self._problem.placement(ranges)
        key = self._key(placement, ranges)
        if key in self.pool:
            return None
        estimate = None
        try:
            value = self._problem.flow(placement).tokens_per_s
            stages = most_stages(self._problem.topology(placement))
            if self.is_within_room(ranges):
                estimate = self._proposer.estimate(placement)
        except HelixError:
            return None
        if value <= 0:
            return None
        price = move_cost(self._problem, ranges)
        candidate = Candidate(label, ranges, placement, key, value, stages, price, estimate)
        self.pool.add(candidate)
        return candidate

    def _key(self, placement: Placement, ranges: Ranges) -> object:
        """Equal for placements with all links that fit and alike nodes exchanged."""
        canonical = self._alike.key(ranges)
        if placement.links is None:
            return canonical
        fitting = self._problem.placement(ranges).links
        has_all = fitting is not None and set(placement.links) == set(fitting)
        return canonical if has_all else (tuple(sorted(ranges.items())), placement.links)

    def is_within_room(self, ranges: Ranges) -> bool:
        """Whether all nodes hold as many layers as their types should: others have no estimate."""
        problem = self._problem
        return all(end - start <= problem.max_layers(n) for n, (start, end) in ranges.items())

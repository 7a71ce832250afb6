"""Candidates enter the comparison: each placement once, with its flow and its estimate."""

from __future__ import annotations

from helixsim.cluster import COORDINATOR
from helixsim.errors import HelixError
from helixsim.placement.flow import least_share
from helixsim.placement.placement import Placement
from helixsim.placement.topology import nodes_on_routes
from helixsim.planner.constraints import move_cost
from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.simulated.alike import alike_nodes
from helixsim.planner.simulated.allowed import allowed
from helixsim.planner.simulated.candidates import OWN, Candidate, CandidatePool, most_stages
from helixsim.planner.simulated.proposals import Proposer
from helixsim.planner.simulated.spread import groups_of

_CLEARLY = 0.8
"""Ratio to the least share that a used link has, below which a link is not used for certain: shares
are estimates."""


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
        """Add a placement to the pool.

        Returns
        -------
        Candidate or None
            The new candidate, or the one with the same placement if that has not been tried; None
            if it has been, or no request can pass the placement.
        """
        if isinstance(source, Placement):
            placement = source if label == OWN else self._on_routes(source)
            ranges = self._problem.ranges(placement)
        else:
            ranges = self._without_idle(allowed(self._problem, source))
            placement = self._problem.placement(ranges)
        key = self._key(placement, ranges)
        known = self.pool.find(key)
        if known is not None:
            return None if known.is_tried else known
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

    def _on_routes(self, placement: Placement) -> Placement:
        """Leave out nodes that no request can pass, as heuristics leave them, and their links."""
        try:
            topology = self._problem.topology(placement)
        except HelixError:
            return placement
        kept = {topology.name(number) for number in nodes_on_routes(topology)}
        kept |= {self._problem.names[node] for node in self._problem.constraints.fixed}
        if kept >= set(placement.layers):
            return placement
        ends = kept | set(self._problem.cluster.front_end_names) | {COORDINATOR}
        layers = {name: span for name, span in placement.layers.items() if name in kept}
        links = placement.links
        return Placement(
            layers,
            None if links is None else tuple((a, b) for a, b in links if {a, b} <= ends),
        )

    def _without_idle(self, ranges: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
        """Leave out first nodes whose share is so small that the scheduler sends them nothing."""
        scheduler = self._proposer.scenario.scheduler
        problem, alike = self._problem, self._proposer.alike
        if (
            scheduler.policy not in ("maxflow", "adaptive")
            or len(problem.cluster.front_ends) > 1
            or not self.is_within_room(ranges)
        ):
            return ranges
        least = scheduler.min_flow_share
        first = [group for group in groups_of(problem, alike, ranges) if group.start == 0]
        if self._proposer.surrogate.uses_small_shares:
            least = least_share(least, sum(group.count for group in first))
        if all(group.share < least / _CLEARLY for group in first):
            return ranges  # where no link has such a share, all are used
        idle = {(each.kind, 0, each.end) for each in first if each.share < _CLEARLY * least}
        used = {n: span for n, span in ranges.items() if (alike.class_of[n], *span) not in idle}
        return allowed(problem, used)

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

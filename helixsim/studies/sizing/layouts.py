"""The layouts of a set of machines that are simulated."""

from __future__ import annotations

from contextlib import suppress

from helixsim.errors import HelixError
from helixsim.planner.heuristics.replicas import replica_ranges
from helixsim.planner.place import place
from helixsim.planner.problem import planning_problem
from helixsim.planner.search import FlowSearch
from helixsim.scenario.resolved import Scenario


def layouts(scenario: Scenario) -> list[Scenario]:
    """A scenario with one or two placements by simple rules.

    The first is that of :func:`helixsim.place`. The second has the shortest pipelines in which the
    machines hold the LLM, as many as possible, where these are others: a request then passes few
    machines, and prompts delay the decodes of fewer requests.

    Raises
    ------
    HelixError
        If the machines cannot hold the LLM, or are not connected.
    """
    found = [place(scenario)]
    search = FlowSearch(planning_problem(scenario))
    with suppress(HelixError):
        search.require(replica_ranges(search.problem, least_share=0.0), "replicas")
        placement = search.problem.placement(search.ranges)
        if found[0].placement != placement:
            found.append(scenario.with_(placement=placement))
    return found

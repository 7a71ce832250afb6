"""Estimates of changed scenarios by the planner's surrogate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from helixsim.control.control_plane import followed_flow, placed_topology
from helixsim.errors import HelixError
from helixsim.planner.problem import planning_problem
from helixsim.planner.simulated.estimates import Estimate
from helixsim.planner.simulated.surrogate import Surrogate
from helixsim.studies.explain_changes import Change
from helixsim.studies.explain_goal import Goal

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario


def estimate(scenario: Scenario) -> Estimate:
    """What the surrogate expects of the placement of a scenario.

    Raises
    ------
    NoRouteError, PlacementError
        If the placement serves nothing.
    """
    topology = placed_topology(scenario)
    flow = followed_flow(scenario, topology)
    surrogate = Surrogate(scenario, planning_problem(scenario))
    return surrogate.of_flow(topology, flow, scenario.scheduler.min_flow_share)


def ranked(
    scenario: Scenario,
    changes: Sequence[Change],
    goal: Goal,
    on_progress: Callable[[int, int], None],
) -> list[tuple[float, Change]]:
    """Changes with their estimated gains, the greatest first; of each group only the best.

    Parameters
    ----------
    scenario
        What is changed.
    changes
        Changes that leave a valid placement.
    goal
        The figure.
    on_progress
        Called with the number of changes that are done, and of all.
    """
    before = goal.of_estimate(estimate(scenario))
    best: dict[str, tuple[float, Change]] = {}
    for number, change in enumerate(changes):
        on_progress(number, len(changes))
        try:
            after = goal.of_estimate(estimate(change.scenario))
        except HelixError:
            continue  # no route is left, or a machine cannot hold its layers
        gain = goal.gain(before, after)
        key = change.group or change.text
        if key not in best or gain > best[key][0]:
            best[key] = gain, change
    return sorted(best.values(), key=lambda each: -each[0])
